"""StyleGAN2 generators and discriminators: rosinality's and NVIDIA's key names <-> ours.

Formats: rosinality/stylegan2-pytorch `model.py` (MIT), which pSp and e4e use for their decoder too, and the modules
of NVlabs/stylegan2-ada-pytorch `training/networks.py`. A format is a table from our names to theirs; sizes are read
from the tensors. The numbers are the same in all three: only names and shapes differ.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import DiscriminatorConfig
from stylegan_inversion.models.generator import GeneratorConfig
from stylegan_inversion.ops import blur_kernel

StateDict = dict[str, Tensor]


def _rosinality_table(config: GeneratorConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our name -> (their name, the axes of size 1 that their tensor has on top of ours)."""
    table: dict[str, tuple[str, tuple[int, ...]]] = {"synthesis.const": ("input.input", ())}
    for i in range(config.mapping_layers):
        for part in ("weight", "bias"):
            table[f"mapping.layers.{i}.{part}"] = (f"style.{i + 1}.{part}", ())
    convs = [("4.conv1", "conv1")]
    to_rgbs = [("4", "to_rgb1")]
    for k, r in enumerate(config.resolutions[1:]):
        convs += [(f"{r}.conv0", f"convs.{2 * k}"), (f"{r}.conv1", f"convs.{2 * k + 1}")]
        to_rgbs.append((str(r), f"to_rgbs.{k}"))
    for i, (block, theirs) in enumerate(convs):
        ours = f"synthesis.blocks.{block}"
        table[f"{ours}.weight"] = (f"{theirs}.conv.weight", (0,))
        table[f"{ours}.bias"] = (f"{theirs}.activate.bias", ())
        table[f"{ours}.noise_strength"] = (f"{theirs}.noise.weight", (0,))
        table[f"{ours}.noise_const"] = (f"noises.noise_{i}", (0, 0))
        for part in ("weight", "bias"):
            table[f"{ours}.affine.{part}"] = (f"{theirs}.conv.modulation.{part}", ())
    for block, theirs in to_rgbs:
        ours = f"synthesis.blocks.{block}.to_rgb"
        table[f"{ours}.weight"] = (f"{theirs}.conv.weight", (0,))
        table[f"{ours}.bias"] = (f"{theirs}.bias", (0, 2, 3))
        for part in ("weight", "bias"):
            table[f"{ours}.affine.{part}"] = (f"{theirs}.conv.modulation.{part}", ())
    return table


def _rosinality_config(state_dict: Mapping[str, Tensor]) -> GeneratorConfig:
    blocks = sum(key.startswith("to_rgbs.") and key.endswith(".conv.weight") for key in state_dict)
    resolution = 4 * 2**blocks
    _check_square(state_dict.get("input.input"), resolution)
    layers = sum(key.startswith("style.") and key.endswith(".weight") for key in state_dict)
    try:
        w_dim, z_dim = state_dict["style.1.weight"].shape
        widths = {4: state_dict["conv1.conv.weight"].shape[1]}
        widths |= {8 * 2**k: state_dict[f"convs.{2 * k + 1}.conv.weight"].shape[1] for k in range(blocks)}
    except KeyError as e:
        raise CheckpointError(f"Not a StyleGAN2 generator in rosinality's format: tensor {e} is missing.") from e
    except (ValueError, IndexError) as e:
        raise CheckpointError(f"Not a StyleGAN2 generator in rosinality's format: {e}") from e
    return _config(resolution, z_dim, w_dim, layers, widths)


def _check_square(const: Tensor | None, resolution: int) -> None:
    """Refuse a generator that does not begin with 4 x 4 pixels, and so draws another shape than a square."""
    if const is None or const.ndim < 3:
        return
    height, width = const.shape[-2:]
    if (height, width) != (4, 4):
        drawn = f"{height * resolution // 4} x {width * resolution // 4}"
        shape = "only square ones are" if height != width else "only those that begin with 4 x 4 pixels are"
        raise CheckpointError(f"It is a generator that draws {drawn} pixels (height x width); {shape} supported.")


def _config(resolution: int, z_dim: int, w_dim: int, layers: int, widths: Mapping[int, int]) -> GeneratorConfig:
    """The config whose widths are min(channel_base / side, channel_max)."""
    try:
        base, limit = max(r * width for r, width in widths.items()), max(widths.values())
        config = GeneratorConfig(resolution, z_dim, w_dim, layers, channel_base=base, channel_max=limit)
    except ValueError as e:
        raise CheckpointError(f"Not a StyleGAN2 generator: {e}") from e
    if any(config.channels(r) != width for r, width in widths.items()):
        raise CheckpointError(
            f"The generator's widths {dict(widths)} are not min(base / side, max) for any base and max."
        )
    return config


def _check_kernels(state_dict: Mapping[str, Tensor]) -> None:
    for key, tensor in state_dict.items():
        if key.endswith((".kernel", "resample_filter")):
            kernel = blur_kernel()
            if tensor.shape != kernel.shape or not torch.allclose(
                tensor.float() / tensor.float().sum(), kernel, atol=1e-6
            ):
                raise CheckpointError(f"{key} is not the blur filter [1, 3, 3, 1]; other filters are not supported.")


def has_noise(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether a generator of either format holds its constant noise. Older code drew it anew for each picture."""
    return any(key.startswith("noises.") or key.endswith(".noise_const") for key in state_dict)


def _draw_noise(config: GeneratorConfig, *, seed: int = 0) -> StateDict:
    """Constant noise under our names, standard normal as in a new generator."""
    rng = latents.random_source(seed)
    sides = {"4.conv1": 4} | {f"{r}.{conv}": r for r in config.resolutions[1:] for conv in ("conv0", "conv1")}
    return {
        f"synthesis.blocks.{layer}.noise_const": torch.randn(r, r, generator=rng, device="cpu", dtype=torch.float32)
        for layer, r in sides.items()
    }


def _take(
    state_dict: Mapping[str, Tensor],
    table: Mapping[str, tuple[str, tuple[int, ...]]],
    what: str,
    made_up: Mapping[str, Tensor] | None = None,
) -> StateDict:
    """Rename the tensors of a file; `made_up` has those, under our names, that it need not hold."""
    taken = dict(made_up or {})
    missing = [theirs for ours, (theirs, _) in table.items() if theirs not in state_dict and ours not in taken]
    known = {theirs for theirs, _ in table.values()}
    unexpected = [k for k in state_dict if k not in known and not k.endswith((".kernel", "resample_filter"))]
    if missing or unexpected:
        raise CheckpointError(f"Not {what}: missing {missing[:5]}, unexpected {unexpected[:5]}.")
    for ours, (theirs, axes) in table.items():
        if theirs not in state_dict:
            continue
        tensor = state_dict[theirs]
        for axis in reversed(axes):
            tensor = tensor.squeeze(axis)
        taken[ours] = tensor
    return taken


def generator_from_rosinality(
    state_dict: Mapping[str, Tensor], *, latent_avg: Tensor | None = None
) -> tuple[GeneratorConfig, StateDict]:
    """Read rosinality's generator (`g_ema`, or the `decoder.` part of pSp and e4e).

    Constant noise, if the file has none at all, is drawn from a seed.

    Args:
        state_dict: The official state dict.
        latent_avg: The average w, (w_dim,) or (1, w_dim) or (num_ws, w_dim); the checkpoint has it beside the state
            dict. `None` gives zeros: call the mapping network on many z to fill it.

    Returns:
        The config, read from the tensors, and our state dict.

    Raises:
        CheckpointError: If a tensor is missing or unexpected, or the blur filter is another one.
    """
    config = _rosinality_config(state_dict)
    _check_kernels(state_dict)
    noise = {} if has_noise(state_dict) else _draw_noise(config)
    converted = _take(state_dict, _rosinality_table(config), "a StyleGAN2 generator in rosinality's format", noise)
    w_avg = torch.zeros(config.w_dim, device="cpu", dtype=torch.float32) if latent_avg is None else latent_avg
    if w_avg.ndim not in (1, 2) or not len(w_avg) or w_avg.shape[-1] != config.w_dim:
        raise CheckpointError(
            f"`latent_avg` must be ({config.w_dim},) or (num_ws, {config.w_dim}), got {tuple(w_avg.shape)}."
        )
    w_avg = w_avg.reshape(-1, config.w_dim)[0]
    return config, {**converted, "w_avg": w_avg}


def generator_to_rosinality(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> tuple[StateDict, Tensor]:
    """Write our generator in rosinality's names; the inverse of `generator_from_rosinality`, to the bit.

    Returns:
        The official state dict, blur filters included, and `latent_avg`, (w_dim,).
    """
    official: StateDict = {}
    for ours, (theirs, axes) in _rosinality_table(config).items():
        tensor = state_dict[ours]
        for axis in axes:
            tensor = tensor.unsqueeze(axis)
        official[theirs] = tensor
    for k in range(len(config.resolutions) - 1):
        official[f"convs.{2 * k}.conv.blur.kernel"] = blur_kernel() * 4
        official[f"to_rgbs.{k}.upsample.kernel"] = blur_kernel() * 4
    return official, state_dict["w_avg"]


def _nvidia_table(config: GeneratorConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    table: dict[str, tuple[str, tuple[int, ...]]] = {"w_avg": ("mapping.w_avg", ())}
    table["synthesis.const"] = ("synthesis.b4.const", ())
    for i in range(config.mapping_layers):
        for part in ("weight", "bias"):
            table[f"mapping.layers.{i}.{part}"] = (f"mapping.fc{i}.{part}", ())
    conv = ("weight", "bias", "noise_strength", "noise_const", "affine.weight", "affine.bias")
    for r in config.resolutions:
        layers = {"conv1": conv, "to_rgb": ("weight", "bias", "affine.weight", "affine.bias")}
        if r > 4:
            layers["conv0"] = conv
        for layer, parts in layers.items():
            for part in parts:
                theirs = f"synthesis.b{r}.{layer.replace('_', '')}.{part}"
                table[f"synthesis.blocks.{r}.{layer}.{part}"] = (theirs, ())
    return table


def generator_from_nvidia(state_dict: Mapping[str, Tensor]) -> tuple[GeneratorConfig, StateDict]:
    """Read the state dict of NVIDIA's StyleGAN2 generator (stylegan2-ada-pytorch, or StyleGAN2 in stylegan3).

    Constant noise, if the file has none at all, is drawn from a seed.

    Raises:
        CheckpointError: If it is conditional (`mapping.embed`), not the skip architecture, or a tensor is missing.
    """
    if "mapping.embed.weight" in state_dict:
        raise CheckpointError("Conditional generators are not supported: the state dict has `mapping.embed`.")
    if "synthesis.b4.const" not in state_dict:
        raise CheckpointError("Not NVIDIA's StyleGAN2 generator: tensor 'synthesis.b4.const' is missing.")
    state_dict = dict(state_dict)
    const = state_dict["synthesis.b4.const"]
    state_dict["synthesis.b4.const"] = const[None] if const.ndim == 3 else const
    sides = [2**k for k in range(2, 12) if f"synthesis.b{2**k}.torgb.weight" in state_dict]
    if not sides:
        raise CheckpointError("Not NVIDIA's StyleGAN2 generator of the skip architecture: it has no `torgb`.")
    _check_square(const, max(sides))
    layers = sum(key.startswith("mapping.fc") and key.endswith(".weight") for key in state_dict)
    try:
        w_dim, z_dim = state_dict["mapping.fc0.weight"].shape
        widths = {r: state_dict[f"synthesis.b{r}.conv1.weight"].shape[0] for r in sides}
    except KeyError as e:
        raise CheckpointError(f"Not NVIDIA's StyleGAN2 generator: tensor {e} is missing.") from e
    except (ValueError, IndexError) as e:
        raise CheckpointError(f"Not NVIDIA's StyleGAN2 generator: {e}") from e
    config = _config(max(sides), z_dim, w_dim, layers, widths)
    _check_kernels(state_dict)
    made_up: StateDict = {}
    if not has_noise(state_dict):
        made_up = _draw_noise(config)
        if not any(key.endswith(".noise_strength") for key in state_dict):  # `use_noise=False`: it never gets any
            made_up |= {key.replace("_const", "_strength"): noise.new_zeros(()) for key, noise in made_up.items()}
    return config, _take(state_dict, _nvidia_table(config), "NVIDIA's StyleGAN2 generator", made_up)


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


def discriminator_from_rosinality(state_dict: Mapping[str, Tensor]) -> tuple[DiscriminatorConfig, StateDict]:
    """Read rosinality's discriminator (`d` of a training snapshot).

    Raises:
        CheckpointError: If a tensor is missing or unexpected, or the blur filter is another one.
    """
    blocks = sum(key.startswith("convs.") and key.endswith(".skip.1.weight") for key in state_dict)
    resolution = 4 * 2**blocks
    try:
        widths = {resolution: state_dict["convs.0.0.weight"].shape[0]}
        widths |= {resolution // 2**k: state_dict[f"convs.{k}.conv2.1.weight"].shape[0] for k in range(1, blocks + 1)}
        base, limit = max(r * width for r, width in widths.items()), max(widths.values())
        config = DiscriminatorConfig(resolution, base, limit)
    except (KeyError, ValueError, IndexError) as e:
        raise CheckpointError(f"Not a StyleGAN2 discriminator in rosinality's format: {e}.") from e
    table = {"from_rgb.weight": "convs.0.0.weight", "from_rgb.bias": "convs.0.1.bias"}
    for k in range(blocks):
        ours, theirs = f"blocks.{resolution // 2**k}", f"convs.{k + 1}"
        table |= {f"{ours}.conv0.weight": f"{theirs}.conv1.0.weight", f"{ours}.conv0.bias": f"{theirs}.conv1.1.bias"}
        table |= {f"{ours}.conv1.weight": f"{theirs}.conv2.1.weight", f"{ours}.conv1.bias": f"{theirs}.conv2.2.bias"}
        table[f"{ours}.skip.weight"] = f"{theirs}.skip.1.weight"
    table |= {"conv.weight": "final_conv.0.weight", "conv.bias": "final_conv.1.bias"}
    for ours, theirs in (("fc", "final_linear.0"), ("out", "final_linear.1")):
        table |= {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
    _check_kernels(state_dict)
    what = "a StyleGAN2 discriminator in rosinality's format"
    return config, _take(state_dict, {ours: (theirs, ()) for ours, theirs in table.items()}, what)
