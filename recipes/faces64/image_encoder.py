"""The small encoder that gives a generator's decoder its w while it is trained as an autoencoder.

Own design, no paper: a linear part, which begins as the principal components of the training pictures, and a
convolutional part, which begins at zero; w is their sum, scaled to a mean square of 1. It is a means of training: for
inversion there are the encoders of pSp and e4e.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion.bounds import check_bounds, number

LINEAR_RESOLUTION = 32  # side to which pictures are pooled for the linear part, at most


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Sizes of the encoder."""

    input_resolution: int = number(64, 16, 2048)  # side of the pictures, a multiple of 16
    w_dim: int = number(512, 1, 4096)
    widths: tuple[int, ...] = number(
        (32, 96, 160, 256), 1, 4096, count=4
    )  # channels at 1/2, 1/4, 1/8, 1/16 of the side

    def __post_init__(self) -> None:
        """Check the values."""
        check_bounds(self)
        if self.input_resolution % 16:
            raise ValueError(f"`input_resolution` must be a multiple of 16, got {self.input_resolution}.")

    @property
    def linear_resolution(self) -> int:
        """Side of what the linear part sees: the largest of 32, 16, ... that divides the input's."""
        return math.gcd(self.input_resolution, LINEAR_RESOLUTION)


class ImageEncoder(nn.Module):
    """Picture -> w, of mean square 1."""

    mean: Tensor

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels = 3
        for width in config.widths:
            for stride in (2, 1):
                layers += [
                    nn.Conv2d(channels, width, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.LeakyReLU(0.2),
                ]
                channels = width
        self.convs = nn.Sequential(*layers)
        self.head = nn.Linear(channels * (config.input_resolution // 16) ** 2, config.w_dim)
        pixels = 3 * config.linear_resolution**2
        self.linear = nn.Linear(pixels, config.w_dim, bias=False)
        self.register_buffer("mean", torch.zeros(pixels))

    def pixels(self, x: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch pixels"]:
        """What the linear part sees."""
        return F.adaptive_avg_pool2d(x, self.config.linear_resolution).flatten(1)

    def forward(self, x: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch w_dim"]:
        """Encode pictures, RGB, in [-1, 1], of any side that pools to `input_resolution`."""
        x = F.adaptive_avg_pool2d(x, self.config.input_resolution)
        w = self.head(self.convs(x).flatten(1)) + self.linear(self.pixels(x) - self.mean)
        return w * (w.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()

    @torch.no_grad()
    def start_from_components(self, pictures: Float[Tensor, "count pixels"], count: int) -> None:
        """Set the linear part to principal components, one an axis of w, and the convolutional part to 0.

        Each is divided by the square root of its deviation: halfway between leaving the first ones to rule and giving
        all the same weight. Along the axes, Adam can give each its own pace; in random directions it learns slower.

        Args:
            pictures: `pixels` of training pictures, more than `count`.
            count: How many components, in [1, w_dim].

        Raises:
            ValueError: If `count` is out of range or there are too few pictures.
        """
        if not 1 <= count <= min(self.config.w_dim, pictures.shape[1]):
            raise ValueError(
                f"`count` must be in [1, {min(self.config.w_dim, pictures.shape[1])}], the size of w or of the "
                f"pictures, got {count}."
            )
        if len(pictures) <= count:
            raise ValueError(f"{count} components need more than {count} pictures, got {len(pictures)}.")
        mean = pictures.mean(dim=0)
        centred = pictures - mean
        variance, components = torch.linalg.eigh((centred.T.double() @ centred.double()) / len(pictures))
        variance, components = variance[-count:].float(), components[:, -count:].float()  # the largest
        weight = (components * variance.clamp(min=1e-6) ** -0.25).T  # (count, pixels)
        size = (centred @ weight.T).square().sum(dim=1).mean().sqrt() / self.config.w_dim**0.5
        nn.init.zeros_(self.linear.weight)
        self.linear.weight[:count] = weight / size
        self.mean.copy_(mean)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
