import numpy as np
import pytest
from PIL import Image

from stylegan_inversion.preprocessing import image
from tests.preprocessing.image_parts import HEIGHT, WIDTH


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
