"""Pictures as files, and how far two of them differ."""

import io

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 32


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def difference(a: Image.Image, b: Image.Image) -> int:
    assert a.size == b.size and a.mode == b.mode == "RGB"
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())
