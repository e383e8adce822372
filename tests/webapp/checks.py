"""What several tests of the app wait for and compare."""

import time
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageChops

EXPIRED = "This inversion has expired or never existed"


def until(condition: Callable[[], Any], seconds: float = 90.0) -> None:
    """Wait, and let others run meanwhile; fails if it takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():  # asked once a round: what has come may go again
        assert time.monotonic() < deadline
        time.sleep(0.02)


def differ(a: Image.Image, b: Image.Image) -> float:
    """Largest difference of two pictures."""
    assert a.size == b.size
    return max(high for _, high in ImageChops.difference(a, b).getextrema())
