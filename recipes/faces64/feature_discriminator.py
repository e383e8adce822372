"""A discriminator of few parameters: small heads on the features of a frozen network, and a small network of its own.

Paper: Sauer et al. 2021, "Projected GANs Converge Faster", arXiv:2111.01007, whose idea it is. Original code:
autonomousvision/projected-gan (MIT). Own code. Departures: features of any networks, without random projections over
channels and scales; each channel is brought to the mean 0 and deviation 1 of real pictures; a network of its own looks
at the picture besides; the score of an image is the sum over heads of the mean over pixels, so that the losses of
StyleGAN2 serve.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from stylegan_inversion.bounds import check_bounds, number

SMALLEST_SHARE = 0.01  # of the mean deviation of a layer's channels; what moves less is taken to stand still


@dataclass(frozen=True)
class FeatureDiscriminatorConfig:
    """Sizes of the heads."""

    channels: tuple[int, ...] = number(MISSING, 1, 8192, count=(1, 64))  # of the features, layer by layer
    width: int = number(64, 1, 4096)  # channels inside a head
    pixel_widths: tuple[int, ...] = number(
        (32, 64, 128, 128), 1, 4096, count=(1, 12)
    )  # of the network on the picture, at 1, 1/2, 1/4, ... of its side

    def __post_init__(self) -> None:
        """Check the values."""
        check_bounds(self)


class Standardize(nn.Module):
    """Brings channels to mean 0 and deviation 1 over the pictures that it was shown; before that, to themselves."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def fit(self, moments: Float[Tensor, "3 channels"]) -> None:
        """Take the statistics of features: how many values, their sum, and that of their squares, in float64.

        A channel that never moves keeps its scale.
        """
        mean, square = moments[1] / moments[0], moments[2] / moments[0]
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        deviation = torch.where(deviation > SMALLEST_SHARE * deviation.mean(), deviation, 1.0)
        self.mean.copy_(mean[:, None, None])
        self.deviation.copy_(deviation[:, None, None])

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Standardize features."""
        return (x - self.mean) / self.deviation


class FeatureDiscriminator(nn.Module):
    """Images -> logits; high means real. The network behind it is no part of its weights."""

    def __init__(
        self, config: FeatureDiscriminatorConfig, features: Callable[[Tensor], Sequence[Tensor]] | None = None
    ) -> None:
        """Build the heads.

        Args:
            config: Their sizes.
            features: Gives the features of images, (B, C, h, w) a layer. `None` leaves it to be set before the first
                call.
        """
        super().__init__()
        self.config = config
        self.features = features
        self.norms = nn.ModuleList(Standardize(channels) for channels in config.channels)
        self.heads = nn.ModuleList(self._head(channels) for channels in config.channels)
        self.pixels = self._pixel_network()

    def _head(self, channels: int) -> nn.Module:
        width = self.config.width
        return nn.Sequential(
            spectral_norm(nn.Conv2d(channels, width, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, 1, 3, padding=1)),
        )

    def _pixel_network(self) -> nn.Module:
        first = self.config.pixel_widths[0]
        layers: list[nn.Module] = [spectral_norm(nn.Conv2d(3, first, 3, padding=1)), nn.LeakyReLU(0.2)]
        for before, after in pairwise(self.config.pixel_widths):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, 2, 1)), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, spectral_norm(nn.Conv2d(self.config.pixel_widths[-1], 1, 3, padding=1)))

    @torch.no_grad()
    def fit(self, batches: Iterable[Float[Tensor, "batch 3 height width"]]) -> None:
        """Take the statistics of the features of real pictures; some hundred are enough. None changes nothing.

        Args:
            batches: RGB, in [-1, 1], of a side that the features know.

        Raises:
            ValueError: As `forward`.
        """
        totals: list[Tensor] = []
        for x in batches:
            moments = [_moments(layer) for layer in self._layers(x)]
            totals = [total + more for total, more in zip(totals, moments)] if totals else moments
        for norm, total in zip(self.norms, totals):
            cast(Standardize, norm).fit(total)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, " batch"]:
        """Judge images, RGB, in [-1, 1], of a side that the features know.

        Raises:
            ValueError: If no `features` have been set, or they have another number of layers.
        """
        scores = [head(norm(layer)) for head, norm, layer in zip(self.heads, self.norms, self._layers(x))]
        scores.append(self.pixels(x))
        return torch.stack([score.mean(dim=(1, 2, 3)) for score in scores]).sum(dim=0)

    def _layers(self, x: Tensor) -> Sequence[Tensor]:
        if self.features is None:
            raise ValueError("`features` must be set before images are judged, such as to `perceptual.features`.")
        layers = self.features(x)
        if len(layers) != len(self.heads):
            raise ValueError(f"`features` must give {len(self.heads)} layers, one a head, got {len(layers)}.")
        return layers


def _moments(layer: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "3 channels"]:
    values = layer.double().transpose(0, 1).flatten(1)
    return torch.stack([torch.ones_like(values).sum(dim=1), values.sum(dim=1), values.square().sum(dim=1)])
