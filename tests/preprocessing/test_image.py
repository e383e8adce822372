"""Every kind of image that is read, and tensors of it."""

import io
import logging
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from stylegan_inversion.preprocessing import image as module
from stylegan_inversion.preprocessing.image import list_images, load_image, to_pil, to_tensor
from tests.attack.pictures import chunk, encode, png
from tests.preprocessing.conftest import HEIGHT, WIDTH, difference, table_profile

pytestmark = pytest.mark.usefixtures("sound_tiff")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TURNS = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF orientation -> what the camera did, as Transpose


def test_every_kind_of_source_gives_the_same_image(photo: Image.Image, tmp_path: Path) -> None:
    data, array = encode(photo, "PNG"), np.asarray(photo)
    (tmp_path / "photo.png").write_bytes(data)
    opaque = np.dstack([array, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    files = [tmp_path / "photo.png", str(tmp_path / "photo.png"), data, bytearray(data)]
    for source in (*files, photo, array, opaque, array.astype(np.uint16) * 257, array.astype(np.float32) / 255):
        assert difference(load_image(source), photo) == 0
    grey = photo.convert("L")
    for levels in (np.asarray(grey), np.asarray(grey)[..., None]):
        assert difference(load_image(levels), grey.convert("RGB")) == 0


@pytest.mark.parametrize(("orientation", "file_format"), [*zip(TURNS, ["JPEG", "PNG", "WEBP", "TIFF"] * 2)])
def test_formats_and_exif_orientation(photo: Image.Image, orientation: int, file_format: str) -> None:
    turn, exif = TURNS[orientation], Image.Exif()
    stored = photo if turn is None else photo.transpose(Image.Transpose(turn))
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if file_format == "JPEG" else {"lossless": True}
    loaded = load_image(encode(stored, file_format, exif=exif, **options))
    assert difference(loaded, photo) <= (6 if file_format == "JPEG" else 0)


def test_other_files(photo: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    assert difference(load_image(encode(photo, "BMP")), photo) == 0
    assert difference(load_image(encode(photo.convert("CMYK"), "JPEG", quality=100, subsampling=0)), photo) <= 6
    data = encode(photo, "MPO", save_all=True, append_images=[photo.rotate(180)], quality=100, subsampling=0)
    assert Image.open(io.BytesIO(data)).format == "MPO"  # a phone's photo with a depth map, not an animation
    assert difference(load_image(data), photo) <= 6 and caplog.text == ""
    exif = Image.Exif()
    exif[0x0112] = 6
    text = f"\nexif\n{len(exif.tobytes()):8d}\n{exif.tobytes().hex()}"  # as ImageMagick writes it
    data = png(32, 48, 2, 8, before=chunk(b"tEXt", b"Raw profile type exif\0" + text.encode()))
    assert load_image(data).size == (48, 32)


def straight(source: Image.Image) -> Image.Image:
    """The whole picture at once, by Pillow's own conversions."""
    profile = source.info.get("icc_profile")
    if source.mode == "F":
        source = Image.fromarray(np.rint(np.asarray(source) * 255).astype(np.uint8))
    elif source.mode.startswith("I"):
        source = Image.fromarray((np.asarray(source).astype(int) * 255 + 32767).__floordiv__(65535).astype(np.uint8))
    if source.mode in ("La", "RGBa"):
        source = source.convert(source.mode.upper())
    rgba = source.convert("RGBA") if source.has_transparency_data else None
    rgb = source if profile else (rgba or source).convert("RGB")
    if profile:
        made = ImageCms.profileToProfile(rgb, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert made is not None
        rgb = made
    white = Image.new("RGB", source.size, "white")
    white.paste(rgb, mask=rgba.getchannel("A") if rgba else None)
    return white


def test_every_mode(photo: Image.Image) -> None:
    """Upright and turned, in several strips: 16 bits are scaled, and transparency is laid over white."""
    photo = photo.resize((613, 499))
    assert module._STRIP_PIXELS < photo.width * photo.height
    grey = photo.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 250)
    big_endian = Image.frombytes("I;16B", photo.size, np.asarray(deep).astype(">u2").tobytes())
    clear = [photo.convert("RGBA"), grey.convert("LA")]
    for each in clear:
        each.putalpha(grey.rotate(180))
    palette, holes, tagged = photo.convert("P"), photo.copy(), photo.copy()
    palette.info["transparency"], holes.info["transparency"] = bytes(range(256)), (0, 0, 0)
    tagged.info["icc_profile"] = table_profile()
    sources = [photo.convert(mode) for mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")]
    sources += [
        *clear,
        clear[0].convert("RGBa"),
        clear[1].convert("La"),
        clear[0].convert("PA"),
        palette,
        holes,
        tagged,
    ]
    sources += [deep, big_endian, Image.fromarray(np.asarray(deep).astype(np.int32))]
    sources += [Image.fromarray(np.asarray(grey).astype(np.float32) / 255)]
    for source in sources:
        assert difference(load_image(source), straight(source)) == 0, source.mode
        source.getexif()[0x0112] = 6
        turned = straight(source).transpose(Image.Transpose.ROTATE_270)
        assert difference(load_image(source), turned) == 0, source.mode


def test_profiles(photo: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    swapped = bytearray(SRGB)  # red and green change places, under a name that does not say sRGB
    starts = range(132, 132 + 12 * struct.unpack(">I", SRGB[128:132])[0], 12)
    tags = {SRGB[start : start + 4]: start for start in starts}
    red, green = (slice(tags[tag] + 4, tags[tag] + 12) for tag in (b"rXYZ", b"gXYZ"))
    swapped[red], swapped[green] = swapped[green], swapped[red]
    profile = bytes(swapped).replace("sRGB built-in".encode("utf-16-be"), "swap built-in".encode("utf-16-be"))
    loaded = load_image(encode(Image.new("RGB", (20, 20), "red"), "PNG", icc_profile=profile))
    assert loaded.getpixel((0, 0)) == pytest.approx((0, 255, 0), abs=2)
    assert difference(load_image(encode(photo, "PNG", icc_profile=SRGB)), photo) == 0 and caplog.text == ""
    for mode, unfitting in (("RGB", b"no profile"), ("P", b"no profile"), ("L", profile)):
        caplog.clear()
        image = photo.convert(mode)
        assert difference(load_image(encode(image, "TIFF", icc_profile=unfitting)), image.convert("RGB")) == 0
        assert "The colour profile of the image cannot be used and is ignored" in caplog.text


def test_no_metadata_survives_and_the_source_is_left_alone(photo: Image.Image) -> None:
    before = photo.tobytes()
    load_image(photo).paste("red", (0, 0, 10, 10))
    assert photo.tobytes() == before
    broken = encode(photo, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert difference(load_image(broken), photo) == 0
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8825)[1] = "N"
    loaded = load_image(encode(photo, "JPEG", exif=exif, icc_profile=SRGB, comment=b"secret", dpi=(300, 300)))
    assert loaded.info == {} and len(loaded.getexif()) == 0


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_is_its_first_frame(photo: Image.Image, file_format: str, caplog: pytest.LogCaptureFixture) -> None:
    frames = [photo.rotate(90 * i).convert("P" if file_format == "GIF" else "RGB") for i in range(4)]
    more = {} if file_format == "TIFF" else {"duration": 50, "lossless": True}
    with caplog.at_level(logging.WARNING):
        loaded = load_image(encode(frames[0], file_format, save_all=True, append_images=frames[1:], **more))
    assert difference(loaded, frames[0].convert("RGB")) == 0
    assert "several frames" in caplog.text


def test_tensor_and_image_are_exact_inverses() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.dstack([levels, levels[::-1], levels.T]))
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert tensor.min() == -1 and tensor.max() == 1
    assert tensor[0, 0, 0, 5].item() == pytest.approx(5 / 127.5 - 1)
    [back] = to_pil(tensor)
    assert np.array_equal(np.asarray(back), np.asarray(image))
    values = torch.tensor([-7.0, -1.0, 1.0, 9.0, 100.6 / 127.5 - 1, 100.4 / 127.5 - 1])
    [image] = to_pil(values.reshape(1, 1, 1, 6).repeat(1, 3, 1, 1).requires_grad_())
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 255, 255, 101, 100]  # clamped and rounded
    assert len(to_pil(torch.zeros(3, 3, 8, 8, dtype=torch.bfloat16))) == 3


def test_pictures_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a/photo.PNG", "b.jpg", "c/d/e.webp"]
    for name in (*names, ".hidden.png", ".cache/a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)  # back to where it came from
    (tmp_path / "none").mkdir()
    assert list_images(tmp_path) == names
    (tmp_path / "link").symlink_to(tmp_path / "c")
    assert list_images(tmp_path, without=tmp_path / "c") == names[:2], "by no way"
    scandir = os.scandir

    def denied(path: Any) -> Any:
        return os.listdir(tmp_path / "locked") if Path(path).name == "a" else scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert list_images(tmp_path) == names[1:]
    assert "A folder is left out: " in caplog.text
    with pytest.raises(ValueError, match=r"holds no picture \(.*\.jpg, .*\.png"):
        list_images(tmp_path / "none")
    with pytest.raises(ValueError, match="is not a folder; give a folder of pictures"):
        list_images(tmp_path / "b.jpg")
