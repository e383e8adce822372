"""A model in the files of the official repositories, for tools that read those."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from stylegan_inversion import hub
from stylegan_inversion.checkpoints.export import checkpoint_to_official, checkpoint_to_rosinality
from stylegan_inversion.checkpoints.generator import generator_to_nvidia
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig

Layout = Literal["psp", "e4e", "rosinality", "nvidia"]
LAYOUTS: tuple[Layout, ...] = ("psp", "e4e", "rosinality", "nvidia")
_ENCODERS: dict[str, type[nn.Module]] = {"psp": GradualStyleEncoder, "e4e": Encoder4Editing}


def write_official(model: str | Path, path: str | Path, *, layout: Layout) -> Path:
    """Write a model as the official code saves it, by `torch.save` of plain dicts and tensors; exact to the bit.

    Args:
        model: Built-in model, folder, or repository on the Hub.
        path: The file; whole or not at all.
        layout: "psp" and "e4e": encoder and generator, with the `opts` that their code reads. "rosinality": `g_ema` and
            `latent_avg`. "nvidia": the state dict of NVIDIA's PyTorch generator; no `.pkl`, which would hold NVIDIA's
            own source code: build their `Generator` and load it into that.

    Raises:
        ValueError: If `layout` is none of these.
        ModelNotFoundError: If there is no such model, or it lacks the encoder.
        CheckpointError: If a file of it is damaged, or the new one cannot be written.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    folder = hub.find_model(model)
    generator = hub.load_module(Generator, GeneratorConfig, folder / "generator")
    sizes, weights = generator.config, generator.state_dict()
    checkpoint: Mapping[str, Any]
    if layout == "rosinality":
        checkpoint = checkpoint_to_rosinality(sizes, weights)
    elif layout == "nvidia":
        checkpoint = generator_to_nvidia(sizes, weights)
    else:
        inside = folder / f"{layout}_encoder"
        if not inside.is_dir():
            raise ModelNotFoundError(f"{model} holds no encoder of {layout} (folder {inside.name!r}).")
        encoder = hub.load_module(_ENCODERS[layout], PyramidEncoderConfig, inside)
        config = cast(PyramidEncoderConfig, encoder.config)
        checkpoint = checkpoint_to_official(layout, (config, encoder.state_dict()), (sizes, weights))
    return hub.write_file(Path(path), lambda temporary: torch.save(checkpoint, temporary))
