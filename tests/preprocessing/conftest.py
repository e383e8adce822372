import struct

import numpy as np
import pytest
from PIL import Image

from stylegan_inversion.preprocessing import image

WIDTH, HEIGHT = 48, 32


def difference(a: Image.Image, b: Image.Image) -> int:
    assert a.size == b.size and a.mode == b.mode == "RGB"
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def table_profile() -> bytes:
    """A profile whose colours are a table, in which all turn to one grey."""
    table = b"mft1\0\0\0\0\x03\x03\x02\0" + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table += bytes(range(256)) * 3 + b"\x80" * 24 + bytes(range(256)) * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    start = 128 + 4 + 24
    tags = struct.pack(">4sII", b"A2B0", start, len(table))
    tags += struct.pack(">4sII", b"wtpt", start + len(table), len(white))
    size = start + len(table) + len(white)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", b"RGB ", b"Lab ") + bytes(12) + b"acsp"
    return head.ljust(128, b"\0") + struct.pack(">I", 2) + tags + table + white


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth, coloured, different in every corner."""
    x, y = np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT)[:, None]
    red, green, blue = x + 0 * y, y + 0 * x, (255 - x) * y / 255
    return Image.fromarray(np.stack([red, green, blue], axis=-1).round().astype(np.uint8))


@pytest.fixture
def sound_tiff(monkeypatch: pytest.MonkeyPatch) -> None:
    """TIFF is read, whichever Pillow is installed: the files of these tests are sound."""
    monkeypatch.setattr(image, "_PILLOW", (13, 0))
