"""What programs get from the app, and how they are refused."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

gradio_client = pytest.importorskip("gradio_client")

EXPIRED = "This inversion has expired or never existed"
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def picture(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def same(path: str | Path, expected: Image.Image) -> bool:
    """Whether a file has exactly these pixels."""
    image = picture(path)
    return image.size == expected.size and ImageChops.difference(image, expected).getbbox() is None


def refused(client: Any, match: str, *arguments: Any, **named: Any) -> str:
    with pytest.raises(gradio_client.exceptions.AppError, match=match) as caught:
        client.predict(*arguments, **named)
    words = str(caught.value)
    assert "Traceback" not in words and 'File "' not in words and "/tmp" not in words and "stylegan-inv" not in words
    return words
