"""The StyleGAN2 generator: mapping network z -> w, synthesis network w+ -> image.

Paper: Karras et al. 2020, arXiv:1912.04958 (skip generator, figure 7b). Original code: NVlabs/stylegan2 and
NVlabs/stylegan2-ada-pytorch (NVIDIA Source Code Licence). pSp, e4e and most checkpoints use the PyTorch port
rosinality/stylegan2-pytorch (MIT). Own code. `checkpoints/generator.py` reads both formats.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion import latents, ops, storage
from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.models.layers import EqualLinear, NoiseMode, StyledConv, ToRGB, channels_last_is_fast


@dataclass(frozen=True)
class GeneratorConfig(BoundedConfig):
    """Sizes of a generator. The defaults are config-f at 1024 px, as released for FFHQ."""

    resolution: int = number(1024, 16, 2048)  # side of the image, a power of two
    z_dim: int = number(512, 1, 4096)
    w_dim: int = number(512, 1, 4096)
    mapping_layers: int = number(8, 1, 64)  # 8 in StyleGAN2, 2 in some of StyleGAN2-ADA's configurations
    mapping_lr_multiplier: float = number(0.01, 1e-6, 1e3)
    channel_base: int = number(32768, 16, 2**20)  # a layer of side r has min(channel_base / r, channel_max) channels
    channel_max: int = number(512, 1, 4096)

    def __post_init__(self) -> None:
        super().__post_init__()
        latents.num_ws(self.resolution)
        if self.channel_base < self.resolution:
            raise ValueError(f"`channel_base` must be in [resolution, 1048576], got {self.channel_base}.")

    @property
    def num_ws(self) -> int:
        """Number of w that the synthesis network takes."""
        return latents.num_ws(self.resolution)

    @property
    def resolutions(self) -> list[int]:
        """Sides of the blocks: 4, 8, ..., resolution."""
        return [2**k for k in range(2, self.resolution.bit_length())]

    @property
    def style_sizes(self) -> list[int]:
        """How many styles each style layer has: one for each of its input channels. In a row, they make S space."""
        sides = [4, *(side for r in self.resolutions[1:] for side in (r // 2, r))]
        return [self.channels(side) for side in sides]

    def channels(self, resolution: int) -> int:
        """Count the channels of the features at a side."""
        return min(self.channel_base // resolution, self.channel_max)


class MappingNetwork(nn.Module):
    """Map z to w: normalise z to unit mean square, then apply fully connected layers with leaky ReLU."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        sizes = [config.z_dim] + [config.w_dim] * config.mapping_layers
        self.layers = nn.ModuleList(
            EqualLinear(a, b, lr_multiplier=config.mapping_lr_multiplier, activation=True) for a, b in pairwise(sizes)
        )

    def forward(self, z: Float[Tensor, "batch z_dim"]) -> Float[Tensor, "batch w_dim"]:
        """Map standard normal z, (B, z_dim), to w, (B, w_dim)."""
        x = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            x = layer(x)
        return x


class SynthesisBlock(nn.Module):
    """The layers of one side: two style layers (one at 4 px) and a ToRGB."""

    conv0: StyledConv | None
    conv1: StyledConv
    to_rgb: ToRGB

    def __init__(self, config: GeneratorConfig, resolution: int) -> None:
        super().__init__()
        channels = config.channels(resolution)
        self.conv0 = (
            StyledConv(config.channels(resolution // 2), channels, resolution, config.w_dim, up=True)
            if resolution > 4
            else None
        )
        self.conv1 = StyledConv(channels, channels, resolution, config.w_dim)
        self.to_rgb = ToRGB(channels, config.w_dim)


class SynthesisNetwork(nn.Module):
    """Map w+ to an image."""

    style_offset: Tensor | None = None  # see `Generator.with_styles`

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.num_ws = config.num_ws
        self.style_sizes = config.style_sizes
        self.const = nn.Parameter(torch.randn(1, config.channels(4), 4, 4))
        self.blocks = nn.ModuleDict({str(r): SynthesisBlock(config, r) for r in config.resolutions})

    @property
    def _blocks(self) -> list[SynthesisBlock]:
        return [cast(SynthesisBlock, block) for block in self.blocks.values()]

    @property
    def convs(self) -> list[StyledConv]:
        """The num_ws - 1 style layers, which take noise, coarsest first."""
        return [conv for block in self._blocks for conv in (block.conv0, block.conv1) if conv is not None]

    def split_styles(
        self, styles: Float[Tensor, "b num_styles"] | Float[Tensor, " num_styles"] | None
    ) -> list[Float[Tensor, "b in_channels"] | None]:
        """Split what is added to the styles, which stand in a row, by style layers. `None` adds nothing."""
        if styles is None:
            return [None for _ in self.convs]
        return list(styles.to(self.const).reshape(-1, styles.shape[-1]).split(self.style_sizes, dim=1))

    def noise(
        self, mode: NoiseMode, *, batch: int = 1, rng: torch.Generator | None = None
    ) -> list[Float[Tensor, "b 1 h w"] | None]:
        """Make the noise of each style layer.

        Args:
            mode: "random" draws new noise for each sample, "const" takes the generator's buffers, "none" gives `None`s.
            batch: How many samples "random" draws.
            rng: Source of "random", on the generator's device. `None` takes PyTorch's own.
        """
        if mode == "none":
            return [None for _ in self.convs]
        if mode == "const":
            return [conv.noise_const[None, None] for conv in self.convs]
        if mode == "random":
            return [
                torch.randn(
                    (batch, 1, *conv.noise_const.shape),
                    generator=rng,
                    device=conv.noise_const.device,
                    dtype=conv.noise_const.dtype,
                )
                for conv in self.convs
            ]
        raise ValueError(f"`noise_mode` must be 'random', 'const' or 'none', got {mode!r}.")

    def forward(
        self,
        w_plus: Float[Tensor, "batch num_ws w_dim"],
        *,
        noise_mode: NoiseMode = "const",
        noise: Sequence[Tensor | None] | None = None,
        rng: torch.Generator | None = None,
        features: Float[Tensor, "batch channels side side"] | None = None,
        coarse: Float[Tensor, "batch 3 side side"] | None = None,
        styles: Float[Tensor, "b num_styles"] | None = None,
    ) -> Float[Tensor, "batch 3 resolution resolution"]:
        """Draw images, RGB, about [-1, 1] (not clamped).

        Samples go through together, not one by one: on one core four took 0.66 of the time at 64 px (and eight 0.58),
        0.90 at 128 px, 0.95 at 256 px, 0.99 at 512 and 1024 px, where two took 1.05.

        Args:
            w_plus: One w for each layer.
            noise_mode: See `noise`.
            noise: The noise itself, one tensor (1 or B, 1, r, r) for each style layer. Overrides `noise_mode`.
            rng: See `noise`.
            features: What the block after the one of their side reads in place of that one's own features. `None`
                replaces nothing.
            coarse: The picture so far, at the side of `features`, if `features_at` has drawn it. `None` draws it.
            styles: What is added to the styles of all style layers, in a row. `None` takes `style_offset`.

        Raises:
            ValueError: If `w_plus` or `noise` has the wrong number of layers, `features` fits no block, or `noise_mode`
                is unknown.
        """
        if w_plus.shape[1] != self.num_ws:
            raise ValueError(f"`w_plus` must have {self.num_ws} layers, got {w_plus.shape[1]}.")
        if noise is None:
            noise = self.noise(noise_mode, batch=len(w_plus), rng=rng)
        elif len(noise) != self.num_ws - 1:
            raise ValueError(f"`noise` must have {self.num_ws - 1} tensors, one a style layer, got {len(noise)}.")
        if features is not None and str(features.shape[-1]) not in self.blocks:
            raise ValueError(f"`features` must have a side out of {list(self.blocks)}, got {features.shape[-1]}.")
        styles = self.style_offset if styles is None else styles
        split = len(self.blocks) if features is None else features.shape[-1].bit_length() - 2
        if coarse is None or features is None:
            coarse = self._draw(w_plus, noise, styles, slice(split))[1]
        if features is not None:
            _, coarse = self._draw(w_plus, noise, styles, slice(split, None), features, coarse)
        return coarse.contiguous()

    def features_at(
        self,
        side: int,
        w_plus: Float[Tensor, "batch num_ws w_dim"],
        styles: Float[Tensor, " num_styles"] | None = None,
    ) -> tuple[Float[Tensor, "batch channels side side"], Float[Tensor, "batch 3 side side"]]:
        """Compute the features after the block of a side, and the picture so far, with the constant noise.

        `styles` is added to the styles, as in `forward`; here `None` adds nothing.
        """
        return self._draw(w_plus, self.noise("const"), styles, slice(side.bit_length() - 2))

    def _draw(
        self,
        w_plus: Tensor,
        noise: Sequence[Tensor | None],
        styles: Tensor | None,
        part: slice,
        x: Tensor | None = None,
        image: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Go through a part of the blocks, from the features and the picture before it on."""
        ws, offsets = w_plus.unbind(1), self.split_styles(styles)
        x = self.const.expand(len(w_plus), -1, -1, -1) if x is None else x
        if channels_last_is_fast(self.const):
            x = x.contiguous(memory_format=torch.channels_last)  # all layers keep it
        for k, block in list(enumerate(self._blocks))[part]:
            if block.conv0 is not None:
                x = block.conv0(x, ws[2 * k - 1], noise[2 * k - 1], offsets[2 * k - 1])
            x = block.conv1(x, ws[2 * k], noise[2 * k], offsets[2 * k])
            rgb = block.to_rgb(x, ws[2 * k + 1])  # the next block's first convolution shares this w
            image = rgb if image is None else ops.upsample_2x(image) + rgb
        assert image is not None
        return x, image


class Generator(nn.Module):
    """The mapping network, the synthesis network and the average w."""

    w_avg: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(config)
        self.synthesis = SynthesisNetwork(config)
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    @property
    def num_ws(self) -> int:
        """Number of w that the synthesis network takes."""
        return self.config.num_ws

    @property
    def style_offset(self) -> Float[Tensor, " num_styles"] | None:
        """What it adds to its styles, float64 on the CPU; `None` if nothing. See `with_styles`."""
        return storage.uncompiled(self.synthesis).style_offset

    @property
    def unstyled(self) -> "Generator":
        """The generator that `with_styles` was called on first; itself if it adds nothing to its styles."""
        return getattr(self, "_unstyled", (self,))[0]

    def with_styles(self, offset: Float[Tensor, " num_styles"] | None) -> "Generator":
        """The same generator, but with an offset on the styles of its style layers: an edit in S space.

        As style = A w + b, this is the same generator with other biases b. It shares all weights and moves with it.

        Args:
            offset: In the order of `config.style_sizes`; it replaces an earlier one. `None` or zeros give
                `unstyled`, the same object.

        Raises:
            ValueError: If there is not one finite number for each style.
        """
        plain, count = self.unstyled, sum(self.config.style_sizes)
        if offset is not None and offset.shape != (count,):
            raise ValueError(f"`offset` must have one number for each of {count} styles, got {tuple(offset.shape)}.")
        if offset is None or not offset.any():
            return plain
        if not offset.to(self.w_avg.dtype).isfinite().all():
            raise ValueError(f"`offset` must be finite in {self.w_avg.dtype}, got NaN, infinity or a number too large.")
        styled, synthesis = copy.copy(plain), copy.copy(storage.uncompiled(plain.synthesis))
        synthesis.style_offset = offset.detach().cpu().double()
        vars(styled).update(_modules={**plain._modules, "synthesis": synthesis}, _unstyled=(plain,))  # no part of it
        return styled

    @torch.no_grad()
    def sample_w(self, count: int, rng: torch.Generator, *, at_once: int = 1024) -> Float[Tensor, "count w_dim"]:
        """Map random z to w. `rng` draws them on the CPU; `at_once` go through the mapping network together."""
        z = latents.normal(rng, count, self.config.z_dim)
        return torch.cat([self.mapping(part.to(self.w_avg)) for part in z.split(at_once)])

    def styles_of(self, w_plus: Float[Tensor, "batch num_ws w_dim"]) -> Float[Tensor, "batch num_styles"]:
        """Compute the styles of codes, in the order of `config.style_sizes`: their place in S, without an offset."""
        convs = storage.uncompiled(self.synthesis).convs
        return torch.cat([conv.affine(w) for conv, w in zip(convs, w_plus.unbind(1))], dim=1)

    def has_the_w_of(self, other: "Generator") -> bool:
        """Tell whether codes of another generator mean the same here: the sizes and the average w are equal.

        Tuning does not change the average. One model in two floating-point types counts as the same.
        """
        return self.config == other.config and torch.allclose(
            self.w_avg.cpu().float(), other.w_avg.cpu().float(), rtol=0.01, atol=1e-3
        )

    def forward(
        self,
        z: Float[Tensor, "batch z_dim"],
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: NoiseMode = "const",
    ) -> Float[Tensor, "batch 3 resolution resolution"]:
        """Draw images from z, RGB, about [-1, 1]. See `latents.truncate` for the truncation."""
        w_plus = latents.broadcast(self.mapping(z), self.num_ws)
        w_plus = latents.truncate(
            w_plus, self.w_avg, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff
        )
        return self.synthesis(w_plus, noise_mode=noise_mode)
