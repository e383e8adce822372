"""Discriminators: StyleGAN2's for images, and e4e's for w.

Papers: Karras et al. 2020, arXiv:1912.04958 (residual discriminator, figure 7c); Tov et al. 2021, arXiv:2102.02766
(latent discriminator, section 4.2). Original code: rosinality/stylegan2-pytorch (MIT), omertov/encoder4editing
(MIT). Own code.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion import latents
from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.models.layers import EqualConv2d, EqualLinear


@dataclass(frozen=True)
class DiscriminatorConfig(BoundedConfig):
    """Sizes of StyleGAN2's discriminator. The defaults are config-f at 1024 px."""

    resolution: int = number(1024, 4, 2048)
    channel_base: int = number(32768, 4, 2**20)  # a layer of side r has min(channel_base / r, channel_max) channels
    channel_max: int = number(512, 1, 4096)
    group_size: int = number(4, 1, 4096)  # samples in a group of the minibatch standard deviation

    def __post_init__(self) -> None:
        super().__post_init__()
        latents.num_ws(self.resolution)
        if self.channel_base < self.resolution:
            raise ValueError(f"`channel_base` must be >= resolution, got {self.channel_base}.")

    def channels(self, resolution: int) -> int:
        """Count the channels of the features at a side."""
        return min(self.channel_base // resolution, self.channel_max)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EqualConv2d(in_channels, in_channels, 3)
        self.conv1 = EqualConv2d(in_channels, out_channels, 3, down=True)
        self.skip = EqualConv2d(in_channels, out_channels, 1, down=True, activation=False)

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels half_height half_width"]:
        """Add the convolutions and the skip path, divided by sqrt(2)."""
        return (self.conv1(self.conv0(x)) + self.skip(x)) / math.sqrt(2)


def append_minibatch_std(
    x: Float[Tensor, "batch channels height width"], group_size: int
) -> Float[Tensor, "batch channels_and_1 height width"]:
    """Append one channel: the mean standard deviation over groups of samples (ProGAN, arXiv:1710.10196, section 3).

    Raises:
        ValueError: If the batch is larger than a group and not a multiple of it.
    """
    batch, channels, height, width = x.shape
    group = min(batch, group_size)
    if batch % group:
        raise ValueError(f"The batch ({batch}) must be smaller than, or a multiple of, `group_size` ({group_size}).")
    y = x.view(group, batch // group, channels, height, width)
    std = (y.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # (batch / group,)
    return torch.cat([x, std.repeat(group).view(batch, 1, 1, 1).expand(-1, 1, height, width)], dim=1)


class Discriminator(nn.Module):
    """Map images to logits. High means real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        sides = [2**k for k in range(config.resolution.bit_length() - 1, 2, -1)]  # resolution, ..., 8
        self.from_rgb = EqualConv2d(3, config.channels(config.resolution), 1)
        self.blocks = nn.ModuleDict(
            {str(r): DiscriminatorBlock(config.channels(r), config.channels(r // 2)) for r in sides}
        )
        last = config.channels(4)
        self.conv = EqualConv2d(last + 1, last, 3)
        self.fc = EqualLinear(last * 16, last, activation=True)
        self.out = EqualLinear(last, 1)

    def forward(self, x: Float[Tensor, "batch 3 resolution resolution"]) -> Float[Tensor, " batch"]:
        """Judge images, (B, 3, R, R), RGB, in [-1, 1]."""
        x = self.from_rgb(x)
        for block in self.blocks.values():
            x = block(x)
        x = self.conv(append_minibatch_std(x, self.config.group_size))
        return self.out(self.fc(x.flatten(1))).squeeze(1)


@dataclass(frozen=True)
class LatentDiscriminatorConfig(BoundedConfig):
    """Sizes of e4e's latent discriminator."""

    w_dim: int = number(512, 1, 4096)
    num_layers: int = number(4, 1, 64)  # linear layers, the last one included


class LatentDiscriminator(nn.Module):
    """Map w to logits. High means "from the mapping network"."""

    def __init__(self, config: LatentDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for _ in range(config.num_layers - 1):
            layers += [nn.Linear(config.w_dim, config.w_dim), nn.LeakyReLU(0.2)]
        self.mlp = nn.Sequential(*layers, nn.Linear(config.w_dim, 1))

    def forward(self, w: Float[Tensor, "batch w_dim"]) -> Float[Tensor, " batch"]:
        """Judge w, (B, w_dim)."""
        return self.mlp(w).squeeze(1)
