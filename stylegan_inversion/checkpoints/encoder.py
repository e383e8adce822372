"""The papers' encoders, latent discriminator, identity network and MoCo's ResNet: official key names <-> ours.

Formats: eladrich/pixel2style2pixel, omertov/encoder4editing, yuval-alaluf/restyle-encoder (all MIT), TreB1eN/
InsightFace_Pytorch (MIT) and facebookresearch/moco (MIT). Sizes are read from the tensors; where one is missing, a
`KeyError` names it.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import LatentDiscriminatorConfig
from stylegan_inversion.models.irse import ArcFaceConfig, IRSEConfig
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig
from stylegan_inversion.models.resnet import ResNetConfig
from stylegan_inversion.models.restyle_encoder import ReStyleConfig

StateDict = dict[str, Tensor]

_BRANCHES = {"residual": "res_layer", "shortcut": "shortcut_layer"}
_LATERALS = {"lateral2": "latlayer1", "lateral1": "latlayer2"}  # theirs count from the coarse end
_OFFSETS = {"BackboneEncoder": False, "ProgressiveBackboneEncoder": True}  # ReStyle's: whether it is e4e's form


def _backbone_name(key: str, units: tuple[int, ...]) -> str:
    """Rename a tensor of our backbone: theirs is one list of units, counted through all stages."""
    if key.startswith("stem."):
        return key.replace("stem.", "input_layer.", 1)
    _, stage, unit, branch, rest = key.split(".", 4)
    return f"body.{sum(units[: int(stage)]) + int(unit)}.{_BRANCHES[branch]}.{rest}"


def _style_name(key: str) -> str:
    """Rename a tensor under `styles.`: theirs number the convolutions 0, 2, 4, counting the activations too."""
    return re.sub(r"\.convs\.(\d+)\.", lambda match: f".convs.{2 * int(match[1])}.", key)


def _our_style_name(key: str) -> str:
    return re.sub(r"\.convs\.(\d+)\.", lambda match: f".convs.{int(match[1]) // 2}.", key)


def _count(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    """Count the numbered modules that follow a prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in state_dict if key.startswith(prefix)})


def _backbone_from_official(state_dict: Mapping[str, Tensor], *others: str) -> tuple[IRSEConfig, StateDict]:
    """Read `input_layer.*` and `body.*`, beside `others`; a stage of the body begins where the width changes."""
    if unexpected := [key for key in state_dict if key.split(".")[0] not in {"input_layer", "body", *others}]:
        raise CheckpointError(f"Not one of the papers' encoders: unexpected tensors {unexpected[:5]}.")
    width, in_channels = state_dict["input_layer.0.weight"].shape[:2]
    squeeze = state_dict["body.0.res_layer.5.fc1.weight"].shape[0]
    depths = [state_dict[f"body.{i}.res_layer.3.weight"].shape[0] for i in range(_count(state_dict, "body."))]
    widths = sorted(set(depths))
    units = tuple(depths.count(w) for w in widths)
    config = IRSEConfig(in_channels, tuple(widths), units, width // squeeze)
    branches = {theirs: ours for ours, theirs in _BRANCHES.items()}
    converted: StateDict = {}
    for key, tensor in state_dict.items():
        top, _, rest = key.partition(".")
        if top == "input_layer":
            converted[f"stem.{rest}"] = tensor
        elif top == "body":
            index, branch, rest = rest.split(".", 2)
            stage = widths.index(depths[int(index)])
            converted[f"stages.{stage}.{int(index) - sum(units[:stage])}.{branches[branch]}.{rest}"] = tensor
    return config, converted


def _repeat_average(latent_avg: Tensor, num_ws: int, w_dim: int) -> Tensor:
    if tuple(latent_avg.shape) not in {(w_dim,), (1, w_dim), (num_ws, w_dim)}:
        raise CheckpointError(f"`latent_avg` must be ({w_dim},) or ({num_ws}, {w_dim}), got {tuple(latent_avg.shape)}.")
    return latent_avg.expand(num_ws, -1).clone()


def pyramid_encoder_from_official(
    state_dict: Mapping[str, Tensor], *, latent_avg: Tensor | None = None
) -> tuple[PyramidEncoderConfig, StateDict]:
    """Read pSp's `GradualStyleEncoder` or e4e's `Encoder4Editing`: their tensors have the same names.

    Args:
        state_dict: The official encoder, without the prefix `encoder.`.
        latent_avg: The average w, (w_dim,) or (num_ws, w_dim), beside the state dict in the checkpoint. `None`: zeros.

    Returns:
        The config, read from the tensors, and the state dict of our `GradualStyleEncoder` and `Encoder4Editing`.

    Raises:
        CheckpointError: If it is another encoder.
    """
    num_ws = _count(state_dict, "styles.")
    if num_ws < 2 or num_ws % 2 or "latlayer1.weight" not in state_dict:
        raise CheckpointError(f"Not a feature-pyramid encoder: it has {num_ws} `styles`, or `latlayer1` is missing.")
    backbone, converted = _backbone_from_official(state_dict, "styles", *_LATERALS.values())
    depths = [_count(state_dict, f"styles.{i}.convs.") for i in range(num_ws)]  # one more a level
    coarse_end, middle_end = depths.count(depths[0]), depths.count(depths[0]) + depths.count(depths[0] + 1)
    w_dim, style_channels = state_dict["styles.0.linear.weight"].shape
    config = PyramidEncoderConfig(
        output_resolution=2 ** (num_ws // 2 + 1),
        input_resolution=16 * 2 ** depths[0],
        w_dim=w_dim,
        coarse_end=coarse_end,
        middle_end=middle_end if middle_end < num_ws else max(7, middle_end),  # none reads p1: the paper's 7
        style_channels=None if style_channels == w_dim else style_channels,
        in_channels=backbone.in_channels,
        widths=backbone.widths,
        units=backbone.units,
        reduction=backbone.reduction,
    )
    laterals = {theirs: ours for ours, theirs in _LATERALS.items()}
    converted = {f"pyramid.backbone.{key}": tensor for key, tensor in converted.items()}
    for key, tensor in state_dict.items():
        top, _, rest = key.partition(".")
        if top in ("styles", *laterals):
            converted[f"pyramid.{_our_style_name(f'{laterals.get(top, top)}.{rest}')}"] = tensor
    w_avg = torch.zeros(w_dim, device="cpu", dtype=torch.float32) if latent_avg is None else latent_avg
    return config, {**converted, "pyramid.w_avg": _repeat_average(w_avg, num_ws, w_dim)}


def pyramid_encoder_to_official(
    config: PyramidEncoderConfig, state_dict: Mapping[str, Tensor]
) -> tuple[StateDict, Tensor]:
    """Write an encoder in the official names; the inverse of `pyramid_encoder_from_official`, to the bit.

    Returns:
        The official state dict, without the prefix `encoder.`, and `latent_avg`, (num_ws, w_dim).
    """
    official: StateDict = {}
    for key, tensor in state_dict.items():
        top, _, rest = key.removeprefix("pyramid.").partition(".")
        if top == "backbone":
            official[_backbone_name(rest, config.units)] = tensor
        elif top != "w_avg":
            official[_style_name(f"{_LATERALS.get(top, top)}.{rest}")] = tensor
    return official, state_dict["pyramid.w_avg"]


def is_restyle(encoder: Mapping[str, Tensor]) -> bool:
    """Tell whether an official encoder reads six channels, or has no pyramid to give its styles."""
    stem = encoder.get("input_layer.0.weight", encoder.get("conv1.weight"))
    six = stem is not None and stem.ndim == 4 and stem.shape[1] == 6
    tops = {key.split(".")[0] for key in encoder}
    return six or ("styles" in tops and not tops & {"latlayer1", "latlayer2"})


def restyle_encoder_from_official(
    state_dict: Mapping[str, Tensor], *, options: Mapping[str, Any], latent_avg: Tensor
) -> tuple[ReStyleConfig, StateDict]:
    """Read ReStyle's `BackboneEncoder` or `ProgressiveBackboneEncoder`, whose tensors have the same names.

    Args:
        state_dict: The official encoder, without the prefix `encoder.`.
        options: The file's `opts`: `encoder_type` tells which of them it is, `n_iters_per_batch` how many passes.
        latent_avg: The average w, (w_dim,) or (num_ws, w_dim).

    Raises:
        CheckpointError: If it is another encoder, or `encoder_type` is missing.
    """
    for key, what in {"conv1.weight": "on a ResNet34", "latlayer1.weight": "with a feature pyramid"}.items():
        if key in state_dict:
            raise CheckpointError(
                f"It is a ReStyle encoder {what} (tensor {key!r}), which is not supported: only those on an IR-SE50, "
                "of faces, are. Take the e4e checkpoint of the same domain."
            )
    written, passes = options.get("encoder_type"), options.get("n_iters_per_batch")
    if written not in _OFFSETS:
        raise CheckpointError(
            "It is a ReStyle checkpoint, of pSp's form or of e4e's, whose tensors have the same names; `encoder_type` "
            f"in its `opts` must say which, {' or '.join(_OFFSETS)}, got {str(written)[:100]!r}."
        )
    backbone, converted = _backbone_from_official(state_dict, "styles")
    num_ws = _count(state_dict, "styles.")
    config = ReStyleConfig(
        output_resolution=2 ** (num_ws // 2 + 1) if num_ws % 2 == 0 else num_ws,
        input_resolution=16 * 2 ** _count(state_dict, "styles.0.convs."),
        w_dim=state_dict["styles.0.linear.weight"].shape[0],
        offsets=_OFFSETS[written],
        iterations=passes if isinstance(passes, int) and 1 <= passes <= 100 else 5,
        in_channels=backbone.in_channels // 2,
        widths=backbone.widths,
        units=backbone.units,
        reduction=backbone.reduction,
    )
    converted = {f"backbone.{key}": tensor for key, tensor in converted.items()}
    converted |= {_our_style_name(key): tensor for key, tensor in state_dict.items() if key.startswith("styles.")}
    return config, {**converted, "w_avg": _repeat_average(latent_avg, num_ws, config.w_dim)}


def arcface_from_official(state_dict: Mapping[str, Tensor]) -> tuple[ArcFaceConfig, StateDict]:
    """Read the identity network `model_ir_se50.pth`.

    Raises:
        CheckpointError: If it is another network.
    """
    backbone, converted = _backbone_from_official(state_dict, "output_layer")
    embedding_dim, features = state_dict["output_layer.3.weight"].shape
    side = round((features / backbone.widths[-1]) ** 0.5)
    converted = {f"backbone.{key}": tensor for key, tensor in converted.items()}
    heads = {key: tensor for key, tensor in state_dict.items() if key.startswith("output_layer.")}
    converted |= {key.replace("output_layer.", "head.", 1): tensor for key, tensor in heads.items()}
    config = ArcFaceConfig(**dataclasses.asdict(backbone), resolution=16 * side, embedding_dim=embedding_dim)
    return config, converted


def latent_discriminator_from_official(state_dict: Mapping[str, Tensor]) -> tuple[LatentDiscriminatorConfig, StateDict]:
    """Read e4e's `LatentCodesDiscriminator`: its names are ours."""
    w_dim = state_dict["mlp.0.weight"].shape[1]
    return LatentDiscriminatorConfig(w_dim, _count(state_dict, "mlp.")), dict(state_dict)


def moco_from_official(state_dict: Mapping[str, Tensor]) -> tuple[ResNetConfig, StateDict]:
    """Read the query encoder of MoCo v2's state dict (`encoder_q.*`): its names are ours, its head `fc` is dropped."""
    query = {key.removeprefix("encoder_q."): tensor for key, tensor in state_dict.items() if "encoder_q." in key}
    trunk = {key: tensor for key, tensor in query.items() if not key.startswith("fc.")}
    stages = [f"layer{i}." for i in range(1, 5)]
    widths = tuple(trunk[f"{stage}0.conv1.weight"].shape[0] for stage in stages)
    return ResNetConfig(widths, tuple(_count(trunk, stage) for stage in stages)), trunk
