"""What a foreign checkpoint says beside its tensors' values: where they are, what they belong to, what is missing."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.convert.generator import generator_from_nvidia, generator_from_rosinality
from stylegan_inversion.convert.part import Part, StateDict
from stylegan_inversion.convert.sandbox import PickledModule
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import Generator, GeneratorConfig, MappingNetwork


def tensors_of(value: Any) -> StateDict:
    """The state dict that a value is; empty if it is none."""
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in value.items())
    ):
        return dict(value)
    return {}


def find_state_dict(checkpoint: Mapping[Any, Any]) -> StateDict:
    """The state dict in a checkpoint: under `state_dict`, or the tensors at its top.

    Raises:
        CheckpointError: If there is none.
    """
    inner = checkpoint.get("state_dict")
    source = inner if isinstance(inner, dict) else checkpoint
    found = {key: tensor for key, tensor in source.items() if isinstance(key, str) and isinstance(tensor, Tensor)}
    if not found:
        pickled = [f"{key}: {value.class_name}" for key, value in source.items() if isinstance(value, PickledModule)]
        held = ", ".join(pickled or [str(key)[:50] for key in source][:8]) or "nothing"
        raise CheckpointError(f"Not a checkpoint of this field: there are no tensors in it, only {held}.")
    if any(key.startswith("module.") for key in found) and not any(
        key.startswith("module.encoder_q.") for key in found
    ):
        raise CheckpointError(
            "Its tensors' names begin with `module.`: saved from a `DataParallel`. Save `model.module.state_dict()`."
        )
    return found


def refuse_generator(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse, by name, generators that are not StyleGAN2's, and this package's own files.

    Raises:
        CheckpointError: If it is one of those.
    """
    for key in state_dict:
        if key.startswith("synthesis.input.") or re.match(r"synthesis\.L\d+_", key):
            raise CheckpointError(f"It is a StyleGAN3 generator (tensor {key!r}); only StyleGAN2 is supported.")
        if key.startswith(("g_mapping.", "g_synthesis.", "generator.progression.", "progression.", "step.")):
            raise CheckpointError(f"It is a StyleGAN1 generator (tensor {key!r}); only StyleGAN2 is supported.")
        if key.startswith(("backbone.synthesis.", "superresolution.", "renderer.")):
            raise CheckpointError(f"It is a 3D generator (tensor {key!r}); only StyleGAN2 is supported.")
        if key.startswith("mapping.embed."):
            raise CheckpointError(
                "It is a conditional generator (`mapping.embed`: c_dim > 0), which is not supported: there is no label "
                "in W+. Take an unconditional one."
            )
        if key.startswith(("synthesis.blocks.", "pyramid.")):
            raise CheckpointError(
                "It is a file of this package (its tensors have our names): load the folder that it is in with "
                "`from_pretrained`."
            )


def network_settings(module: PickledModule) -> tuple[float | None, list[str]]:
    """What NVIDIA's generator keeps as attributes, not tensors.

    Returns:
        The learning-rate multiplier of its mapping network, `None` if it does not say; notes.

    Raises:
        CheckpointError: If it is conditional, does not draw RGB, or has another activation.
    """
    state = module.state
    if state.get("c_dim") not in (None, 0):
        raise CheckpointError(
            f"It is a conditional generator (c_dim = {str(state['c_dim'])[:20]}), which is not supported: there is no "
            "label in W+. Take an unconditional one."
        )
    if state.get("img_channels") not in (None, 3):
        raise CheckpointError(f"Its images have {str(state['img_channels'])[:20]} channels; only RGB is supported.")
    lr_multiplier, clamps = None, False
    for name, part in module.modules():
        if (activation := part.state.get("activation", "linear")) not in ("linear", "lrelu"):
            raise CheckpointError(f"Its layer {name[:-1]!r} has the activation {str(activation)[:50]!r}, not 'lrelu'.")
        if name == "mapping.fc0." and isinstance(gain := part.state.get("bias_gain"), float) and 0 < gain <= 1:
            lr_multiplier = gain
        clamps = clamps or part.state.get("conv_clamp") is not None
    clamped = (
        "Its layers clamp what they give (`conv_clamp`, for half precision), ours do not: no effect in float32 as "
    )
    return lr_multiplier, [clamped + "long as nothing is that large."] if clamps else []


@torch.no_grad()
def average_w(config: GeneratorConfig, state_dict: Mapping[str, Tensor], *, samples: int, seed: int = 0) -> Tensor:
    """The average of w over z, as the training code of pSp and e4e computes it where a file has none.

    Args:
        config: The generator's.
        state_dict: Ours; only `mapping.` is read.
        samples: How many z.
        seed: Of z.

    Returns:
        (w_dim,), float32.
    """
    with torch.device("meta"):
        mapping = MappingNetwork(config)
    own = {key[len("mapping.") :]: tensor.float() for key, tensor in state_dict.items() if key.startswith("mapping.")}
    mapping.load_state_dict(own, assign=True)
    rng = latents.random_source(seed)
    total = torch.zeros(config.w_dim, device="cpu", dtype=torch.float64)
    for start in range(0, samples, 5_000):
        z = torch.randn(min(5_000, samples - start), config.z_dim, generator=rng, device="cpu", dtype=torch.float32)
        total += mapping(z).double().sum(dim=0)
    return (total / samples).float()


def generator_part(
    state_dict: StateDict, latent_avg: Any, *, samples: int = 10_000, lr_multiplier: float | None = None
) -> tuple[Part, list[str]]:
    """A StyleGAN2 generator in either format; its average w is made up for where it is missing."""
    refuse_generator(state_dict)
    average = latent_avg if isinstance(latent_avg, Tensor) else None
    if "synthesis.b4.const" in state_dict:
        average = state_dict.get("mapping.w_avg", average)
        stand_in = state_dict.get(
            "mapping.fc0.bias", torch.zeros(1, device="cpu")
        )  # of the right size, if nothing else
        config, converted = generator_from_nvidia(
            {**state_dict, "mapping.w_avg": stand_in if average is None else average}
        )
    else:
        config, converted = generator_from_rosinality(state_dict, latent_avg=average)
    if lr_multiplier is not None:
        config = dataclasses.replace(config, mapping_lr_multiplier=lr_multiplier)
    notes = []
    if average is None:
        Part(Generator, config, converted)  # its checks, before it is run
        converted["w_avg"] = average_w(config, converted, samples=samples)
        notes.append(f"The file has no average w; it was computed from the mapping network, over {samples} samples.")
    return Part(Generator, config, converted), notes
