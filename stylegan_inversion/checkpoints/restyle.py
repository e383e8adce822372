"""ReStyle's checkpoint -> its encoder in our names.

Format: yuval-alaluf/restyle-encoder (MIT): as pSp's and e4e's, with six input channels and no feature pyramid. Its
encoders on a ResNet34, for other domains than faces, are refused by name.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stylegan_inversion.checkpoints.encoder import backbone_from_official, count_modules, refuse_others, style_name
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.restyle_encoder import ReStyleConfig

StateDict = dict[str, Tensor]

_OFFSETS = {"BackboneEncoder": False, "ProgressiveBackboneEncoder": True}  # `encoder_type`: whether it is e4e's form


def is_restyle(encoder: Mapping[str, Tensor]) -> bool:
    """Whether an official encoder reads six channels, or has no pyramid to give its styles."""
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
    written = options.get("encoder_type")
    for key in ("conv1.weight", "latlayer1.weight"):
        if key in state_dict:
            what = {"conv1.weight": "on a ResNet34", "latlayer1.weight": "with a feature pyramid"}[key]
            raise CheckpointError(
                f"It is a ReStyle encoder {what} (tensor {key!r}), which is not supported: only those on an IR-SE50, "
                "of faces, are. Take the e4e checkpoint of the same domain."
            )
    if written not in _OFFSETS:
        raise CheckpointError(
            "It is a ReStyle checkpoint, of pSp's form or of e4e's, whose tensors have the same names; `encoder_type` "
            f"in its `opts` must say which, {' or '.join(_OFFSETS)}, got {str(written)[:100]!r}."
        )
    backbone, converted = backbone_from_official(state_dict)
    refuse_others(state_dict, "styles")
    num_ws, passes = count_modules(state_dict, "styles."), options.get("n_iters_per_batch")
    try:
        config = ReStyleConfig(
            output_resolution=2 ** (num_ws // 2 + 1) if num_ws % 2 == 0 else num_ws,
            input_resolution=16 * 2 ** count_modules(state_dict, "styles.0.convs."),
            w_dim=state_dict["styles.0.linear.weight"].shape[0],
            offsets=_OFFSETS[written],
            iterations=passes if isinstance(passes, int) and 1 <= passes <= 100 else 5,
            in_channels=backbone.in_channels // 2,
            widths=backbone.widths,
            units=backbone.units,
            reduction=backbone.reduction,
        )
        styles = {style_name(key): tensor for key, tensor in state_dict.items() if key.startswith("styles.")}
    except KeyError as e:
        raise CheckpointError(f"Not a ReStyle encoder: tensor {e} is missing.") from e
    except ValueError as e:
        raise CheckpointError(f"Not a ReStyle encoder: {e}") from e
    if tuple(latent_avg.shape) not in {(config.w_dim,), (1, config.w_dim), (num_ws, config.w_dim)}:
        raise CheckpointError(
            f"`latent_avg` must be ({config.w_dim},) or ({num_ws}, {config.w_dim}), got {tuple(latent_avg.shape)}."
        )
    converted = {f"backbone.{key}": tensor for key, tensor in converted.items()} | styles
    return config, {**converted, "w_avg": latent_avg.expand(num_ws, -1).clone()}
