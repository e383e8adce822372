"""One foreign file -> what it is and the networks in it, each as (config, state dict) of ours.

What a file is, its tensors tell, never its name. Only where two networks have the same tensors (pSp's encoder and
e4e's) the settings that the file carries (`opts`) decide, or the caller.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stylegan_inversion.convert.direction import components_from_ganspace, vector_from_official
from stylegan_inversion.convert.encoder import arcface_from_official
from stylegan_inversion.convert.encoder_file import EncoderKind, read_encoder_checkpoint
from stylegan_inversion.convert.generator import discriminator_from_rosinality
from stylegan_inversion.convert.moco import moco_from_official
from stylegan_inversion.convert.network_file import (
    find_state_dict,
    generator_part,
    network_settings,
    refuse_generator,
    tensors_of,
)
from stylegan_inversion.convert.part import Kind, Part, SingleFile
from stylegan_inversion.convert.sandbox import MAX_FILE_BYTES, PickledModule, read_checkpoint
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import Discriminator
from stylegan_inversion.models.irse import ArcFace
from stylegan_inversion.models.resnet import ResNet


def read_single_file(
    path: Path, *, encoder: EncoderKind | None = None, max_bytes: int = MAX_FILE_BYTES, timeout: float | None = None
) -> SingleFile:
    """Read a foreign checkpoint, in a process of its own and without executing any of it, and convert what it holds.

    Args:
        path: A `.pt`, `.pth`, `.pkl`, `.npy` or `.safetensors`.
        encoder: Which encoder is expected: "psp" or "e4e". `None` takes what the file says.
        max_bytes: As in `read_checkpoint`.
        timeout: As in `read_checkpoint`.

    Raises:
        CheckpointError: If it cannot be read (see `read_checkpoint`), is none of the kinds, is not supported, or is
            another encoder than `encoder`. The message begins with the path.
    """
    checkpoint = read_checkpoint(path, max_bytes=max_bytes, timeout=timeout)
    try:
        return recognise(checkpoint, encoder=encoder)
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from e


def recognise(checkpoint: Any, *, encoder: EncoderKind | None = None) -> SingleFile:
    """Say what a checkpoint is, and convert what it holds.

    Args:
        checkpoint: What `read_checkpoint` gave.
        encoder: As in `read_single_file`.

    Raises:
        CheckpointError: If it is none of the kinds, or not supported.
    """
    try:
        return _recognise(checkpoint, encoder)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        reason = str(e).strip().partition("\n")[0][:200]
        raise CheckpointError(f"Its tensors have shapes or types that fit no network of the field: {reason}") from e


def _recognise(checkpoint: Any, encoder: EncoderKind | None) -> SingleFile:
    if isinstance(checkpoint, PickledModule):
        return _whole_module("pti", checkpoint)
    if isinstance(checkpoint, Tensor):
        return SingleFile("direction", vectors={"direction": vector_from_official(checkpoint)})
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"Not a checkpoint of this field: it holds a {type(checkpoint).__name__}.")
    for name in ("G_ema", "G"):
        if isinstance(checkpoint.get(name), PickledModule):
            return _whole_module("nvidia", checkpoint[name])
    for name in ("g_ema", "g"):
        if tensors_of(checkpoint.get(name)):
            return _rosinality(checkpoint, name)
    if {"mean", "comp", "std"} <= checkpoint.keys():
        return SingleFile("ganspace", components=components_from_ganspace(checkpoint))
    state_dict = find_state_dict(checkpoint)
    if any(key.startswith("module.encoder_q.") for key in state_dict):
        return SingleFile("moco", {"moco": Part(ResNet, *moco_from_official({"state_dict": state_dict}))})
    if any(key.startswith("encoder.") for key in state_dict):
        return read_encoder_checkpoint(checkpoint, state_dict, encoder)
    if "output_layer.3.weight" in state_dict:
        return SingleFile("arcface", {"identity": Part(ArcFace, *arcface_from_official(state_dict))})
    if "conv1.conv.weight" in state_dict or "synthesis.b4.const" in state_dict:
        kind: Kind = "rosinality" if "conv1.conv.weight" in state_dict else "stylegan3-editing"
        part, notes = generator_part(state_dict, checkpoint.get("latent_avg"))
        return SingleFile(kind, {"generator": part}, notes=tuple(notes))
    refuse_generator(state_dict)
    if state_dict and all(tensor.ndim <= 3 and tensor.shape[-1:] for tensor in state_dict.values()):
        vectors = {key: vector_from_official(tensor) for key, tensor in state_dict.items()}
        return SingleFile("direction", vectors=vectors)
    raise CheckpointError(
        f"Not a checkpoint of this field: it holds {sorted(map(str, checkpoint))[:8]}. Known are those of pSp, e4e, "
        "StyleGAN2 (rosinality's and NVIDIA's), PTI, IR-SE50, MoCo, InterFaceGAN and GANSpace."
    )


def _whole_module(kind: Kind, module: PickledModule) -> SingleFile:
    if module.class_name != "Generator":
        raise CheckpointError(f"Not a generator: a pickled {module.class_name}.")
    lr_multiplier, notes = network_settings(module)
    part, more = generator_part(module.state_dict(), None, lr_multiplier=lr_multiplier)
    return SingleFile(kind, {"generator": part}, notes=(*notes, *more))


def _rosinality(checkpoint: Mapping[str, Any], name: str) -> SingleFile:
    part, notes = generator_part(tensors_of(checkpoint[name]), checkpoint.get("latent_avg"))
    if name == "g":
        notes.append("The file has no `g_ema`, the averaged generator; `g`, the one in training, was taken.")
    parts = {"generator": part}
    if discriminator := tensors_of(checkpoint.get("d")):
        converted = discriminator_from_rosinality(discriminator)
        parts["discriminator"] = Part(Discriminator, *converted)
    return SingleFile("rosinality", parts, notes=tuple(notes))
