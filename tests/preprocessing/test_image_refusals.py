"""Files, arrays and images that are refused: no image, damaged, too large, or too costly to decode."""

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.preprocessing import decoding_cost, image
from stylegan_inversion.preprocessing.image import MAX_SIDE, ImageLimits, load_image, to_pil, to_tensor
from stylegan_inversion.preprocessing.sources import LabelSource, SketchSource
from tests.attack.pictures import (
    after_start,
    broken,
    chunk,
    directory,
    encode,
    jpeg,
    jpeg_of_scans,
    png,
    seeds,
    segment,
    webp,
    webp_animation,
)
from tests.preprocessing.conftest import difference, table_profile

SMALL = ImageLimits(("JPEG", "PNG", "WEBP"), max_pixels=1_000_000, max_memory=8_000_000, max_table_pixels=10_000)
EXIF, MPF = b"Exif\0\0", b"MPF\0"


def png_header(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "empty"),
        (b"hello, I am no image at all", "not an image"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG drawing; convert it to JPEG"),
        (b"\xef\xbb\xbf <SVG", "SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC.*pillow-heif"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF image; convert it to JPEG or PNG first. Supported are JPEG"),
        (b"%PDF-1.7", "PDF"),
        (b"P6 32 32 255\n" + bytes(32 * 32 * 3), "not an image.*Supported are JPEG"),
        (png_header(1, 1), "too small: 1 x 1"),
        (png_header(20000, 20000), "too large: at most 16384 a side and 64 megapixels"),
        (png_header(20000, 100), "too large: 20000 x 100 pixels, at most 16384 a side"),
        (png_header(MAX_SIDE, 5000), "too large: 16384 x 5000 pixels.*64 megapixels"),
        (b"GIF89a" + struct.pack("<HH", 20000, 20000) + b"\0\0\0,\0\0\0\0\x20\x4e\x20\x4e\0", "not an image"),
        (png_header(64, 64), "damaged or incomplete"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_files(data: bytes, match: str, tmp_path: Path) -> None:
    path, limit = tmp_path / "portrait.png", Image.MAX_IMAGE_PIXELS
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's about bombs
        for source in (data, path):
            with pytest.raises(InvalidImageError, match=match) as caught:
                load_image(source)
    assert "`portrait.png`" in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert limit == Image.MAX_IMAGE_PIXELS


def filled(value: float, *shape: int, dtype: Any = float) -> np.ndarray:
    return np.full(shape or (64, 64, 3), value, dtype)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("a\0b.png", "null character"),
        (Path(__file__).parent, "is a folder or a device"),
        (filled(0, 3, 64, 64, dtype=np.uint8), "move the channels to the end"),
        (filled(0, 64, 64, 2, dtype=np.uint8), "got shape"),
        (filled(0, dtype=np.int64), "got int64"),
        (filled(np.nan), "must be finite and in"),
        (filled(-1.0), "map .-1, 1. with"),
        (filled(255.0), "divide 0..255 by 255"),
        (filled(0, 0, 0, 3, dtype=np.uint8), "too small: 0 x 0"),
        (np.broadcast_to(np.uint8(0), (20000, 20000, 3)), "too large: 20000 x 20000"),
        (Image.new("RGB", (1, 1)), "too small"),
        (Image.fromarray(np.linspace(0, 70000, 1024).astype(np.int32).reshape(32, 32)), "levels from 0 to 70000"),
        (Image.fromarray(filled(7, 32, 32, dtype=np.float32)), "Floating point"),
        (Image.open(io.BytesIO(png_header(8200, 8200))), "too large"),  # only the header is in memory
    ],
)
def test_bad_sources(source: Any, match: str) -> None:
    with pytest.raises(InvalidImageError, match=match):
        load_image(source)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: load_image(3), TypeError, "`source` must be a path.*got int"),
        (lambda: load_image(torch.zeros(1, 3, 32, 32)), TypeError, "got Tensor; turn a tensor.*with `to_pil`"),
        (lambda: load_image("nothing.png"), FileNotFoundError, r"nothing\.png"),
        (lambda: to_tensor(Image.new("L", (20, 20))), ValueError, "mode RGB, got L; pass it through `load_image`"),
        (lambda: to_pil(torch.full((1, 3, 4, 4), torch.nan)), ValueError, "holds NaN"),
    ],
)
def test_wrong_arguments(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
@pytest.mark.parametrize("load", [load_image, LabelSource().load])
def test_what_blocks_is_not_opened(load: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InvalidImageError, match=r"`pipe\.png` is a folder or a device, not an image"):
        load(tmp_path / "pipe.png")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files(photo: Image.Image, file_format: str, sound_tiff: None) -> None:
    data = encode(photo, file_format)
    whole, refused = load_image(data), 0
    cuts = range(0, len(data), max(1, len(data) // 24))
    for cut in cuts:
        try:
            assert difference(load_image(data[:cut]), whole) == 0
        except InvalidImageError:
            refused += 1
    assert refused >= 0.8 * len(cuts)


def test_broken_files_give_an_image_or_the_typed_error(photo: Image.Image, sound_tiff: None) -> None:
    for data in broken(seeds(photo), 300):
        try:
            assert load_image(data).mode == "RGB"
        except InvalidImageError as e:
            assert str(e)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF"])
def test_other_formats_are_refused_by_content(kind: str, photo: Image.Image) -> None:
    data = encode(photo, kind)
    for source in (data, Image.open(io.BytesIO(data))):
        with pytest.raises(InvalidImageError, match=f"is a {kind} image; convert .*Supported are JPEG, PNG and WebP"):
            load_image(source, limits=SMALL)


def test_tiff_is_read_where_pillow_is_sound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Image.Image
) -> None:
    data, path = encode(photo.convert("L"), "TIFF"), tmp_path / "a.tif"
    path.write_bytes(data)
    ways: list[Callable[[], object]] = [
        lambda: load_image(data),
        lambda: load_image(Image.open(io.BytesIO(data))),
        lambda: LabelSource().load(path),
        lambda: SketchSource().load(path),
    ]
    monkeypatch.setattr(image, "_PILLOW", (12, 3))
    for way in ways:
        with pytest.raises(InvalidImageError, match=r"Pillow 12\.3 may .*; Pillow 13\.0 is needed\. Convert it to PNG"):
            way()
    with pytest.raises(InvalidImageError, match="Supported are JPEG, PNG, WebP, BMP and GIF"):
        load_image(b"no picture")
    monkeypatch.setattr(image, "_PILLOW", (13, 0))
    for way in ways:
        assert way() is not None
    with pytest.raises(InvalidImageError, match="Supported are JPEG, PNG, WebP, BMP, GIF and TIFF"):
        load_image(b"no picture")


# What a header declares


def inserted(*segments: bytes, times: int = 1) -> Callable[[], bytes]:
    return lambda: after_start(jpeg(32, 32), b"".join(segments) * times)


def hidden_scans() -> bytes:
    """A comment that holds an end marker does not end the picture."""
    data = jpeg_of_scans(64, 64, 90)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + segment(0xFE, b"\xff\xd9") + last * 20 + data[-2:]


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: jpeg_of_scans(64, 64, 101), "progressive JPEG of more than 100 scans; save it as an ordinary JPEG"),
        (hidden_scans, "more than 100 scans"),
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
        (inserted(segment(0xE1, EXIF + directory(101, 9))), "EXIF block of 101 entries, and at"),
        (inserted(segment(0xE1, EXIF + bytes(65_000)), times=3), "EXIF block of .* at most 131,072 are read"),
        (inserted(segment(0xE2, MPF + directory(101, 9))), "MPF block of 101 entries"),
        (inserted(segment(0xED, b"Photoshop 3.0\0"), times=65), "too much metadata of Photoshop"),
        (lambda: jpeg(32, 32).replace(b"\xff\xc0", b"\xff\xc9"), "lossless or arithmetic JPEG; save it"),
        (inserted(segment(0xDE, bytes(9))), "a JPEG has no part 0xde there"),
        (lambda: jpeg(32, 32).replace(b"\xff\xc0", b"\xff\xc0\0\x11" + bytes(15) + b"\xff\xc0"), "two frames, or an"),
        (lambda: b"\xff\xd8\xff\xfe\0\2", "starts like a JPEG, but holds no picture"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_cost_too_much_are_not_decoded(
    build: Callable[[], bytes], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = build()
    monkeypatch.setattr(Image, "open", None)  # a call would raise another error
    with pytest.raises(InvalidImageError, match=match):
        load_image(data, limits=SMALL)


@pytest.mark.parametrize(
    "build",
    [
        lambda: jpeg_of_scans(64, 64, 100),
        lambda: jpeg_of_scans(800, 800, 30),
        lambda: jpeg(850, 850, progressive=True),
        lambda: encode(Image.new("RGB", (600, 600)), "WEBP"),
        lambda: webp(64, 64),
        lambda: png(1000, 1000, 2, 8, before=chunk(b"prVt", b"") * 9000 + chunk(b"tEXt", b"a\0b") * 16),
        inserted(segment(0xFE, b"x"), times=9000),
        inserted(segment(0xE1, EXIF + directory(100, 600))),
        lambda: jpeg(32, 32) + b"\xff\xda" * 1000,  # such as the film behind a photo of a phone
        inserted(segment(0xE1, EXIF + b"\xff\xda\xff\xd9" * 1000)),  # a small picture
    ],
)
def test_files_near_the_limits_are_read(build: Callable[[], bytes]) -> None:
    assert min(load_image(build(), limits=SMALL).size) >= 32


@pytest.mark.parametrize("size", [1024, 1023])
def test_chunks_of_pixels_are_no_parts(size: int, monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
    """A large PNG of a program that writes 8 kB a chunk is read; one of crumbs is not."""
    monkeypatch.setattr(decoding_cost, "MAX_PARTS", 100)
    photo = photo.resize((300, 300))
    sound = encode(photo, "PNG", compress_level=0)
    start, end = sound.index(b"IDAT") - 4, sound.index(b"IEND") - 4
    data, position = b"", start
    while position < end:
        length = int.from_bytes(sound[position : position + 4], "big")
        data += sound[position + 8 : position + 8 + length]
        position += 12 + length
    cut = b"".join(chunk(b"IDAT", data[k : k + size]) for k in range(0, len(data), size))
    if size == 1024:
        assert difference(load_image(sound[:start] + cut + sound[end:]), photo) == 0
    else:
        with pytest.raises(InvalidImageError, match="more than 100 parts; save it as an ordinary PNG"):
            load_image(sound[:start] + cut + sound[end:])


@pytest.mark.parametrize(
    ("block", "kind"), [(EXIF * 30_000, "PNG"), (directory(101, 9), "WEBP"), (directory(20, 140_000), "PNG")]
)
def test_an_exif_block_that_costs_too_much_is_ignored(
    block: bytes, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    photo = Image.new("RGB", (32, 48), "red")
    assert load_image(encode(photo, kind, exif=block, lossless=True)).size == (32, 48)
    assert "EXIF block of the image is broken and ignored: it has" in caplog.text


def test_profiles_that_take_long(caplog: pytest.LogCaptureFixture) -> None:
    photo = Image.new("RGB", (200, 200), "red")
    with caplog.at_level(logging.WARNING):
        assert load_image(encode(photo, "PNG", icc_profile=table_profile())).getpixel((0, 0)) != (255, 0, 0)
        small = encode(photo.crop((0, 0, 90, 90)), "PNG", icc_profile=table_profile())
        assert load_image(small, limits=SMALL).width == 90
    assert caplog.text == ""
    with pytest.raises(InvalidImageError, match="profile is a table; at most 0 are read of this kind"):
        load_image(encode(photo, "PNG", icc_profile=table_profile()), limits=SMALL)
    for endless in (table_profile() + b"mpet", table_profile() + bytes(4_000_000)):
        caplog.clear()
        assert difference(load_image(encode(photo, "WEBP", icc_profile=endless, lossless=True)), photo) == 0
        assert "it is too complex" in caplog.text
