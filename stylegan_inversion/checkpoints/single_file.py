"""One foreign file -> what it is and the networks in it, each as (config, state dict) of ours.

What a file is, its tensors tell, never its name. Only where two networks have the same tensors (pSp's encoder and
e4e's) the settings that the file carries (`opts`) decide, or the caller.
"""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from stylegan_inversion.checkpoints.direction import components_from_ganspace, vector_from_official
from stylegan_inversion.checkpoints.encoder import arcface_from_official
from stylegan_inversion.checkpoints.encoder_file import EncoderKind, read_encoder_checkpoint
from stylegan_inversion.checkpoints.generator import discriminator_from_rosinality
from stylegan_inversion.checkpoints.moco import moco_from_official
from stylegan_inversion.checkpoints.network_file import (
    Found,
    cut_out,
    find_state_dicts,
    generator_part,
    left_out,
    network_settings,
    plain_names,
    refuse_others,
)
from stylegan_inversion.checkpoints.part import Kind, Part, SingleFile, StateDict
from stylegan_inversion.checkpoints.sandbox import MAX_FILE_BYTES, PickledModule, read_checkpoint
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import Discriminator
from stylegan_inversion.models.irse import ArcFace
from stylegan_inversion.models.resnet import ResNet

_GENERATOR = ("conv1.conv.weight", "synthesis.b4.const")  # only generators have these


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
    for name in ("G_ema", "G", *checkpoint):
        value = checkpoint.get(name)
        if isinstance(value, PickledModule) and (name in ("G_ema", "G") or value.class_name == "Generator"):
            return _whole_module("nvidia", value)
    if {"mean", "comp", "std"} <= checkpoint.keys():
        return SingleFile("ganspace", components=components_from_ganspace(checkpoint))
    found = find_state_dicts(checkpoint)
    for each in found:
        if any(key.startswith("encoder_q.") for key in each.tensors):
            return SingleFile("moco", {"moco": Part(ResNet, *moco_from_official({"state_dict": each.tensors}))})
        if "output_layer.3.weight" in each.tensors:
            return SingleFile("arcface", {"identity": Part(ArcFace, *arcface_from_official(each.tensors))})
        whole = any(key.startswith("encoder.") for key in each.tensors)
        cut = (each.tensors, []) if whole else cut_out(each.tensors, "encoder.input_layer.0.weight")
        if cut is not None:
            file = read_encoder_checkpoint(each.beside, cut[0], encoder)
            return dataclasses.replace(file, notes=(*file.notes, *left_out(cut[1])))
    for each in found:
        refuse_others(each.tensors)
        if (cut := cut_out(each.tensors, *_GENERATOR)) is not None:
            return _generator(each, cut, found)
    state_dict = found[0].tensors
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
    part, more = generator_part(plain_names(module.state_dict()), None, lr_multiplier=lr_multiplier)
    return SingleFile(kind, {"generator": part}, notes=(*notes, *more))


def _generator(each: Found, cut: tuple[StateDict, list[str]], found: list[Found]) -> SingleFile:
    """A generator, and a discriminator of rosinality's if there is one; a note says what else was left out."""
    tensors, others = cut
    average = tensors.pop("latent_avg", each.beside.get("latent_avg"))
    part, notes = generator_part(tensors, average)
    parts = {"generator": part}
    if each.name in ("g", "G"):
        notes.append(
            f"The file has no `{each.name}_ema`, the averaged generator; `{each.name}`, the one in training, was taken."
        )
    for other in found:
        is_network = other.name and not other.tensors.keys() <= {"latent_avg"}
        if other is each or not is_network or cut_out(other.tensors, *_GENERATOR) is not None:
            continue
        try:
            parts["discriminator"] = Part(Discriminator, *discriminator_from_rosinality(other.tensors))
        except (CheckpointError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            others.append(other.name)
    kind: Kind = "rosinality" if "conv1.conv.weight" in tensors else "stylegan3-editing"
    return SingleFile(kind, parts, notes=(*notes, *left_out(others)))
