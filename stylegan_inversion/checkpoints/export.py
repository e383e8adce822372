"""Our networks -> the papers' checkpoint files: the inverse of reading them, to the bit.

`torch.save` the dicts that these functions give. Formats: eladrich/pixel2style2pixel, omertov/encoder4editing (MIT);
rosinality/stylegan2-pytorch (MIT), whose tensors `convert/generator.py` names. That file writes NVIDIA's tensors too; a
whole NVIDIA `.pkl` holds NVIDIA's source code, which this package neither has nor may ship.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from stylegan_inversion.checkpoints.generator import generator_to_rosinality
from stylegan_inversion.models.generator import GeneratorConfig
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig, WEncoderConfig

StateDict = dict[str, Tensor]
EncoderConfig = PyramidEncoderConfig | WEncoderConfig

_BRANCHES = {"residual": "res_layer", "shortcut": "shortcut_layer"}


def _backbone_name(config: EncoderConfig, key: str) -> str:
    top, _, rest = key.partition(".")
    if top == "stem":
        return f"input_layer.{rest}"
    stage, unit, branch, rest = rest.split(".", 3)
    return f"body.{sum(config.units[: int(stage)]) + int(unit)}.{_BRANCHES[branch]}.{rest}"


def _encoder_name(config: EncoderConfig, key: str) -> str:
    key = key.removeprefix("pyramid.")
    top, _, rest = key.partition(".")
    if top == "backbone":
        return _backbone_name(config, rest)
    if top == "styles" and ".convs." in rest:
        head, _, tail = rest.partition(".convs.")
        index, _, part = tail.partition(".")
        return f"styles.{head}.convs.{2 * int(index)}.{part}"  # theirs count the activations too
    return key.replace("lateral2.", "latlayer1.").replace("lateral1.", "latlayer2.")


def encoder_to_official(config: EncoderConfig, state_dict: Mapping[str, Tensor]) -> tuple[StateDict, Tensor]:
    """Write an encoder in the official names; the inverse of `pyramid_encoder_from_official` and of the W encoder's.

    Args:
        config: Of a pSp or e4e encoder, or of the encoder into W.
        state_dict: Ours.

    Returns:
        The official state dict, without the prefix `encoder.`, and `latent_avg`, (num_ws, w_dim), or (1, w_dim) for W.
    """
    official = {_encoder_name(config, key): tensor for key, tensor in state_dict.items() if not key.endswith("w_avg")}
    w_avg = state_dict["pyramid.w_avg" if isinstance(config, PyramidEncoderConfig) else "w_avg"]
    return official, w_avg.reshape(-1, config.w_dim)


def checkpoint_to_official(
    kind: Literal["psp", "e4e"],
    encoder: tuple[EncoderConfig, Mapping[str, Tensor]],
    generator: tuple[GeneratorConfig, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Write an encoder and its generator as a pSp or e4e `.pt` holds them, with the `opts` that their code reads.

    The official code builds IR-SE50 encoders for images of 256 px with map2style as wide as w: what has other sizes
    is written as well, but only this package and tools that read sizes from tensors load it.

    Args:
        kind: Whose file.
        encoder: Config and state dict of a pSp or e4e encoder, or of the encoder into W.
        generator: Config and state dict.

    Returns:
        `state_dict`, `opts` and `latent_avg`; and `w_avg`, which the official code leaves alone, where the generator's
        average w is not the encoder's.
    """
    config, state_dict = encoder
    official, latent_avg = encoder_to_official(config, state_dict)
    decoder, w_avg = generator_to_rosinality(*generator)
    from_average = bool(latent_avg.any())
    if not from_average:
        latent_avg = w_avg.expand_as(latent_avg).clone()
    into_w = isinstance(config, WEncoderConfig)
    classes = {"psp": "GradualStyleEncoder", "e4e": "Encoder4Editing"}
    options: dict[str, Any] = {
        "encoder_type": "BackboneEncoderUsingLastLayerIntoW" if into_w else classes[kind],
        "start_from_latent_avg": from_average,
        "learn_in_w": into_w,
        "input_nc": config.in_channels,
        "label_nc": 0 if config.in_channels == 3 else config.in_channels,
        "device": "cpu",
        "checkpoint_path": None,
        "train_decoder": False,
        "output_size" if kind == "psp" else "stylegan_size": generator[0].resolution,
        "n_styles": generator[0].num_ws,
    }
    tensors = {f"encoder.{key}": tensor for key, tensor in official.items()}
    tensors |= {f"decoder.{key}": tensor for key, tensor in decoder.items()}
    checkpoint = {"state_dict": tensors, "opts": options, "latent_avg": latent_avg}
    return checkpoint if torch.equal(w_avg, latent_avg[0]) else {**checkpoint, "w_avg": w_avg}


def checkpoint_to_rosinality(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a generator as rosinality's `.pt` holds it: `g_ema` and `latent_avg`."""
    official, latent_avg = generator_to_rosinality(config, state_dict)
    return {"g_ema": official, "latent_avg": latent_avg}
