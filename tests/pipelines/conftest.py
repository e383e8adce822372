"""Tiny pipelines of the real classes; `pti` and its parts are in tests/conftest.py."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_inversion import Direction, E4EPipeline, PTIPipeline
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig
from stylegan_inversion.pipelines.encoder import EncoderPipeline
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.preprocessing.sources import PhotoSource, Source


def small_encoder(kind: str, in_channels: int = 3) -> Any:
    sizes = {"widths": (4, 4, 8, 8), "units": (1, 1, 1, 1), "reduction": 2, "in_channels": in_channels}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ENCODERS[kind].network(ENCODERS[kind].config(32, 64, w_dim=16, **sizes))


def small_encoders() -> dict[str, Any]:
    return {name: small_encoder(name) for name in ("e4e", "psp")}


def small_pipeline(kind: str, generator: Generator, source: Source | None = None, **parts: Any) -> EncoderPipeline:
    source = source or PhotoSource()
    directions = {"smile": Direction("smile", torch.eye(16)[0])}
    pipeline: Any = METHODS[kind].pipeline
    return pipeline(generator, small_encoder(kind, source.in_channels), source=source, directions=directions, **parts)


@pytest.fixture
def e4e(generator: Generator, pti: PTIPipeline) -> E4EPipeline:
    config = PyramidEncoderConfig(32, 64, 16, widths=(8, 8, 8, 8), units=(1, 1, 1, 1), reduction=4, style_channels=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder4Editing(config)
    return E4EPipeline(generator, encoder, directions=pti.directions)


@pytest.fixture
def given(pti: PTIPipeline, e4e: E4EPipeline, photo: Image.Image, detector: Callable[..., Any]) -> SimpleNamespace:
    """What the refusals are tried on."""
    return SimpleNamespace(pti=pti, e4e=e4e, photo=photo)
