"""Tiny models of the real classes, each number of which says whose it is."""

from pathlib import Path
from typing import Any

import torch

from stylegan_inversion import Direction, E4EPipeline
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig

GENERATOR = GeneratorConfig(16, z_dim=4, w_dim=4, mapping_layers=1, channel_base=32, channel_max=4)
ENCODER = PyramidEncoderConfig(
    16, 32, w_dim=4, coarse_end=2, middle_end=4, widths=(2, 2, 2, 2), units=(1, 1, 1, 1), reduction=2
)


def fill(module: torch.nn.Module, value: float) -> Any:
    for tensor in module.state_dict().values():
        tensor.fill_(value)
    return module


def make_model(value: float) -> E4EPipeline:
    """A pipeline whose every weight is one number."""
    vector = torch.ones(4) / 2
    pipeline = E4EPipeline(fill(Generator(GENERATOR), value), fill(Encoder4Editing(ENCODER), value))
    pipeline.directions = {"smile": Direction("smile", vector, strength_range=(-value, value))}
    return pipeline


def owners(folder: Path) -> set[float]:
    """Whose numbers a model consists of: those of one, if it is whole."""
    pipeline = E4EPipeline.from_pretrained(folder)
    low, high = pipeline.directions["smile"].strength_range or (0.0, 0.0)
    tensors = [*pipeline.generator.state_dict().values(), *pipeline.encoder.state_dict().values()]
    return {high, -low, *(float(value) for tensor in tensors for value in tensor.unique())}


def hidden(folder: Path) -> list[Path]:
    """What interrupted savings left."""
    return [path for path in folder.rglob(".*")]
