"""What a foreign checkpoint says beside its tensors' values: where they are, what they belong to, what is missing."""

import dataclasses
import re
from collections import ChainMap
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.checkpoints.generator import generator_from_nvidia, generator_from_rosinality, has_noise
from stylegan_inversion.checkpoints.part import Part, StateDict
from stylegan_inversion.checkpoints.sandbox import PickledModule
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import Generator, GeneratorConfig, MappingNetwork

_WRAPPERS = {"module", "_orig_mod"}
_AVERAGED = re.compile(r"(^|[^a-zA-Z])(ema|EMA)([^a-zA-Z]|$)|running")
_ONLY = " (tensor {key!r}); only StyleGAN2 is supported."
_NAMES = " (tensor {key!r}), whose names are not supported. Take rosinality's or NVIDIA's file."
_OTHER = " (tensor {key!r}), not a GAN; nothing here can use it."
_REFUSED = {  # what tensors' names begin with -> what it is
    r"synthesis\.(input\.|L\d+_)": "a StyleGAN3 generator" + _ONLY,
    r"(g_mapping|g_synthesis|(generator\.)?progression|step)\.": "a StyleGAN1 generator" + _ONLY,
    r"(backbone\.synthesis|superresolution|renderer)\.": "a 3D generator" + _ONLY,
    r"mapping\.embed\.": "a conditional generator (`mapping.embed`: c_dim > 0), which is not supported: there is no "
    "label in W+. Take an unconditional one.",
    r"(synthesis\.blocks|pyramid)\.": "a file of this package (its tensors have our names): load the folder that it is "
    "in with `from_pretrained`.",
    r"hypernet\.": "a checkpoint of HyperStyle (tensor {key!r}), which is not supported: take pSp's or e4e's.",
    r"inverter\.": "a checkpoint of StyleFeatureEditor (tensor {key!r}), which is not supported: take pSp's or e4e's.",
    r"(stylegan_decoder\.)?(style_mlp|style_conv1|style_convs|constant_input)\.": "a StyleGAN2 of BasicSR or GFPGAN"
    + _NAMES,
    r"(generator(_ema)?\.)?style_mapping\.": "a generator of MMGeneration or MMagic" + _NAMES,
    r"(model\.diffusion_model|first_stage_model|unet|down_blocks|transformer_blocks|double_blocks)\.": "a diffusion "
    "model" + _OTHER,
    r".*lora_(A|B|up|down|te|unet)": "a LoRA of a diffusion model" + _OTHER,
}


def tensors_of(value: Any) -> StateDict:
    """The state dict that a value is; empty if it is none."""
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in value.items())
    ):
        return dict(value)
    return {}


def plain_names(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Leave out `module.` (of `DataParallel`) and `_orig_mod.` (of `torch.compile`), wherever they stand in a name.

    Raises:
        CheckpointError: If two tensors then have one name.
    """
    plain: StateDict = {}
    for key, tensor in state_dict.items():
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in plain:
            raise CheckpointError(
                f"It holds the tensor {name!r} twice: once as {key!r}. Save one network's state dict."
            )
        plain[name] = tensor
    return plain


class Found(NamedTuple):
    """A state dict in a checkpoint.

    Attributes:
        name: The key that it lies under; "" at the top.
        tensors: By their plain names (see `plain_names`).
        beside: What lies beside it, and further out: settings, the average w.
    """

    name: str
    tensors: StateDict
    beside: Mapping[Any, Any]


def find_state_dicts(checkpoint: Mapping[Any, Any]) -> list[Found]:
    """The state dicts in a checkpoint: the tensors at its top, and those in the dicts inside, two levels down.

    Args:
        checkpoint: What the file holds.

    Returns:
        At least one. Those that are called an average (`g_ema`) come first; an optimiser's are left out.

    Raises:
        CheckpointError: If there is none.
    """
    found: list[Found] = []

    def look(value: dict[Any, Any], name: str, outer: ChainMap[Any, Any], depth: int) -> None:
        tensors = {key: tensor for key, tensor in value.items() if isinstance(key, str) and isinstance(tensor, Tensor)}
        if tensors:
            found.append(Found(name, plain_names(tensors), outer))
        for key, inner in value.items():
            if isinstance(key, str) and isinstance(inner, dict) and depth and "optim" not in key.lower():
                look(inner, key, outer.new_child(value), depth - 1)

    look(dict(checkpoint), "", ChainMap(dict(checkpoint)), 2)
    if not found:
        pickled = [
            f"{key}: {value.class_name}" for key, value in checkpoint.items() if isinstance(value, PickledModule)
        ]
        held = ", ".join(pickled or [str(key)[:50] for key in checkpoint][:8]) or "nothing"
        raise CheckpointError(f"Not a checkpoint of this field: there are no tensors in it, only {held}.")
    return sorted(found, key=lambda each: not _AVERAGED.search(each.name))


def cut_out(state_dict: Mapping[str, Tensor], *marks: str) -> tuple[StateDict, list[str]] | None:
    """Cut a network out of a state dict, whatever its names begin with; of several one that is called an average.

    Args:
        state_dict: With plain names.
        marks: Names of tensors that only such a network has.

    Returns:
        Its tensors, by their names in it, and the first parts of the names of all other tensors. `None` if there is no
        such network.
    """
    prefixes = [key.removesuffix(mark) for key in state_dict for mark in marks if f".{key}".endswith(f".{mark}")]
    if not prefixes:
        return None
    prefix = min(prefixes, key=lambda prefix: not _AVERAGED.search(prefix))
    inside = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    return inside, sorted({key.split(".")[0] for key in state_dict if not key.startswith(prefix)})


def left_out(names: list[str]) -> list[str]:
    """A note on what was left out, if anything was."""
    shown = ", ".join(f"`{name[:50]}`" for name in names[:5])
    return [f"The file also holds {shown}, which was left out."] if names else []


def refuse_others(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse, by name, what is not StyleGAN2 or one of its encoders, and this package's own files.

    Raises:
        CheckpointError: If it is one of those.
    """
    for key in state_dict:
        for pattern, what in _REFUSED.items():
            if re.match(pattern, key):
                raise CheckpointError(f"It is {what.format(key=key)}")


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
    """A StyleGAN2 generator in either format; its average w and its noise are made up for where they are missing."""
    refuse_others(state_dict)
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
    if not has_noise(state_dict):
        notes.append(
            "The file has no constant noise; it was drawn from a seed, so pictures differ from others in grain."
        )
    if average is None:
        Part(Generator, config, converted)  # its checks, before it is run
        converted["w_avg"] = average_w(config, converted, samples=samples)
        notes.append(f"The file has no average w; it was computed from the mapping network, over {samples} samples.")
    return Part(Generator, config, converted), notes
