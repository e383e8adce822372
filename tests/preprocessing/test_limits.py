"""What is refused before it is decoded, and that what is read in strips is what it was."""

import io
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.preprocessing import headers, image
from stylegan_inversion.preprocessing.image import ImageLimits, load_image
from stylegan_inversion.preprocessing.sources import LabelSource, SketchSource
from tests.attack.pictures import (
    after_start,
    chunk,
    directory,
    jpeg,
    jpeg_of_scans,
    png,
    segment,
    webp,
    webp_animation,
)
from tests.preprocessing.image_parts import difference, encode

SMALL = ImageLimits(("JPEG", "PNG", "WEBP"), max_pixels=1_000_000, max_memory=8_000_000, max_table_pixels=10_000)
LARGE = (613, 499)  # more than one strip


def refused(data: bytes, match: str, limits: ImageLimits = SMALL) -> None:
    with pytest.raises(InvalidImageError, match=match):
        load_image(data, limits=limits)


def pictures() -> Image.Image:
    x, y = np.linspace(0, 255, LARGE[0]), np.linspace(0, 255, LARGE[1])[:, None]
    return Image.fromarray(np.stack([x + 0 * y, y + 0 * x, (255 - x) * y / 255], axis=-1).round().astype(np.uint8))


# The formats, by the content and by the installed Pillow


def test_other_formats_are_refused_by_content() -> None:
    photo = Image.new("RGB", (32, 32))
    for kind in ("JPEG", "PNG", "WEBP"):
        assert load_image(encode(photo, kind), limits=SMALL).size == (32, 32)
    for kind in ("BMP", "GIF", "TIFF"):
        refused(
            encode(photo, kind), f"is a {kind} image; convert it to JPEG or PNG first. Supported are JPEG, PNG and WebP"
        )
    with pytest.raises(InvalidImageError, match="is a GIF image"):
        load_image(Image.open(io.BytesIO(encode(photo, "GIF"))), limits=SMALL)


def test_tiff_is_read_where_pillow_is_sound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    grey = Image.new("L", (32, 32), 7)
    data = encode(grey, "TIFF")
    (tmp_path / "a.tif").write_bytes(data)
    ways: list[Callable[[], object]] = [
        lambda: load_image(data),
        lambda: load_image(tmp_path / "a.tif"),
        lambda: load_image(Image.open(io.BytesIO(data))),
        lambda: LabelSource().load(data),
        lambda: LabelSource().load(tmp_path / "a.tif"),
        lambda: SketchSource().load(tmp_path / "a.tif"),
    ]
    monkeypatch.setattr(image, "_PILLOW", (12, 3))
    for way in ways:
        with pytest.raises(
            InvalidImageError, match=r"Pillow 12\.3 may .*; Pillow 13\.0 is needed\. Convert it to PNG, or"
        ):
            way()
    with pytest.raises(InvalidImageError, match="Supported are JPEG, PNG, WebP, BMP and GIF"):
        load_image(b"no picture")
    monkeypatch.setattr(image, "_PILLOW", (13, 0))
    for way in ways:
        assert way() is not None
    with pytest.raises(InvalidImageError, match="Supported are JPEG, PNG, WebP, BMP, GIF and TIFF"):
        load_image(b"no picture")


# What a header declares


EXIF, MPF = b"Exif\0\0", b"MPF\0"


def inserted(*segments: bytes, times: int = 1) -> Callable[[], bytes]:
    return lambda: after_start(jpeg(32, 32), b"".join(segments) * times)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: jpeg_of_scans(64, 64, 101), "progressive JPEG of more than 100 scans; save it as an ordinary JPEG"),
        (lambda: jpeg_of_scans(800, 800, 40), "of 40 scans, too many for 1 megapixels; save it as an ordinary JPEG"),
        (lambda: jpeg(900, 900, progressive=True, subsampling=0), "may take 8 MB of memory, and at most 8 MB are all"),
        (lambda: encode(Image.new("RGB", (700, 700)), "WEBP"), r"a WebP of 0\.5 megapixels, which may take 10 MB"),
        (lambda: webp(128, 128), r"lossless or transparent WebP of 0\.0 megapixels, which may take 13 MB"),
        (lambda: encode(Image.new("RGBA", (128, 128)), "WEBP"), "lossless or transparent WebP"),
        (lambda: webp_animation(10, 128, 128), "lossless or transparent WebP"),
        (lambda: webp_animation(10_001), "more than 10,000 parts; save it as a WebP without animation"),
        (lambda: webp(5000, 5000), "too large: 5000 x 5000 pixels, .* 1 megapixels"),
        (lambda: png(32, 32, 2, 8, before=chunk(b"prVt", b"") * 10_000), "more than 10,000 parts; save it as an ord"),
        (lambda: png(32, 32, 2, 8, before=chunk(b"zTXt", b"a\0\0") * 17), "more than 16 compressed texts"),
        (inserted(segment(0xFE, b""), times=10_000), "more than 10,000 parts; save it as an ordinary JPEG"),
        (inserted(b"\xff" * 70_000), "damaged: it has other data between the parts of a JPEG"),
        (inserted(segment(0xFE, b""), bytes(70_000)), "damaged: it has other data between the parts of a JPEG"),
        (inserted(segment(0xE1, EXIF + directory(101, 9))), "EXIF block of 101 entries, and at"),
        (
            inserted(segment(0xE1, EXIF + bytes(65_000)), times=3),
            "EXIF block of .* at most 131,072 are read",
        ),
        (inserted(segment(0xE2, MPF + directory(101, 9))), "MPF block of 101 entries"),
        (inserted(segment(0xED, b"Photoshop 3.0\0"), times=65), "too much metadata of Photoshop"),
        (lambda: jpeg(32, 32).replace(b"\xff\xc0", b"\xff\xc9"), "lossless or arithmetic JPEG; save it"),
        (inserted(segment(0xDE, bytes(9))), "a JPEG has no part 0xde there"),
        (
            lambda: jpeg(32, 32).replace(b"\xff\xc0", b"\xff\xc0\0\x11" + bytes(15) + b"\xff\xc0"),
            "two frames, or an",
        ),
        (lambda: b"\xff\xd8\xff\xfe\0\2", "starts like a JPEG, but holds no picture"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_cost_too_much_are_not_decoded(
    build: Callable[[], bytes], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", None)  # a call would raise another error
    refused(build(), match)


@pytest.mark.parametrize(
    "build",
    [
        lambda: jpeg_of_scans(64, 64, 100),
        lambda: jpeg_of_scans(800, 800, 30),
        lambda: jpeg(850, 850, progressive=True),
        lambda: jpeg(64, 64, "L", progressive=True),
        lambda: encode(Image.new("RGB", (600, 600)), "WEBP"),
        lambda: webp(64, 64),
        lambda: png(1000, 1000, 2, 8, before=chunk(b"prVt", b"") * 9000 + chunk(b"tEXt", b"a\0b") * 16),
        inserted(segment(0xFE, b"x"), times=9000),
        inserted(b"\xff" * 60_000),
        inserted(segment(0xE1, EXIF + directory(100, 600))),
        lambda: jpeg(32, 32) + b"\xff\xda" * 1000,  # such as the film behind a photo of a phone
        inserted(segment(0xE1, EXIF + b"\xff\xda\xff\xd9" * 1000)),  # a small picture
    ],
)
def test_files_near_the_limits_are_read(build: Callable[[], bytes]) -> None:
    assert min(load_image(build(), limits=SMALL).size) >= 32


@pytest.mark.parametrize(("size", "is_read"), [(1024, True), (1023, False)])
def test_chunks_of_pixels_are_no_parts(size: int, is_read: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large PNG of a program that writes 8 kB a chunk is read; one of crumbs is not."""
    monkeypatch.setattr(headers, "MAX_PARTS", 100)
    sound = encode(pictures(), "PNG", compress_level=0)
    start, end = sound.index(b"IDAT") - 4, sound.index(b"IEND") - 4
    data, position = b"", start
    while position < end:
        length = int.from_bytes(sound[position : position + 4], "big")
        data += sound[position + 8 : position + 8 + length]
        position += 12 + length
    chunks = [chunk(b"IDAT", data[k : k + size]) for k in range(0, len(data), size)]
    assert len(chunks) > 800
    cut = sound[:start] + b"".join(chunks) + sound[end:]
    if is_read:
        assert difference(load_image(cut, limits=SMALL), pictures()) == 0
    else:
        refused(cut, "more than 100 parts; save it as an ordinary PNG")


def test_scans_do_not_hide_behind_segments() -> None:
    """A comment that holds an end marker does not end the picture."""
    data = jpeg_of_scans(64, 64, 90)
    last = data[data.rindex(b"\xff\xda") : -2]
    hidden = data[:-2] + segment(0xFE, b"\xff\xd9") + last * 20 + data[-2:]
    refused(hidden, "more than 100 scans")


@pytest.mark.parametrize(
    ("block", "kind"), [(b"Exif\0\0" * 30_000, "PNG"), (directory(101, 9), "WEBP"), (directory(20, 140_000), "PNG")]
)
def test_an_exif_block_that_costs_too_much_is_ignored(
    block: bytes, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    photo = Image.new("RGB", (32, 48), "red")
    assert load_image(encode(photo, kind, exif=block, lossless=True)).size == (32, 48)
    assert "EXIF block of the image is broken and ignored: it has" in caplog.text


def test_exif_of_imagemagick() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    text = f"\nexif\n{len(exif.tobytes()):8d}\n{exif.tobytes().hex()}"
    data = png(32, 48, 2, 8, before=chunk(b"tEXt", b"Raw profile type exif\0" + text.encode()))
    assert load_image(data).size == (48, 32)


def table_profile() -> bytes:
    """A profile whose colours are a table, in which all turn to one grey."""
    table = b"mft1\0\0\0\0\x03\x03\x02\0" + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table += bytes(range(256)) * 3 + b"\x80" * 24 + bytes(range(256)) * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    rows, body = b"", b""
    for tag, data in ((b"A2B0", table), (b"wtpt", white)):
        rows += tag + struct.pack(">II", 128 + 4 + 24 + len(body), len(data))
        body += data
    size = 128 + 4 + 24 + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", b"RGB ", b"Lab ") + bytes(12) + b"acsp"
    return head.ljust(128, b"\0") + struct.pack(">I", 2) + rows + body


def test_profiles_that_take_long(caplog: pytest.LogCaptureFixture) -> None:
    photo = Image.new("RGB", (200, 200), "red")
    with caplog.at_level(logging.WARNING):
        assert load_image(encode(photo, "PNG", icc_profile=table_profile())).getpixel((0, 0)) != (255, 0, 0)
        small = encode(photo.crop((0, 0, 90, 90)), "PNG", icc_profile=table_profile())
        assert load_image(small, limits=SMALL).width == 90
    assert caplog.text == ""
    refused(
        encode(photo, "PNG", icc_profile=table_profile()),
        "of 0 megapixels whose colour profile is a table; at most 0 are read of this kind. Save it in sRGB",
    )
    for endless in (table_profile() + b"mpet", table_profile() + bytes(4_000_000)):
        caplog.clear()
        assert difference(load_image(encode(photo, "WEBP", icc_profile=endless, lossless=True)), photo) == 0
        assert "it is too complex" in caplog.text


# Strips


def straight(source: Image.Image) -> Image.Image:
    """The whole picture at once, and several copies of it."""
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


def kinds() -> dict[str, Image.Image]:
    photo = pictures()
    grey = photo.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 250)
    clear = {"RGBA": photo.convert("RGBA"), "LA": grey.convert("LA")}
    for each in clear.values():
        each.putalpha(grey.rotate(180))
    palette = photo.convert("P")
    palette.info["transparency"] = bytes(range(256))
    holes = photo.copy()
    holes.info["transparency"] = (0, 0, 0)
    tagged = photo.copy()
    tagged.info["icc_profile"] = table_profile()
    modes = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
    return {
        **{mode: photo.convert(mode) for mode in modes},
        **clear,
        "La": clear["LA"].convert("La"),
        "RGBa": clear["RGBA"].convert("RGBa"),
        "PA": clear["RGBA"].convert("PA"),
        "P, transparent": palette,
        "RGB, transparent": holes,
        "RGB, profile": tagged,
        "I;16": deep,
        "I;16B": Image.frombytes("I;16B", LARGE, np.asarray(deep).astype(">u2").tobytes()),
        "I": Image.fromarray(np.asarray(deep).astype(np.int32)),
        "F": Image.fromarray(np.asarray(grey).astype(np.float32) / 255),
    }


def test_strips_change_nothing() -> None:
    assert image._STRIP_PIXELS < LARGE[0] * LARGE[1]
    for kind, source in kinds().items():
        assert difference(load_image(source), straight(source)) == 0, kind
        source.getexif()[0x0112] = 6
        assert difference(load_image(source), straight(source).transpose(Image.Transpose.ROTATE_270)) == 0, kind
