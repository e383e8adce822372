"""The papers' encoders, latent discriminator, identity network and MoCo's ResNet: official key names <-> ours.

Formats: eladrich/pixel2style2pixel, omertov/encoder4editing, yuval-alaluf/restyle-encoder, ControlGenAI/
StyleFeatureEditor, TreB1eN/InsightFace_Pytorch and facebookresearch/moco (all MIT). Sizes are read from the tensors;
where one is missing, a `KeyError` names it.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import LatentDiscriminatorConfig
from stylegan_inversion.models.encoders import ENCODERS, RESTYLE_FORMS
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.models.psp_encoder import EncoderConfig, PyramidEncoderConfig
from stylegan_inversion.models.resnet import ResNetConfig
from stylegan_inversion.models.restyle_encoder import ReStyleConfig
from stylegan_inversion.models.sfe_encoder import StyleFeatureConfig

StateDict = dict[str, Tensor]

_NAMES: dict[str, str | Callable[[re.Match[str]], str]] = {  # patterns of our names -> theirs, one after the other
    r"^(pyramid\.)?w_avg$": "latent_avg",  # which lies beside the state dict
    r"^pyramid\.": "",
    r"^backbone\.stem\.": "input_layer.",
    r"^backbone\.prelu\.": "relu.",
    r"^backbone\.(conv1|bn1)\.": r"\1.",
    r"\.(residual|shortcut)\.": lambda match: f".{'res' if match[1] == 'residual' else match[1]}_layer.",
    r"^lateral(\d)\.": lambda match: f"latlayer{3 - int(match[1])}.",  # theirs count from the coarse end
    r"\.convs\.(\d+)\.": lambda match: f".convs.{2 * int(match[1])}.",  # theirs count the activations too
    r"^head\.": "output_layer.",
}

_UNIT = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")  # SFE's names in a unit of the backbone
_SFE_NAMES: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"^editor\.": "encoder.",
    r"^fuser\.": "inverter.fuser.",
    r"\.blocks\.(\d+)\.": r".body.\1.body.",
    r"^backbone\.": "inverter.fs_backbone.",
    r"_backbone\.stem\.": "_backbone.conv.",
    r"_backbone\.content\.": "_backbone.content_layer.",
    r"\.stages\.(\d)\.": lambda match: f".block_{int(match[1]) + 1}.",
    r"\.residual\.(\d)\.": lambda match: f".{_UNIT[int(match[1])]}.",
    r"\.shortcut\.": ".downsample.",
}


def _official_names(network: type[nn.Module], config: Any) -> dict[str, str]:
    """Pair the names of a network, ours -> theirs."""
    with torch.device("meta"):
        names = {name: name for name in network(config).state_dict()}
    if isinstance(config, StyleFeatureConfig):
        return _replaced(names, _SFE_NAMES)
    firsts = [sum(config.units[:stage]) for stage in range(len(config.units))]  # theirs are counted through all stages
    units = {r"^(?:pyramid\.)?backbone\.stages\.(\d)\.(\d+)": lambda m: f"body.{firsts[int(m[1])] + int(m[2])}"}
    return _replaced(names, {**units, **_NAMES})


def _replaced(names: dict[str, str], table: Mapping[str, Any]) -> dict[str, str]:
    for pattern, theirs in table.items():
        names = {ours: re.sub(pattern, theirs, name) for ours, name in names.items()}
    return names


def _rename(official: Mapping[str, Tensor], network: type[nn.Module], config: Any) -> StateDict:
    names = _official_names(network, config)
    if unexpected := sorted(official.keys() - set(names.values())):
        raise CheckpointError(f"Not one of the papers' encoders: unexpected tensors {unexpected[:5]}.")
    return {ours: official[theirs] for ours, theirs in names.items() if theirs in official}


def _count(official: Mapping[str, Tensor], prefix: str) -> int:
    """Count the numbered modules that follow a prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in official if key.startswith(prefix)})


def _backbone_sizes(official: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the fields of `IRSEConfig`; a stage of the body begins where the width changes. ResNet-34's are alike."""
    resnet = "conv1.weight" in official
    width, in_channels = official["conv1.weight" if resnet else "input_layer.0.weight"].shape[:2]
    squeeze = official.get("body.0.res_layer.5.fc1.weight")
    conv = "conv1" if resnet else "res_layer.3"
    depths = [official[f"body.{i}.{conv}.weight"].shape[0] for i in range(_count(official, "body."))]
    widths = tuple(sorted(set(depths)))
    units, reduction = tuple(map(depths.count, widths)), 0 if squeeze is None else width // squeeze.shape[0]
    return {"in_channels": in_channels, "widths": widths, "units": units, "reduction": reduction}


def _pyramid_config(official: Mapping[str, Tensor], options: Mapping[str, Any]) -> PyramidEncoderConfig:
    num_ws = _count(official, "styles.")
    if num_ws < 2 or num_ws % 2 or "latlayer1.weight" not in official:
        raise CheckpointError(f"Not a feature-pyramid encoder: it has {num_ws} `styles`, or `latlayer1` is missing.")
    depths = [_count(official, f"styles.{i}.convs.") for i in range(num_ws)]  # one more a level
    coarse_end = depths.count(depths[0])
    middle_end = coarse_end + depths.count(depths[0] + 1)
    w_dim, style_channels = official["styles.0.linear.weight"].shape
    return PyramidEncoderConfig(
        output_resolution=2 ** (num_ws // 2 + 1),
        input_resolution=16 * 2 ** depths[0],
        w_dim=w_dim,
        coarse_end=coarse_end,
        middle_end=middle_end if middle_end < num_ws else max(7, middle_end),  # none reads p1: the paper's 7
        style_channels=None if style_channels == w_dim else style_channels,
        **_backbone_sizes(official),
    )


def _restyle_config(official: Mapping[str, Tensor], options: Mapping[str, Any]) -> ReStyleConfig:
    form, passes = options.get("encoder_type"), options.get("n_iters_per_batch")
    if form is None:
        raise CheckpointError(
            "It is a ReStyle checkpoint, of pSp's form or of e4e's, whose tensors have the same names; `encoder_type` "
            "in its `opts` must say which."
        )
    resnet = "conv1.weight" in official
    forms = {name: offsets for (on_resnet, offsets), name in RESTYLE_FORMS.items() if on_resnet == resnet}
    if form not in forms:
        raise CheckpointError(f"Its `opts` say {form}, but its tensors are those of {' or '.join(forms)}.")
    num_ws, sizes = _count(official, "styles."), _backbone_sizes(official)
    return ReStyleConfig(
        output_resolution=2 ** (num_ws // 2 + 1) if num_ws % 2 == 0 else num_ws,
        input_resolution=16 * 2 ** _count(official, "styles.0.convs."),
        w_dim=official["styles.0.linear.weight"].shape[0],
        resnet=resnet,
        offsets=forms[form],
        iterations=passes if isinstance(passes, int) and 1 <= passes <= 100 else 5,
        **{**sizes, "in_channels": sizes["in_channels"] // 2},
    )


def _style_feature_config(official: Mapping[str, Tensor]) -> StyleFeatureConfig:
    """Read the sizes. No tensor tells the side of the input: it is the generator's, and 256 at most."""
    backbone = "inverter.fs_backbone."
    stages = [f"{backbone}block_{i}." for i in range(1, 5)]
    num_ws = _count(official, f"{backbone}styles.")
    side, shared = 2 ** (num_ws // 2 + 1), official.get(f"{backbone}shared.weight")  # none in the released file
    return StyleFeatureConfig(
        output_resolution=side if num_ws % 2 == 0 else num_ws,
        input_resolution=max(32, min(256, side)),
        w_dim=official[f"{backbone}styles.0.weight"].shape[0],
        widths=tuple(official[f"{stage}0.conv1.weight"].shape[0] for stage in stages),
        units=tuple(_count(official, stage) for stage in stages),
        channels=official["encoder.conv.weight"].shape[0],
        depth=_count(official, "encoder.body."),
        style_channels=None if shared is None else shared.shape[0],
    )


def config_class(official: Mapping[str, Tensor]) -> type[EncoderConfig]:
    """Tell by the tensors which config an official encoder needs: ReStyle reads six channels, or has no pyramid."""
    stem = official.get("input_layer.0.weight", official.get("conv1.weight"))
    six = stem is not None and stem.ndim == 4 and stem.shape[1] == 6
    tops = {key.split(".")[0] for key in official}
    if not six and ("styles" not in tops or tops & {"latlayer1", "latlayer2"}):
        return PyramidEncoderConfig
    if "latlayer1.weight" in official:
        raise CheckpointError(
            "It is a ReStyle encoder with a feature pyramid (tensor 'latlayer1.weight'), which is not supported: only "
            "the released ones, without, are."
        )
    return ReStyleConfig


def encoder_from_official(
    kind: str, official: Mapping[str, Tensor], *, latent_avg: Tensor | None = None, options: Mapping[str, Any] = {}
) -> tuple[Any, StateDict]:
    """Read an encoder of the papers, whose names have lost `encoder.`: its config, and the state dict of our network.

    `latent_avg`, (w_dim,) or (num_ws, w_dim), is the average w beside it in the file; `None` gives zeros. Of the file's
    `opts`, ReStyle's say its form and how many passes. Raises `CheckpointError` if it is another encoder.
    """
    config_of = ENCODERS[kind].config
    if config_of is StyleFeatureConfig:  # the average is the generator's
        features = _style_feature_config(official)
        return features, _rename(official, ENCODERS[kind].network, features)
    read = _restyle_config if config_of is ReStyleConfig else _pyramid_config
    config: Any = read(official, options)
    num_ws, w_dim = config.num_ws, config.w_dim
    w_avg = torch.zeros(w_dim, device="cpu", dtype=torch.float32) if latent_avg is None else latent_avg
    if tuple(w_avg.shape) not in {(w_dim,), (1, w_dim), (num_ws, w_dim)}:
        raise CheckpointError(f"`latent_avg` must be ({w_dim},) or ({num_ws}, {w_dim}), got {tuple(w_avg.shape)}.")
    whole = {**official, "latent_avg": w_avg.expand(num_ws, -1).clone()}
    return config, _rename(whole, ENCODERS[kind].network, config)


def without_last_styles(
    official: Mapping[str, Tensor], latent_avg: Tensor | None, num_ws: int
) -> tuple[StateDict, Tensor | None, int]:
    """Leave out the styles that a generator does not take, and count them: e4e's for cars gives 18, of which 16 count.

    e4e's later styles are offsets to the first, so the others stay as they are.
    """
    count = _count(official, "styles.")
    extra = tuple(f"styles.{i}." for i in range(num_ws, count))
    kept = {key: tensor for key, tensor in official.items() if not key.startswith(extra)} if extra else dict(official)
    if latent_avg is not None and len(latent_avg) == count:
        latent_avg = latent_avg[:num_ws]
    return kept, latent_avg, len(extra)


def encoder_to_official(kind: str, config: Any, state_dict: Mapping[str, Tensor]) -> tuple[StateDict, Tensor]:
    """Write an encoder in the official names, without the prefix `encoder.`; exact to the bit.

    Returns its state dict and `latent_avg`, (num_ws, w_dim), which lies beside it in a checkpoint; StyleFeatureEditor's
    has none: an empty tensor.
    """
    names = _official_names(ENCODERS[kind].network, config)
    official = {theirs: state_dict[ours] for ours, theirs in names.items()}
    return official, official.pop("latent_avg", torch.empty(0))


def arcface_from_official(official: Mapping[str, Tensor]) -> tuple[ArcFaceConfig, StateDict]:
    """Read an identity network, `model_ir_se50.pth` or `CurricularFace_Backbone.pth`, or raise `CheckpointError`."""
    sizes = _backbone_sizes(official)
    embedding_dim, features = official["output_layer.3.weight"].shape
    side = round((features / sizes["widths"][-1]) ** 0.5)
    affine = "output_layer.4.weight" in official
    config = ArcFaceConfig(**sizes, resolution=16 * side, embedding_dim=embedding_dim, affine=affine)
    return config, _rename(official, ArcFace, config)


def latent_discriminator_from_official(official: Mapping[str, Tensor]) -> tuple[LatentDiscriminatorConfig, StateDict]:
    """Read e4e's `LatentCodesDiscriminator`: its names are ours."""
    return LatentDiscriminatorConfig(official["mlp.0.weight"].shape[1], _count(official, "mlp.")), dict(official)


def moco_from_official(official: Mapping[str, Tensor]) -> tuple[ResNetConfig, StateDict]:
    """Read the query encoder of MoCo v2's state dict (`encoder_q.*`): its names are ours, its head `fc` is dropped."""
    query = {key.removeprefix("encoder_q."): tensor for key, tensor in official.items() if "encoder_q." in key}
    trunk = {key: tensor for key, tensor in query.items() if not key.startswith("fc.")}
    stages = [f"layer{i}." for i in range(1, 5)]
    widths = tuple(trunk[f"{stage}0.conv1.weight"].shape[0] for stage in stages)
    return ResNetConfig(widths, tuple(_count(trunk, stage) for stage in stages)), trunk
