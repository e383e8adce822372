"""Every kind of image that is read, and tensors of it."""

import io
import logging
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from stylegan_inversion.preprocessing.image import load_image, to_pil, to_tensor
from tests.preprocessing.image_parts import HEIGHT, WIDTH, difference, encode

pytestmark = pytest.mark.usefixtures("sound_tiff")
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF orientation -> what the camera did (PIL's Transpose)


def test_every_kind_of_source_gives_the_same_image(photo: Image.Image, tmp_path: Path) -> None:
    data = encode(photo, "PNG")
    (tmp_path / "photo.png").write_bytes(data)
    array = np.asarray(photo)
    opaque = np.dstack([array, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    sources = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        data,
        bytearray(data),
        photo,
        array,
        opaque,
        array.astype(np.uint16) * 257,
        array.astype(np.float32) / 255,
        array.astype(np.float64) / 255,
    ]
    for source in sources:
        assert difference(load_image(source), photo) == 0
    grey = photo.convert("L")
    for array in (np.asarray(grey), np.asarray(grey)[..., None]):
        assert difference(load_image(array), grey.convert("RGB")) == 0


@pytest.mark.parametrize(
    ("file_format", "orientation", "mode"),
    [
        *(("JPEG", orientation, "RGB") for orientation in range(2, 9)),
        *((file_format, 6, "L") for file_format in ("JPEG", "PNG", "WEBP", "TIFF")),
        *((file_format, 1, "RGB") for file_format in ("PNG", "WEBP", "TIFF", "BMP")),
    ],
)
def test_formats_and_exif_orientation(photo: Image.Image, orientation: int, file_format: str, mode: str) -> None:
    upright = photo.convert(mode)
    stored = upright.transpose(Image.Transpose(TURNS[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if file_format == "JPEG" else {"lossless": True}
    loaded = load_image(encode(stored, file_format, exif=exif, **options))
    assert difference(loaded, upright.convert("RGB")) <= (6 if file_format == "JPEG" else 0)


def test_cmyk_and_mpo_jpegs(photo: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    assert difference(load_image(encode(photo.convert("CMYK"), "JPEG", quality=100, subsampling=0)), photo) <= 6
    data = encode(photo, "MPO", save_all=True, append_images=[photo.rotate(180)], quality=100, subsampling=0)
    assert Image.open(io.BytesIO(data)).format == "MPO"  # a phone's photo with a depth map, not an animation
    assert difference(load_image(data), photo) <= 6
    assert caplog.text == ""


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(photo: Image.Image, mode: str) -> None:
    image = photo.convert(mode)
    if mode == "P":
        data = encode(image, "PNG", transparency=bytes(256))
    else:
        image.putalpha(Image.new("L", image.size, 0))
        data = encode(image, "PNG")
    assert difference(load_image(data), Image.new("RGB", photo.size, "white")) == 0
    loaded = load_image(Image.new("RGBA", (20, 20), (0, 100, 200, 128)))
    assert loaded.getpixel((3, 3)) == pytest.approx((127, 177, 227), abs=1)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    expected = np.rint(levels / 257).astype(np.uint8)
    big_endian = Image.frombytes("I;16B", (32, 32), levels.astype(">u2").tobytes())
    for source in (
        Image.fromarray(levels),
        encode(Image.fromarray(levels), "PNG"),
        encode(Image.fromarray(levels), "TIFF"),
        Image.fromarray(levels.astype(np.int32)),
        big_endian,
        levels,
    ):
        assert np.array_equal(np.asarray(load_image(source))[..., 0], expected)
    ramp = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    loaded = load_image(encode(Image.fromarray(ramp), "TIFF"))
    assert np.array_equal(np.asarray(loaded)[..., 1], np.rint(ramp * 255))


def swapped_profile() -> bytes:
    """An sRGB profile whose red and green primaries changed places, under a name that does not say sRGB."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        data[132 + 12 * i : 136 + 12 * i].decode(): 132 + 12 * i for i in range(struct.unpack(">I", data[128:132])[0])
    }
    red, green = (bytes(data[tags[t] + 4 : tags[t] + 12]) for t in ("rXYZ", "gXYZ"))
    data[tags["rXYZ"] + 4 : tags["rXYZ"] + 12], data[tags["gXYZ"] + 4 : tags["gXYZ"] + 12] = green, red
    return bytes(data).replace("sRGB built-in".encode("utf-16-be"), "swap built-in".encode("utf-16-be"))


def test_colour_profile_is_applied(photo: Image.Image) -> None:
    red = Image.new("RGB", (20, 20), (255, 0, 0))
    loaded = load_image(encode(red, "PNG", icc_profile=swapped_profile()))
    assert loaded.getpixel((0, 0)) == pytest.approx((0, 255, 0), abs=2)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert difference(load_image(encode(photo, "PNG", icc_profile=profile)), photo) == 0


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L", "P"])
def test_broken_or_unfitting_profile_is_ignored(
    photo: Image.Image, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    grey_only = mode == "L"  # an RGB profile on a grey image
    profile = swapped_profile() if grey_only else b"no profile at all"
    image = photo.convert(mode)
    loaded = load_image(encode(image, "TIFF", icc_profile=profile))
    assert difference(loaded, image.convert("RGB")) == 0
    assert "profile" in caplog.text


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
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    loaded = load_image(encode(photo, "JPEG", exif=exif, icc_profile=profile, comment=b"secret", dpi=(300, 300)))
    assert loaded.info == {} and len(loaded.getexif()) == 0
    again = Image.open(io.BytesIO(encode(loaded, "JPEG")))
    assert "exif" not in again.info and "icc_profile" not in again.info and len(again.getexif()) == 0


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_is_its_first_frame(photo: Image.Image, file_format: str, caplog: pytest.LogCaptureFixture) -> None:
    frames = [photo.rotate(90 * i).convert("P" if file_format == "GIF" else "RGB") for i in range(4)]
    more = {} if file_format == "TIFF" else {"duration": 50, "lossless": True}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **more)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 4
    with caplog.at_level(logging.WARNING):
        loaded = load_image(data)
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
    assert to_tensor(Image.new("RGB", (20, 30))).shape == (1, 3, 30, 20)
    stripes = np.tile(np.array([0, 255], np.uint8), (128, 64))
    tensor = to_tensor(Image.fromarray(stripes).convert("RGB"), 16)  # resized with antialiasing
    assert tensor.shape == (1, 3, 16, 16) and tensor[..., 2:-2].abs().max() < 0.02


def test_to_pil_clamps_and_rounds() -> None:
    values = torch.tensor([-7.0, -1.0, 1.0, 9.0, 100.6 / 127.5 - 1, 100.4 / 127.5 - 1])
    [image] = to_pil(values.reshape(1, 1, 1, 6).repeat(1, 3, 1, 1).requires_grad_())
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 255, 255, 101, 100]
    assert len(to_pil(torch.zeros(3, 3, 8, 8, dtype=torch.bfloat16))) == 3


def test_tensor_arguments() -> None:
    with pytest.raises(ValueError, match="mode RGB, got L; pass it through `load_image`"):
        to_tensor(Image.new("L", (20, 20)))
    with pytest.raises(ValueError, match="square when `size` is given, got 20 x 30"):
        to_tensor(Image.new("RGB", (20, 30)), 16)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        to_tensor(Image.new("RGB", (20, 20)), 0)
    with pytest.raises(ValueError, match="holds NaN"):
        to_pil(torch.full((1, 3, 4, 4), torch.nan))
