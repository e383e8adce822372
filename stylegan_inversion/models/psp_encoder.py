"""pSp: the feature-pyramid encoder into W+.

Paper: Richardson et al. 2021, "Encoding in Style", arXiv:2008.00951 (figure 2). Original code:
eladrich/pixel2style2pixel (MIT). Own code. Departure: the average w is a buffer of the encoder and is added inside.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion import latents
from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.models.irse import IRSEBackbone, IRSEConfig, Pyramid
from stylegan_inversion.models.layers import EqualLinear


@dataclass(frozen=True)
class EncoderConfig(BoundedConfig):
    """Sizes that all encoders have. The defaults are the released encoders' for a generator of 1024 px."""

    output_resolution: int = number(1024, 4, 2048)  # side of the generator's image: sets how many w there are
    input_resolution: int = number(256, 32, 2048)  # side of the encoder's image, a power of two
    w_dim: int = number(512, 1, 4096)
    in_channels: int = number(3, 1, 512)
    widths: tuple[int, ...] = number((64, 128, 256, 512), 1, 4096, count=4)
    units: tuple[int, ...] = number((3, 4, 14, 3), 1, 100, count=4)
    reduction: int = number(16, 0, 4096)

    def __post_init__(self) -> None:
        super().__post_init__()
        latents.num_ws(self.output_resolution)
        if self.input_resolution not in {2**k for k in range(5, 12)}:
            raise ValueError(f"`input_resolution` must be a power of two from 32 to 2048, got {self.input_resolution}.")
        self.backbone  # noqa: B018  checks the rest

    @property
    def num_ws(self) -> int:
        """Number of w that the encoder gives."""
        return latents.num_ws(self.output_resolution)

    @property
    def backbone(self) -> IRSEConfig:
        """Sizes of the backbone."""
        return IRSEConfig(self.in_channels, tuple(self.widths), tuple(self.units), self.reduction)


@dataclass(frozen=True)
class PyramidEncoderConfig(EncoderConfig):
    """Sizes of an encoder into W+ that reads a feature pyramid: pSp's and e4e's."""

    coarse_end: int = number(3, 1, 20)  # styles [0, 3) read c3, [3, 7) read p2, the others p1
    middle_end: int = number(7, 1, 20)
    style_channels: int | None = number(None, 1, 4096)  # of map2style's convolutions; None is w_dim, as in the paper

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coarse_end > self.middle_end:
            raise ValueError(
                f"`coarse_end` must be in [1, middle_end], got {self.coarse_end} with middle_end={self.middle_end}."
            )


class MapToStyle(nn.Module):
    """map2style: convolutions of stride 2 down to one pixel, then a linear layer (paper, figure 2)."""

    def __init__(self, in_channels: int, channels: int, w_dim: int, side: int) -> None:
        super().__init__()
        num_convs = side.bit_length() - 1
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.linear = EqualLinear(channels, w_dim)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch w_dim"]:
        """Map features of the side it was built for, or less high, to one w."""
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.01)
        return self.linear(x.flatten(1))


class StylePyramid(nn.Module):
    """What pSp and e4e share: the backbone, the lateral connections, and one map2style for each layer."""

    w_avg: Tensor

    def __init__(self, config: PyramidEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = IRSEBackbone(config.backbone)
        c1, c2, c3 = config.widths[1:]
        self.lateral2 = nn.Conv2d(c2, c3, 1)
        self.lateral1 = nn.Conv2d(c1, c3, 1)
        sides = [config.input_resolution // 16] * config.coarse_end
        sides += [config.input_resolution // 8] * (config.middle_end - config.coarse_end)
        sides += [config.input_resolution // 4] * max(0, config.num_ws - config.middle_end)
        channels = config.style_channels or config.w_dim
        self.styles = nn.ModuleList(MapToStyle(c3, channels, config.w_dim, side) for side in sides[: config.num_ws])
        self.register_buffer("w_avg", torch.zeros(config.num_ws, config.w_dim))

    def levels(self, pyramid: Pyramid) -> list[Tensor]:
        """List the feature map that each style reads, coarsest first: c3, p2 or p1."""
        config = self.config
        p2 = _upsample_to(pyramid.c3, pyramid.c2) + self.lateral2(pyramid.c2)
        p1 = _upsample_to(p2, pyramid.c1) + self.lateral1(pyramid.c1)
        maps = [pyramid.c3] * config.coarse_end + [p2] * (config.middle_end - config.coarse_end)
        return (maps + [p1] * config.num_ws)[: config.num_ws]


def _upsample_to(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class GradualStyleEncoder(nn.Module):
    """pSp's encoder: images -> w_plus, each style from its own level of the pyramid."""

    def __init__(self, config: PyramidEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.pyramid = StylePyramid(config)

    @property
    def w_avg(self) -> Float[Tensor, "num_ws w_dim"]:
        """The average w that is added to every output."""
        return self.pyramid.w_avg

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch num_ws w_dim"]:
        """Encode images, (B, 3, H, S), RGB, in [-1, 1], S = `input_resolution`, H <= S. `w_avg` is included."""
        maps = self.pyramid.levels(self.pyramid.backbone(x))
        styles = [style(features) for style, features in zip(self.pyramid.styles, maps)]
        return torch.stack(styles, dim=1) + self.w_avg
