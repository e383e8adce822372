"""StyleGAN2 generators and discriminators: rosinality's and NVIDIA's key names <-> ours.

Formats: rosinality/stylegan2-pytorch `model.py` (MIT), which pSp and e4e use for their decoder too, and the modules of
NVlabs/stylegan2-ada-pytorch `training/networks.py`. Sizes are read from the tensors; where one is missing, a `KeyError`
names it. The numbers are the same in all three: only names and shapes differ.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from stylegan_inversion import latents, storage
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import DiscriminatorConfig
from stylegan_inversion.models.generator import GeneratorConfig, MappingNetwork
from stylegan_inversion.ops import blur_kernel

StateDict = dict[str, Tensor]
_Table = dict[str, tuple[str, tuple[int, ...]]]  # our name -> (their name, the axes of size 1 that theirs has on top)

MARKS = ("conv1.conv.weight", "synthesis.b4.const")  # rosinality's, NVIDIA's: only generators have these tensors
_AFFINE: _Table = {f"affine.{part}": (f"conv.modulation.{part}", ()) for part in ("weight", "bias")}
_CONV = _AFFINE | {
    "weight": ("conv.weight", (0,)),
    "bias": ("activate.bias", ()),
    "noise_strength": ("noise.weight", (0,)),
}
_TO_RGB = _AFFINE | {"weight": ("conv.weight", (0,)), "bias": ("bias", (0, 2, 3))}


def _rosinality_table(config: GeneratorConfig) -> _Table:
    table: _Table = {"synthesis.const": ("input.input", ())}
    for i in range(config.mapping_layers):
        table |= {f"mapping.layers.{i}.{part}": (f"style.{i + 1}.{part}", ()) for part in ("weight", "bias")}
    convs, to_rgbs = {"4.conv1": "conv1"}, {"4.to_rgb": "to_rgb1"}
    for k, r in enumerate(config.resolutions[1:]):
        convs |= {f"{r}.conv0": f"convs.{2 * k}", f"{r}.conv1": f"convs.{2 * k + 1}"}
        to_rgbs[f"{r}.to_rgb"] = f"to_rgbs.{k}"
    for layers, parts in ((convs, _CONV), (to_rgbs, _TO_RGB)):
        for ours, theirs in layers.items():
            table |= {
                f"synthesis.blocks.{ours}.{part}": (f"{theirs}.{name}", axes) for part, (name, axes) in parts.items()
            }
    for i, ours in enumerate(convs):
        table[f"synthesis.blocks.{ours}.noise_const"] = (f"noises.noise_{i}", (0, 0))
    return table


def _nvidia_table(config: GeneratorConfig) -> _Table:
    table: _Table = {}
    for ours in _rosinality_table(config):
        table[ours] = ours.replace("layers.", "fc").replace("blocks.", "b").replace("to_rgb", "torgb"), ()
    return table | {"synthesis.const": ("synthesis.b4.const", ())}


def _is_kernel(key: str) -> bool:
    return key.endswith((".kernel", "resample_filter"))


def _rename(official: Mapping[str, Tensor], table: _Table, what: str, drawn: Mapping[str, Tensor] = {}) -> StateDict:
    """Rename the tensors of a file; `drawn` has those, under our names, that it need not hold."""
    missing = [theirs for ours, (theirs, _) in table.items() if theirs not in official and ours not in drawn]
    known = {theirs for theirs, _ in table.values()}
    unexpected = [key for key in official if key not in known and not _is_kernel(key)]
    if missing or unexpected:
        raise CheckpointError(f"Not {what}: missing {missing[:5]}, unexpected {unexpected[:5]}.")
    kernel = blur_kernel()
    for key in filter(_is_kernel, official):
        found = official[key].float()
        if found.shape != kernel.shape or not torch.allclose(found / found.sum(), kernel, atol=1e-6):
            raise CheckpointError(f"{key} is not the blur filter [1, 3, 3, 1]; other filters are not supported.")
    renamed = dict(drawn)
    for ours, (theirs, axes) in table.items():
        if theirs in official:
            renamed[ours] = official[theirs]
            for axis in reversed(axes):
                renamed[ours] = renamed[ours].squeeze(axis)
    return renamed


def has_noise(official: Mapping[str, Tensor]) -> bool:
    """Tell whether a generator of either format holds its constant noise; older code drew it anew for each image."""
    return any(key.startswith("noises.") or key.endswith(".noise_const") for key in official)


def _draw_noise(config: GeneratorConfig) -> StateDict:
    """Draw constant noise under our names from a fixed seed, standard normal as in a new generator."""
    rng = latents.random_source(0)
    sides = {name: int(name.split(".")[2]) for name in _rosinality_table(config) if name.endswith("noise_const")}
    return {name: latents.normal(rng, side, side) for name, side in sides.items()}


def generator_from_official(
    official: Mapping[str, Tensor], *, latent_avg: Tensor | None = None
) -> tuple[GeneratorConfig, StateDict]:
    """Read a generator of rosinality (`g_ema`, or the `decoder.` part of pSp and e4e) or of NVIDIA: config, state dict.

    Constant noise, if it has none at all, is drawn from a seed. `latent_avg`, (w_dim,) or (num_ws, w_dim), is the
    average w for one that has none (`mapping.w_avg`); `None` gives zeros.

    Raises:
        CheckpointError: If it is another network, architecture or shape of image, or its blur filter is another one.
    """
    own = {key: tensor for key, tensor in official.items() if key != "mapping.w_avg"}
    read = _from_nvidia if MARKS[1] in own else _from_rosinality
    config, converted = read(own)
    w_dim = config.w_dim
    w_avg = official.get("mapping.w_avg", latent_avg)
    w_avg = torch.zeros(w_dim, device="cpu", dtype=torch.float32) if w_avg is None else w_avg
    if w_avg.ndim not in (1, 2) or not len(w_avg) or w_avg.shape[-1] != w_dim:
        raise CheckpointError(f"`latent_avg` must be ({w_dim},) or (num_ws, {w_dim}), got {tuple(w_avg.shape)}.")
    return config, {**converted, "w_avg": w_avg.reshape(-1, w_dim)[0]}


def _from_rosinality(official: StateDict) -> tuple[GeneratorConfig, StateDict]:
    blocks = _count(official, r"to_rgb(1|s\.\d+)\.conv\.weight")
    convs = ["conv1.conv.weight", *(f"convs.{2 * k + 1}.conv.weight" for k in range(blocks - 1))]
    layers = _count(official, r"style\.\d+\.weight")
    config = _config(official["input.input"], official["style.1.weight"], layers, [official[conv] for conv in convs])
    noise = {} if has_noise(official) else _draw_noise(config)
    return config, _rename(official, _rosinality_table(config), "a StyleGAN2 generator in rosinality's format", noise)


def _from_nvidia(official: StateDict) -> tuple[GeneratorConfig, StateDict]:
    const = "synthesis.b4.const"
    convs = [f"synthesis.b{4 * 2**k}.conv1.weight" for k in range(_count(official, r"synthesis\.b\d+\.conv1\.weight"))]
    layers = _count(official, r"mapping\.fc\d+\.weight")
    config = _config(official[const], official["mapping.fc0.weight"], layers, [official[conv] for conv in convs])
    noise = {} if has_noise(official) else _draw_noise(config)
    if noise and not any(key.endswith(".noise_strength") for key in official):  # `use_noise=False`: it gets no noise
        noise |= {key.replace("_const", "_strength"): tensor.new_zeros(()) for key, tensor in noise.items()}
    official = official | {const: official[const].reshape(1, -1, 4, 4)}
    return config, _rename(official, _nvidia_table(config), "NVIDIA's StyleGAN2 generator", noise)


def _count(official: StateDict, pattern: str) -> int:
    return sum(bool(re.fullmatch(pattern, key)) for key in official)


def _config(const: Tensor, mapping: Tensor, mapping_layers: int, convs: list[Tensor]) -> GeneratorConfig:
    """Read the sizes from the constant, the mapping network's first layer and the last convolution of each side."""
    height, width = const.shape[-2:]
    if (height, width) != (4, 4):
        drawn = f"{height * 2 ** len(convs) // 2} x {width * 2 ** len(convs) // 2} pixels (height x width)"
        raise CheckpointError(
            f"It is a generator that draws {drawn}; only square ones that begin with 4 x 4 pixels are supported."
        )
    widths = {4 * 2**k: conv.shape[-4] for k, conv in enumerate(convs)}
    w_dim, z_dim = mapping.shape
    base, limit = max(r * width for r, width in widths.items()), max(widths.values())
    config = GeneratorConfig(max(widths), z_dim, w_dim, mapping_layers, channel_base=base, channel_max=limit)
    if any(config.channels(r) != width for r, width in widths.items()):
        raise CheckpointError(f"The generator's widths {widths} are not min(base / side, max) for any base and max.")
    return config


def generator_to_rosinality(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> tuple[StateDict, Tensor]:
    """Write our generator in rosinality's names, with blur filters, and `latent_avg`, (w_dim,); exact to the bit."""
    official: StateDict = {}
    for ours, (theirs, axes) in _rosinality_table(config).items():
        official[theirs] = state_dict[ours]
        for axis in axes:
            official[theirs] = official[theirs].unsqueeze(axis)
    for k in range(len(config.resolutions) - 1):
        official[f"convs.{2 * k}.conv.blur.kernel"] = blur_kernel() * 4
        official[f"to_rgbs.{k}.upsample.kernel"] = blur_kernel() * 4
    return official, state_dict["w_avg"]


def generator_to_nvidia(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> StateDict:
    """Write our generator in the names of NVIDIA's; exact to the bit.

    Load it there with `Generator(z_dim, 0, w_dim, resolution, 3, mapping_kwargs=dict(num_layers=...),
    synthesis_kwargs=dict(channel_base=..., channel_max=...)).load_state_dict(...)`.
    """
    official = {theirs: state_dict[ours] for ours, (theirs, _) in _nvidia_table(config).items()}
    official |= {"synthesis.b4.const": state_dict["synthesis.const"][0], "mapping.w_avg": state_dict["w_avg"]}
    for side in config.resolutions:
        for part in ("", "conv1.") if side == 4 else ("", "conv0.", "conv1."):
            official[f"synthesis.b{side}.{part}resample_filter"] = blur_kernel()
    return official


@torch.no_grad()
def average_w(config: GeneratorConfig, state_dict: Mapping[str, Tensor], *, samples: int) -> Tensor:
    """Compute the average of w over z, as the training code of pSp and e4e does where a file has none.

    `state_dict` is ours; z are drawn from a fixed seed. Returns (w_dim,), float32.
    """
    with torch.device("meta"):
        mapping = MappingNetwork(config)
    own = storage.under(state_dict, "mapping.")
    mapping.load_state_dict({key: tensor.float() for key, tensor in own.items()}, assign=True)
    rng = latents.random_source(0)
    total = torch.zeros(config.w_dim, device="cpu", dtype=torch.float64)
    for start in range(0, samples, 5_000):
        z = latents.normal(rng, min(5_000, samples - start), config.z_dim)
        total += mapping(z).double().sum(dim=0)
    return (total / samples).float()


def discriminator_from_rosinality(official: Mapping[str, Tensor]) -> tuple[DiscriminatorConfig, StateDict]:
    """Read rosinality's discriminator (`d` of a training snapshot), or raise `CheckpointError`."""
    blocks = sum(key.startswith("convs.") and key.endswith(".skip.1.weight") for key in official)
    sides = [4 * 2**k for k in range(blocks, 0, -1)]
    layers = {"from_rgb": ("convs.0.0", "convs.0.1"), "conv": ("final_conv.0", "final_conv.1")}
    layers |= {"fc": ("final_linear.0",) * 2, "out": ("final_linear.1",) * 2}
    table: _Table = {}
    for k, side in enumerate(sides, start=1):
        layers[f"blocks.{side}.conv0"] = (f"convs.{k}.conv1.0", f"convs.{k}.conv1.1")
        layers[f"blocks.{side}.conv1"] = (f"convs.{k}.conv2.1", f"convs.{k}.conv2.2")
        table[f"blocks.{side}.skip.weight"] = (f"convs.{k}.skip.1.weight", ())
    for ours, (weight, bias) in layers.items():
        table |= {f"{ours}.weight": (f"{weight}.weight", ()), f"{ours}.bias": (f"{bias}.bias", ())}
    convs = ["convs.0.0.weight", *(f"convs.{k}.conv2.1.weight" for k in range(1, blocks + 1))]
    widths = {side: official[conv].shape[0] for side, conv in zip([*sides, 4], convs)}
    config = DiscriminatorConfig(sides[0], max(r * width for r, width in widths.items()), max(widths.values()))
    return config, _rename(official, table, "a StyleGAN2 discriminator in rosinality's format")
