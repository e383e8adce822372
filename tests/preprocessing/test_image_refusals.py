"""Files, arrays and images that are refused: not an image, damaged, or too large."""

import io
import resource
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.preprocessing import image
from stylegan_inversion.preprocessing.image import MAX_SIDE, load_image
from tests.preprocessing.image_parts import difference, encode


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "empty"),
        (b"hello, I am no image at all", "not an image"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG drawing; convert it to JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC.*pillow-heif"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
        (b"%PDF-1.7", "PDF"),
        (b"P6 32 32 255\n" + bytes(32 * 32 * 3), "not an image.*Supported are JPEG"),
        (png_header(1, 1), "too small: 1 x 1"),
        (png_header(20000, 20000), "too large: at most 16384 a side and 64 megapixels"),
        (png_header(20000, 100), "too large: 20000 x 100 pixels, at most 16384 a side"),
        (png_header(13000, 13000), "too large: 13000 x 13000 pixels.*64 megapixels"),
        (png_header(64, 64), "damaged or incomplete"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_files(data: bytes, match: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match=match):
        load_image(data)
    (tmp_path / "portrait.png").write_bytes(data)
    with pytest.raises(InvalidImageError, match=match) as caught:
        load_image(tmp_path / "portrait.png")
    assert "`portrait.png`" in str(caught.value) and str(tmp_path) not in str(caught.value)


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
        (filled(0, dtype=bool), "got bool"),
        (filled(np.nan), "must be finite and in"),
        (filled(-1.0), "map .-1, 1. with"),
        (filled(255.0), "divide 0..255 by 255"),
        (filled(0, 0, 0, 3, dtype=np.uint8), "too small: 0 x 0"),
        (np.broadcast_to(np.uint8(0), (20000, 20000, 3)), "too large: 20000 x 20000"),
        (Image.new("RGB", (1, 1)), "too small"),
        (
            Image.fromarray(np.linspace(0, 70000, 1024).astype(np.int32).reshape(32, 32)),
            "levels from 0 to 70000",
        ),
        (Image.fromarray(filled(7, 32, 32, dtype=np.float32)), "Floating point"),
        (Image.open(io.BytesIO(png_header(8200, 8200))), "too large"),  # only the header is in memory
    ],
)
def test_bad_sources(source: Any, match: str) -> None:
    with pytest.raises(InvalidImageError, match=match):
        load_image(source)


def test_sources_of_other_types() -> None:
    for source in (None, 3, ["a.png"], torch.zeros(1, 3, 32, 32)):
        with pytest.raises(TypeError, match=f"`source` must be a path.*got {type(source).__name__}"):
            load_image(source)
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        load_image("nothing.png")


def test_bombs_take_no_memory_and_leave_pillow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bombs = [png_header(20000, 20000), png_header(16000, 16000), png_header(MAX_SIDE, 5000), png_header(9000, 9000)]
    bombs.append(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xfe\x3f\0" * 2)
    frame = struct.pack("<HHHHB", 0, 0, 20000, 20000, 0)
    bombs.append(b"GIF89a" + struct.pack("<HH", 20000, 20000) + b"\0\0\0," + frame)
    limit = Image.MAX_IMAGE_PIXELS
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bomb in bombs:
            with pytest.raises(InvalidImageError):
                load_image(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB
    assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InvalidImageError, match="too large"):
        load_image(png_header(64, 64))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files(photo: Image.Image, file_format: str, sound_tiff: None) -> None:
    data = encode(photo, file_format)
    whole, refused = load_image(data), 0
    cuts = range(0, len(data), max(1, len(data) // 60))
    for cut in cuts:
        try:
            assert difference(load_image(data[:cut]), whole) == 0
        except InvalidImageError:
            refused += 1
    assert refused >= 0.8 * len(cuts)


@settings(max_examples=200, deadline=None)
@given(
    file_format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_mutated_files_give_an_image_or_the_typed_error(file_format: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encode(Image.linear_gradient("L").resize((40, 40)).convert("RGB"), file_format))
    for place, value in changes:
        data[int(place * len(data))] = value
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "_PILLOW", (13, 0))  # TIFF is read, too
        warnings.simplefilter("error")
        try:
            assert load_image(bytes(data)).mode == "RGB"
        except InvalidImageError as e:
            assert str(e)
