"""StyleGAN2 generators and discriminators: rosinality's and NVIDIA's key names <-> ours.

Formats: rosinality/stylegan2-pytorch `model.py` (MIT), which pSp and e4e use for their decoder too, and the modules of
NVlabs/stylegan2-ada-pytorch `training/networks.py`. Sizes are read from the tensors; where one is missing, a `KeyError`
names it. The numbers are the same in all three: only names and shapes differ.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import DiscriminatorConfig
from stylegan_inversion.models.generator import GeneratorConfig, MappingNetwork
from stylegan_inversion.ops import blur_kernel

StateDict = dict[str, Tensor]
_Table = dict[str, tuple[str, tuple[int, ...]]]  # our name -> (their name, the axes of size 1 that theirs has on top)

_AFFINE: _Table = {f"affine.{part}": (f"conv.modulation.{part}", ()) for part in ("weight", "bias")}
_CONV: _Table = {
    "weight": ("conv.weight", (0,)),
    "bias": ("activate.bias", ()),
    "noise_strength": ("noise.weight", (0,)),
}
_TO_RGB: _Table = {"weight": ("conv.weight", (0,)), "bias": ("bias", (0, 2, 3))}


def _rosinality_table(config: GeneratorConfig) -> _Table:
    table: _Table = {"synthesis.const": ("input.input", ())}
    for i in range(config.mapping_layers):
        table |= {f"mapping.layers.{i}.{part}": (f"style.{i + 1}.{part}", ()) for part in ("weight", "bias")}
    layers = {"4.conv1": "conv1", "4.to_rgb": "to_rgb1"}
    for k, r in enumerate(config.resolutions[1:]):
        layers |= {f"{r}.conv0": f"convs.{2 * k}", f"{r}.conv1": f"convs.{2 * k + 1}", f"{r}.to_rgb": f"to_rgbs.{k}"}
    noises = 0
    for ours, theirs in layers.items():
        to_rgb = ours.endswith("to_rgb")
        for part, (name, axes) in {**(_TO_RGB if to_rgb else _CONV), **_AFFINE}.items():
            table[f"synthesis.blocks.{ours}.{part}"] = (f"{theirs}.{name}", axes)
        if not to_rgb:
            table[f"synthesis.blocks.{ours}.noise_const"] = (f"noises.noise_{noises}", (0, 0))
            noises += 1
    return table


def _nvidia_table(config: GeneratorConfig) -> _Table:
    names = {ours: ours.replace("layers.", "fc").replace("blocks.", "b") for ours in _rosinality_table(config)}
    names |= {"synthesis.const": "synthesis.b4.const", "w_avg": "mapping.w_avg"}
    return {ours: (theirs.replace("to_rgb", "torgb"), ()) for ours, theirs in names.items()}


def _check_square(const: Tensor, resolution: int) -> None:
    """Refuse a generator that does not begin with 4 x 4 pixels, and so draws another shape than a square."""
    height, width = const.shape[-2:]
    if (height, width) != (4, 4):
        drawn = f"{height * resolution // 4} x {width * resolution // 4}"
        shape = "only square ones are" if height != width else "only those that begin with 4 x 4 pixels are"
        raise CheckpointError(f"It is a generator that draws {drawn} pixels (height x width); {shape} supported.")


def _config(resolution: int, first: Tensor, layers: int, widths: Mapping[int, int]) -> GeneratorConfig:
    """Make the config whose widths are min(channel_base / side, channel_max)."""
    w_dim, z_dim = first.shape
    base, limit = max(r * width for r, width in widths.items()), max(widths.values())
    config = GeneratorConfig(resolution, z_dim, w_dim, layers, channel_base=base, channel_max=limit)
    if any(config.channels(r) != width for r, width in widths.items()):
        raise CheckpointError(
            f"The generator's widths {dict(widths)} are not min(base / side, max) for any base and max."
        )
    return config


def _check_kernels(state_dict: Mapping[str, Tensor]) -> None:
    kernel = blur_kernel()
    for key, tensor in state_dict.items():
        same = tensor.shape == kernel.shape and torch.allclose(tensor.float() / tensor.float().sum(), kernel, atol=1e-6)
        if key.endswith((".kernel", "resample_filter")) and not same:
            raise CheckpointError(f"{key} is not the blur filter [1, 3, 3, 1]; other filters are not supported.")


def has_noise(state_dict: Mapping[str, Tensor]) -> bool:
    """Tell whether a generator of either format holds its constant noise; older code drew it anew for each image."""
    return any(key.startswith("noises.") or key.endswith(".noise_const") for key in state_dict)


def _draw_noise(config: GeneratorConfig) -> StateDict:
    """Draw constant noise under our names from a fixed seed, standard normal as in a new generator."""
    rng = latents.random_source(0)
    sides = {"4.conv1": 4} | {f"{r}.{conv}": r for r in config.resolutions[1:] for conv in ("conv0", "conv1")}
    return {
        f"synthesis.blocks.{layer}.noise_const": torch.randn(r, r, generator=rng, device="cpu", dtype=torch.float32)
        for layer, r in sides.items()
    }


def _rename(state_dict: Mapping[str, Tensor], table: _Table, what: str, drawn: Mapping[str, Tensor]) -> StateDict:
    """Rename the tensors of a file; `drawn` has those, under our names, that it need not hold."""
    missing = [theirs for ours, (theirs, _) in table.items() if theirs not in state_dict and ours not in drawn]
    known = {theirs for theirs, _ in table.values()}
    unexpected = [k for k in state_dict if k not in known and not k.endswith((".kernel", "resample_filter"))]
    if missing or unexpected:
        raise CheckpointError(f"Not {what}: missing {missing[:5]}, unexpected {unexpected[:5]}.")
    renamed = dict(drawn)
    for ours, (theirs, axes) in table.items():
        if theirs in state_dict:
            renamed[ours] = state_dict[theirs]
            for axis in reversed(axes):
                renamed[ours] = renamed[ours].squeeze(axis)
    return renamed


def generator_from_rosinality(
    state_dict: Mapping[str, Tensor], *, latent_avg: Tensor | None = None
) -> tuple[GeneratorConfig, StateDict]:
    """Read rosinality's generator (`g_ema`, or the `decoder.` part of pSp and e4e).

    Args:
        state_dict: The official state dict. Constant noise, if it has none at all, is drawn from a seed.
        latent_avg: The average w, (w_dim,) or (1, w_dim) or (num_ws, w_dim); it lies beside the state dict. `None`
            gives zeros.

    Returns:
        The config, read from the tensors, and our state dict.

    Raises:
        CheckpointError: If it is another network or another shape of image, or its blur filter is another one.
    """
    blocks = sum(key.startswith("to_rgbs.") and key.endswith(".conv.weight") for key in state_dict)
    _check_square(state_dict["input.input"], 4 * 2**blocks)
    layers = sum(key.startswith("style.") and key.endswith(".weight") for key in state_dict)
    widths = {4: state_dict["conv1.conv.weight"].shape[1]}
    widths |= {8 * 2**k: state_dict[f"convs.{2 * k + 1}.conv.weight"].shape[1] for k in range(blocks)}
    config = _config(4 * 2**blocks, state_dict["style.1.weight"], layers, widths)
    _check_kernels(state_dict)
    noise = {} if has_noise(state_dict) else _draw_noise(config)
    converted = _rename(state_dict, _rosinality_table(config), "a StyleGAN2 generator in rosinality's format", noise)
    w_avg = torch.zeros(config.w_dim, device="cpu", dtype=torch.float32) if latent_avg is None else latent_avg
    if w_avg.ndim not in (1, 2) or not len(w_avg) or w_avg.shape[-1] != config.w_dim:
        sizes = f"({config.w_dim},) or (num_ws, {config.w_dim})"
        raise CheckpointError(f"`latent_avg` must be {sizes}, got {tuple(w_avg.shape)}.")
    return config, {**converted, "w_avg": w_avg.reshape(-1, config.w_dim)[0]}


def generator_to_rosinality(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> tuple[StateDict, Tensor]:
    """Write our generator in rosinality's names; the inverse of `generator_from_rosinality`, to the bit.

    Returns:
        The official state dict, blur filters included, and `latent_avg`, (w_dim,).
    """
    official: StateDict = {}
    for ours, (theirs, axes) in _rosinality_table(config).items():
        official[theirs] = state_dict[ours]
        for axis in axes:
            official[theirs] = official[theirs].unsqueeze(axis)
    for k in range(len(config.resolutions) - 1):
        official[f"convs.{2 * k}.conv.blur.kernel"] = blur_kernel() * 4
        official[f"to_rgbs.{k}.upsample.kernel"] = blur_kernel() * 4
    return official, state_dict["w_avg"]


def generator_from_nvidia(state_dict: Mapping[str, Tensor]) -> tuple[GeneratorConfig, StateDict]:
    """Read the state dict of NVIDIA's StyleGAN2 generator (stylegan2-ada-pytorch, or StyleGAN2 in stylegan3).

    Constant noise, if the file has none at all, is drawn from a seed.

    Raises:
        CheckpointError: If it is another network, architecture or shape of image, or its blur filter is another one.
    """
    const = state_dict["synthesis.b4.const"]
    sides = [2**k for k in range(2, 12) if f"synthesis.b{2**k}.torgb.weight" in state_dict]
    if not sides:
        raise CheckpointError("Not NVIDIA's StyleGAN2 generator of the skip architecture: it has no `torgb`.")
    _check_square(const, max(sides))
    layers = sum(key.startswith("mapping.fc") and key.endswith(".weight") for key in state_dict)
    widths = {r: state_dict[f"synthesis.b{r}.conv1.weight"].shape[0] for r in sides}
    config = _config(max(sides), state_dict["mapping.fc0.weight"], layers, widths)
    _check_kernels(state_dict)
    drawn: StateDict = {}
    if not has_noise(state_dict):
        drawn = _draw_noise(config)
        if not any(key.endswith(".noise_strength") for key in state_dict):  # `use_noise=False`: it never gets any
            drawn |= {key.replace("_const", "_strength"): noise.new_zeros(()) for key, noise in drawn.items()}
    state_dict = {**state_dict, "synthesis.b4.const": const[None] if const.ndim == 3 else const}
    return config, _rename(state_dict, _nvidia_table(config), "NVIDIA's StyleGAN2 generator", drawn)


def generator_to_nvidia(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> StateDict:
    """Write a generator as the state dict of NVIDIA's; the inverse of `generator_from_nvidia`, to the bit.

    Load it there with `Generator(z_dim, 0, w_dim, resolution, 3, mapping_kwargs=dict(num_layers=...),
    synthesis_kwargs=dict(channel_base=..., channel_max=...)).load_state_dict(...)`.
    """
    official = {theirs: state_dict[ours] for ours, (theirs, _) in _nvidia_table(config).items()}
    official["synthesis.b4.const"] = official["synthesis.b4.const"][0]
    for side in config.resolutions:
        for part in ("", "conv1.") if side == 4 else ("", "conv0.", "conv1."):
            official[f"synthesis.b{side}.{part}resample_filter"] = blur_kernel()
    return official


@torch.no_grad()
def average_w(config: GeneratorConfig, state_dict: Mapping[str, Tensor], *, samples: int) -> Tensor:
    """Compute the average of w over z, as the training code of pSp and e4e does where a file has none.

    Args:
        config: Of the generator.
        state_dict: Ours; only `mapping.` is read.
        samples: How many z are drawn, from a fixed seed.

    Returns:
        (w_dim,), float32.
    """
    with torch.device("meta"):
        mapping = MappingNetwork(config)
    own = {key[len("mapping.") :]: tensor.float() for key, tensor in state_dict.items() if key.startswith("mapping.")}
    mapping.load_state_dict(own, assign=True)
    rng = latents.random_source(0)
    total = torch.zeros(config.w_dim, device="cpu", dtype=torch.float64)
    for start in range(0, samples, 5_000):
        z = torch.randn(min(5_000, samples - start), config.z_dim, generator=rng, device="cpu", dtype=torch.float32)
        total += mapping(z).double().sum(dim=0)
    return (total / samples).float()


def discriminator_from_rosinality(state_dict: Mapping[str, Tensor]) -> tuple[DiscriminatorConfig, StateDict]:
    """Read rosinality's discriminator (`d` of a training snapshot).

    Raises:
        CheckpointError: If it is another network, or its blur filter is another one.
    """
    blocks = sum(key.startswith("convs.") and key.endswith(".skip.1.weight") for key in state_dict)
    resolution = 4 * 2**blocks
    widths = {resolution: state_dict["convs.0.0.weight"].shape[0]}
    widths |= {resolution // 2**k: state_dict[f"convs.{k}.conv2.1.weight"].shape[0] for k in range(1, blocks + 1)}
    config = DiscriminatorConfig(resolution, max(r * width for r, width in widths.items()), max(widths.values()))
    layers = {"from_rgb": ("convs.0.0", "convs.0.1"), "conv": ("final_conv.0", "final_conv.1")}
    layers |= {ours: (f"final_linear.{k}", f"final_linear.{k}") for k, ours in enumerate(("fc", "out"))}
    for k in range(blocks):
        ours, theirs = f"blocks.{resolution // 2**k}", f"convs.{k + 1}"
        layers[f"{ours}.conv0"] = (f"{theirs}.conv1.0", f"{theirs}.conv1.1")
        layers[f"{ours}.conv1"] = (f"{theirs}.conv2.1", f"{theirs}.conv2.2")
    table: _Table = {
        f"blocks.{resolution // 2**k}.skip.weight": (f"convs.{k + 1}.skip.1.weight", ()) for k in range(blocks)
    }
    for ours, (weight, bias) in layers.items():
        table |= {f"{ours}.weight": (f"{weight}.weight", ()), f"{ours}.bias": (f"{bias}.bias", ())}
    _check_kernels(state_dict)
    return config, _rename(state_dict, table, "a StyleGAN2 discriminator in rosinality's format", {})
