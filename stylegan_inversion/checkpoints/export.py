"""What a foreign file holds -> a folder of ours, and our networks -> the papers' files, to the bit.

Formats: eladrich/pixel2style2pixel, omertov/encoder4editing and rosinality/stylegan2-pytorch (all MIT), and the state
dict of NVIDIA's generator. A whole NVIDIA `.pkl` holds NVIDIA's source code, which this package may not ship.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from stylegan_inversion import storage
from stylegan_inversion.checkpoints.encoder import encoder_to_official
from stylegan_inversion.checkpoints.generator import generator_to_nvidia, generator_to_rosinality
from stylegan_inversion.checkpoints.recognise import SingleFile, source_of
from stylegan_inversion.editing.directions import Direction, save_directions
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.models.encoders import ENCODERS, RESTYLE_FORMS, WITH_GENERATOR
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import EncoderConfig
from stylegan_inversion.models.restyle_encoder import ReStyleConfig
from stylegan_inversion.preprocessing.domain import Domain
from stylegan_inversion.preprocessing.sources import to_config

LAYOUTS = (*WITH_GENERATOR, "sfe", "rosinality", "nvidia")


def write_model(file: SingleFile, folder: Path, *, name: str = "direction", domain: Domain | None = None) -> Path:
    """Write what a foreign file holds in our own format: a model that `from_pretrained` and `train` read.

    The file does not tell the name of a direction, a Python identifier. `domain` is what the model takes; `None` means
    what the file says of it. A network for face identity or MoCo, or directions, fill the folder themselves. Raises
    `CheckpointError` if the file holds nothing that can be kept so, or a file cannot be written.
    """
    if file.kind == "direction":
        vectors = file.vectors if len(file.vectors) > 1 else {name: next(iter(file.vectors.values()))}
        save_directions({key: Direction.from_vector(key, v, unit=None) for key, v in vectors.items()}, folder)
        return folder
    for alone in ("identity", "moco"):
        if alone in file.parts:
            storage.save_module(file.parts[alone].build(), folder)
            return folder
    if "generator" not in file.parts:
        raise CheckpointError(f"A file of kind {file.kind} has no form in a folder: its parts are read where they are.")
    config: dict[str, Any] = {"domain": asdict(domain or file.domain)}
    if file.dataset is not None:
        config["dataset"] = file.dataset
    with storage.write_together(folder) as stage:
        for part, network in file.parts.items():
            module = network.build()
            if part == "encoder":
                config["source"] = to_config(source_of(module, file.task))
            storage.save_module(module, stage / (ENCODERS[file.kind].folder if part == "encoder" else part))
        if file.directions:
            save_directions(file.directions, stage / "directions")
        storage.write_config(config, stage)
    return folder


def checkpoint_to_official(
    kind: str,
    encoder: tuple[EncoderConfig, Mapping[str, Tensor]],
    generator: tuple[GeneratorConfig, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Write an encoder and its generator as a pSp, e4e or ReStyle `.pt` holds them, with the `opts` its code reads.

    The official code builds IR-SE50 encoders for images of 256 px with map2style as wide as w: what has other sizes
    is written as well, but only this package and tools that read sizes from tensors load it.

    Args:
        kind: Whose file, one of `WITH_GENERATOR`.
        encoder: Config and state dict.
        generator: Config and state dict. Where its average w is not the encoder's, the entry `w_avg` keeps it, which
            the official code ignores.
    """
    official, latent_avg = encoder_to_official(kind, *encoder)
    decoder, w_avg = generator_to_rosinality(*generator)
    from_average = bool(latent_avg.any())
    if not from_average:
        latent_avg = w_avg.expand_as(latent_avg).clone()
    in_channels = encoder[0].in_channels
    options: dict[str, Any] = {
        "encoder_type": ENCODERS[kind].types[0],
        "start_from_latent_avg": from_average,
        "learn_in_w": False,
        "input_nc": in_channels,
        "label_nc": 0 if in_channels == 3 else in_channels,
        "device": "cpu",
        "checkpoint_path": None,
        "train_decoder": False,
        ENCODERS[kind].options[0]: generator[0].resolution,
        "n_styles": generator[0].num_ws,
    }
    if isinstance(encoder[0], ReStyleConfig):
        form = RESTYLE_FORMS[encoder[0].resnet, encoder[0].offsets]
        passes = {"n_iters_per_batch": encoder[0].iterations}
        options |= {"encoder_type": form, "input_nc": 2 * in_channels, "start_from_latent_avg": True, **passes}
    tensors = {f"encoder.{key}": tensor for key, tensor in official.items()}
    tensors |= {f"decoder.{key}": tensor for key, tensor in decoder.items()}
    checkpoint = {"state_dict": tensors, "opts": options, "latent_avg": latent_avg}
    return checkpoint if torch.equal(w_avg, latent_avg[0]) else {**checkpoint, "w_avg": w_avg}


def _style_feature_file(encoder: Any, generator: Any, e4e: Any) -> dict[str, Any]:
    """Write StyleFeatureEditor's networks with the generator and e4e that they belong to, as its training saves them.

    Where e4e's average w is not the generator's, the entry `e4e_latent_avg` keeps it, which only this package reads.
    """
    decoder, w_avg = generator_to_rosinality(*generator)
    second, latent_avg = encoder_to_official("e4e", *e4e)
    tensors = encoder_to_official("sfe", *encoder)[0] | {f"decoder.{key}": tensor for key, tensor in decoder.items()}
    tensors |= {f"e4e_encoder.{key}": tensor for key, tensor in second.items()}
    checkpoint = {"state_dict": tensors, "latent_avg": w_avg}
    return checkpoint if (latent_avg == w_avg).all() else {**checkpoint, "e4e_latent_avg": latent_avg}


def _read_encoder(folder: Path, kind: str) -> tuple[Any, Mapping[str, Tensor]]:
    row = ENCODERS[kind]
    if not (folder / row.folder).is_dir():
        raise ModelNotFoundError(f"{folder} holds no encoder of {kind} (folder {row.folder!r}).")
    encoder = storage.load_module(row.network, row.config, folder / row.folder)
    return cast(Any, encoder).config, encoder.state_dict()


def write_official(folder: Path, path: Path, *, layout: str) -> Path:
    """Write a model as the official code saves it, by `torch.save` of plain dicts and tensors; exact to the bit.

    Args:
        folder: Of the model.
        path: The file; it is written whole or not at all.
        layout: One of `LAYOUTS`. pSp's and e4e's: encoder and generator, with `opts`. "sfe": StyleFeatureEditor's
            networks with e4e's encoder and the generator, which its published file lacks. "rosinality": `g_ema` and
            `latent_avg`. "nvidia": the state dict of NVIDIA's PyTorch generator, to be loaded into their `Generator`.

    Raises:
        ValueError: If `layout` is none of these.
        ModelNotFoundError: If the model lacks the encoder.
        CheckpointError: If a file of it is damaged, or the new one cannot be written.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    module = storage.load_module(Generator, GeneratorConfig, folder / "generator")
    generator = module.config, module.state_dict()
    checkpoint: Mapping[str, Any]
    if layout == "nvidia":
        checkpoint = generator_to_nvidia(*generator)
    elif layout == "rosinality":
        checkpoint = dict(zip(("g_ema", "latent_avg"), generator_to_rosinality(*generator)))
    else:
        parts = _read_encoder(folder, layout)
        if layout in WITH_GENERATOR:
            checkpoint = checkpoint_to_official(layout, parts, generator)
        else:
            checkpoint = _style_feature_file(parts, generator, _read_encoder(folder, "e4e"))
    return storage.write_file(path, lambda temporary: torch.save(checkpoint, temporary))
