"""The papers' encoders, latent discriminator and identity network: official key names -> ours.

Formats: eladrich/pixel2style2pixel and omertov/encoder4editing (MIT). Both save one state dict with `encoder.` and
`decoder.` parts and the average w beside it; sizes are read from the tensors.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import LatentDiscriminatorConfig
from stylegan_inversion.models.irse import ArcFaceConfig, IRSEConfig
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig, WEncoderConfig

StateDict = dict[str, Tensor]

# The parts of a unit's residual branch in the official order, and of its shortcut: the same order as ours.
_UNIT = {"res_layer.": "residual.", "shortcut_layer.": "shortcut."}


def split_checkpoint(state_dict: Mapping[str, Tensor]) -> tuple[StateDict, StateDict]:
    """Split the state dict of a pSp or e4e checkpoint into its encoder and its generator (`decoder.`).

    Raises:
        CheckpointError: If there is no `encoder.` part.
    """
    parts: dict[str, StateDict] = {"encoder": {}, "decoder": {}}
    for key, tensor in state_dict.items():
        prefix, _, rest = key.partition(".")
        if prefix in parts and rest:
            parts[prefix][rest] = tensor
    if not parts["encoder"]:
        raise CheckpointError("Not a pSp or e4e checkpoint: its state dict has no `encoder.` tensors.")
    return parts["encoder"], parts["decoder"]


def backbone_from_official(state_dict: Mapping[str, Tensor]) -> tuple[IRSEConfig, StateDict]:
    """Convert `input_layer.*` and `body.*`. A stage of the body begins where the width changes.

    Raises:
        CheckpointError: If there is no such backbone.
    """
    try:
        width = state_dict["input_layer.0.weight"].shape[0]
        in_channels = state_dict["input_layer.0.weight"].shape[1]
        squeeze = state_dict["body.0.res_layer.5.fc1.weight"].shape[0]
        depths = [
            state_dict[f"body.{i}.res_layer.3.weight"].shape[0] for i in range(count_modules(state_dict, "body."))
        ]
    except KeyError as e:
        raise CheckpointError(f"Not an IR-SE backbone: tensor {e} is missing.") from e
    widths = sorted(set(depths))
    units = [depths.count(w) for w in widths]
    try:
        config = IRSEConfig(in_channels, tuple(widths), tuple(units), width // squeeze)
    except ValueError as e:
        raise CheckpointError(f"Not an IR-SE backbone of four stages: {e}") from e
    converted: StateDict = {}
    for key, tensor in state_dict.items():
        top, _, rest = key.partition(".")
        if top == "input_layer":
            converted[f"stem.{rest}"] = tensor
        elif top == "body":
            index, _, rest = rest.partition(".")
            stage = widths.index(depths[int(index)])
            unit = int(index) - sum(units[:stage])
            for theirs, ours in _UNIT.items():
                rest = ours + rest[len(theirs) :] if rest.startswith(theirs) else rest
            converted[f"stages.{stage}.{unit}.{rest}"] = tensor
    return config, converted


def refuse_others(state_dict: Mapping[str, Tensor], *known: str) -> None:
    """Every tensor must have been read: its top-level module is one of `known`, or the backbone's.

    Raises:
        CheckpointError: If there is another.
    """
    others = [key for key in state_dict if key.split(".")[0] not in {"input_layer", "body", *known}]
    if others:
        raise CheckpointError(f"Not one of the papers' encoders: unexpected tensors {others[:5]}.")


def count_modules(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules follow a prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in state_dict if key.startswith(prefix)})


def style_name(key: str) -> str:
    """Our name of a tensor under `styles.`: theirs number the convolutions 0, 2, 4, counting the activations too.

    Raises:
        ValueError: If the name is invalid.
    """
    _, i, layer, rest = key.split(".", 3)
    if layer == "convs":
        j, part = rest.split(".")
        rest = f"{int(j) // 2}.{part}"
    return f"styles.{i}.{layer}.{rest}"


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
    backbone, converted = backbone_from_official(state_dict)
    num_ws = count_modules(state_dict, "styles.")
    if num_ws < 2 or num_ws % 2:
        raise CheckpointError(f"Not a feature-pyramid encoder: it has {num_ws} `styles`.")
    if "latlayer1.weight" not in state_dict:
        raise CheckpointError(f"Not a feature-pyramid encoder: it has {num_ws} `styles`, and `latlayer1` is missing.")
    refuse_others(state_dict, "styles", "latlayer1", "latlayer2")
    depths = [count_modules(state_dict, f"styles.{i}.convs.") for i in range(num_ws)]  # one more a level
    coarse_end, middle_end = depths.count(depths[0]), depths.count(depths[0]) + depths.count(depths[0] + 1)
    try:
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
    except KeyError as e:
        raise CheckpointError(f"Not a feature-pyramid encoder: tensor {e} is missing.") from e
    except ValueError as e:
        raise CheckpointError(f"Not a feature-pyramid encoder: {e}") from e
    converted = {f"pyramid.backbone.{key}": tensor for key, tensor in converted.items()}
    for key, tensor in state_dict.items():
        try:
            if key.startswith("styles."):
                converted[f"pyramid.{style_name(key)}"] = tensor
            elif key.startswith("latlayer"):
                level, part = key[len("latlayer") :].split(".")
                converted[f"pyramid.lateral{3 - int(level)}.{part}"] = tensor  # theirs count from the coarse end
        except ValueError as e:
            raise CheckpointError(f"Not a feature-pyramid encoder: unexpected tensor {key!r}.") from e
    w_avg = torch.zeros(config.w_dim, device="cpu", dtype=torch.float32) if latent_avg is None else latent_avg
    if tuple(w_avg.shape) not in {(config.w_dim,), (1, config.w_dim), (num_ws, config.w_dim)}:
        raise CheckpointError(
            f"`latent_avg` must be ({config.w_dim},) or ({num_ws}, {config.w_dim}), got {tuple(w_avg.shape)}."
        )
    converted["pyramid.w_avg"] = w_avg.expand(num_ws, -1).clone()
    return config, converted


def w_encoder_from_official(
    state_dict: Mapping[str, Tensor], *, output_resolution: int, latent_avg: Tensor | None = None
) -> tuple[WEncoderConfig, StateDict]:
    """Read pSp's encoder into W, `BackboneEncoderUsingLastLayerIntoW` (e4e: `SingleStyleCodeEncoder`).

    Args:
        state_dict: The official encoder, without the prefix `encoder.`.
        output_resolution: Side of the generator's image; the tensors do not tell.
        latent_avg: The average w, (w_dim,) or (num_ws, w_dim), of which the first is taken. `None`: zeros.

    Raises:
        CheckpointError: If it is another encoder.
    """
    backbone, converted = backbone_from_official(state_dict)
    if "linear.weight" not in state_dict:
        raise CheckpointError("Not an encoder into W: tensor 'linear.weight' is missing.")
    refuse_others(state_dict, "linear")
    w_dim = state_dict["linear.weight"].shape[0]
    converted = {f"backbone.{key}": tensor for key, tensor in converted.items()}
    converted |= {key: tensor for key, tensor in state_dict.items() if key.startswith("linear.")}
    w_avg = torch.zeros(w_dim, device="cpu", dtype=torch.float32) if latent_avg is None else latent_avg
    if w_avg.ndim not in (1, 2) or not len(w_avg) or w_avg.shape[-1] != w_dim:
        raise CheckpointError(f"`latent_avg` must be ({w_dim},) or (num_ws, {w_dim}), got {tuple(w_avg.shape)}.")
    converted["w_avg"] = w_avg.reshape(-1, w_dim)[0]
    config = WEncoderConfig(
        output_resolution=output_resolution,
        w_dim=w_dim,
        in_channels=backbone.in_channels,
        widths=backbone.widths,
        units=backbone.units,
        reduction=backbone.reduction,
    )
    return config, converted


def arcface_from_official(state_dict: Mapping[str, Tensor]) -> tuple[ArcFaceConfig, StateDict]:
    """Read the identity network `model_ir_se50.pth`.

    Raises:
        CheckpointError: If it is another network.
    """
    backbone, converted = backbone_from_official(state_dict)
    if "output_layer.3.weight" not in state_dict:
        raise CheckpointError("Not an ArcFace network: tensor 'output_layer.3.weight' is missing.")
    refuse_others(state_dict, "output_layer")
    embedding_dim, features = state_dict["output_layer.3.weight"].shape
    side = round((features / backbone.widths[-1]) ** 0.5)
    converted = {f"backbone.{key}": tensor for key, tensor in converted.items()}
    head = "output_layer."
    converted |= {f"head.{key[len(head) :]}": tensor for key, tensor in state_dict.items() if key.startswith(head)}
    config = ArcFaceConfig(**dataclasses.asdict(backbone), resolution=16 * side, embedding_dim=embedding_dim)
    return config, converted


def latent_discriminator_from_official(
    state_dict: Mapping[str, Tensor],
) -> tuple[LatentDiscriminatorConfig, StateDict]:
    """Read e4e's `LatentCodesDiscriminator`: its names are ours.

    Raises:
        CheckpointError: If it is another network.
    """
    if "mlp.0.weight" not in state_dict:
        raise CheckpointError("Not e4e's latent discriminator: tensor 'mlp.0.weight' is missing.")
    return LatentDiscriminatorConfig(state_dict["mlp.0.weight"].shape[1], count_modules(state_dict, "mlp.")), dict(
        state_dict
    )
