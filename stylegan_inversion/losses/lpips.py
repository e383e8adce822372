"""LPIPS on AlexNet, which ships with this package, and on VGG16, from the `lpips` package.

Paper: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv:1801.03924.
Original code: richzhang/PerceptualSimilarity (BSD-2). Own code; `builtin/perceptual/` says where the weights are from.
"""

import abc
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion import storage
from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.errors import CheckpointError, importing

PERCEPTUAL_NETWORKS = ("alex", "vgg")
# Where pivotal tuning stops. alex: PTI's `LPIPS_value_threshold`. vgg, for which PTI has none: about what it gives
# where alex gives 0.06 on the bundled photos (blurred 0.06, shifted 0.13, noisy 0.14, as JPEG 0.16).
THRESHOLDS = {"alex": 0.06, "vgg": 0.12}


class PerceptualDistance(nn.Module, abc.ABC):
    """Distance of images = sum over layers of the mean over pixels of weighted squared differences of unit features.

    Attributes:
        name: What `load_perceptual` takes. A network without a name cannot be saved with a pipeline.
        threshold: The distance below which pivotal tuning stops.
    """

    name: str | None = None
    threshold: float = THRESHOLDS["alex"]

    @abc.abstractmethod
    def features(self, x: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Compute the features of each layer, (B, C, h, w), of unit norm over C."""

    @abc.abstractmethod
    def distance(self, a: list[Tensor], b: list[Tensor]) -> Float[Tensor, " batch"]:
        """Compare two results of `features`. A batch of one is compared with every sample of the other."""

    def forward(
        self, x: Float[Tensor, "batch 3 height width"], y: Float[Tensor, "batch_y 3 height width"]
    ) -> Float[Tensor, " batch"]:
        """Compute the distance of images, RGB, in [-1, 1]: (B,), >= 0."""
        return self.distance(self.features(x), self.features(y))


@dataclass(frozen=True)
class AlexLPIPSConfig(BoundedConfig):
    """Widths of AlexNet's five convolutions."""

    widths: tuple[int, ...] = number((64, 192, 384, 256, 256), 1, 4096, count=5)


class AlexLPIPS(PerceptualDistance):
    """LPIPS v0.1 on AlexNet. Images must be at least 31 px a side."""

    scaling_shift: Tensor
    scaling_scale: Tensor

    def __init__(self, config: AlexLPIPSConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c, d, e = config.widths
        self.conv1 = nn.Conv2d(3, a, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(a, b, 5, padding=2)
        self.conv3 = nn.Conv2d(b, c, 3, padding=1)
        self.conv4 = nn.Conv2d(c, d, 3, padding=1)
        self.conv5 = nn.Conv2d(d, e, 3, padding=1)
        self.heads = nn.ParameterList(nn.Parameter(torch.ones(width)) for width in config.widths)
        # LPIPS's scaling of [-1, 1] to ImageNet's statistics
        self.register_buffer("scaling_shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scaling_scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    def features(self, x: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Compute the features of the five layers, of unit norm over the channels."""
        if min(x.shape[-2:]) < 31:
            raise ValueError(f"Images must be at least 31 px a side, got {x.shape[-2]} x {x.shape[-1]}.")
        x = (x - self.scaling_shift) / self.scaling_scale
        h1 = F.relu(self.conv1(x))
        h2 = F.relu(self.conv2(F.max_pool2d(h1, 3, 2)))
        h3 = F.relu(self.conv3(F.max_pool2d(h2, 3, 2)))
        h4 = F.relu(self.conv4(h3))
        h5 = F.relu(self.conv5(h4))
        return [_unit(h) for h in (h1, h2, h3, h4, h5)]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Float[Tensor, " batch"]:
        """Average weighted squared differences over the pixels and sum them over the layers."""
        terms = [
            ((p - q).square().mean(dim=(2, 3)) * head).sum(dim=1) for p, q, head in zip(a, b, self.heads, strict=True)
        ]
        return torch.stack(terms).sum(dim=0)


def _unit(h: Tensor) -> Tensor:
    """Scale to unit norm over the channels. Where all are 0 they stay 0, with a finite gradient."""
    return h / ((h.square().sum(dim=1, keepdim=True) + 1e-20).sqrt() + 1e-10)


class LPIPS(PerceptualDistance):
    """LPIPS v0.1 from the `lpips` package, which brings the linear heads and fetches its backbone."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def features(self, x: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Compute the features of the backbone's layers, of unit norm over the channels."""
        return [_unit(h) for h in self.network.net(self.network.scaling_layer(x))]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Float[Tensor, " batch"]:
        """Average weighted squared differences over the pixels and sum them over the layers."""
        terms = [lin((p - q).square()).mean(dim=(1, 2, 3)) for p, q, lin in zip(a, b, self.network.lins, strict=True)]
        return torch.stack(terms).sum(dim=0)


def load_perceptual(name: str = "alex", *, device: torch.device | str | None = None) -> PerceptualDistance:
    """Load a perceptual distance, frozen and in eval mode.

    Args:
        name: "alex", LPIPS v0.1 on AlexNet, built in; or "vgg", LPIPS v0.1 on VGG16, from the package `lpips`.
        device: Where to put it. `None` means the CPU.

    Raises:
        ValueError: If there is no network of this name.
        MissingDependencyError: If `lpips` is needed and cannot be imported.
        CheckpointError: If the backbone of `lpips` is not in PyTorch's cache and cannot be fetched.
    """
    if name not in PERCEPTUAL_NETWORKS:
        raise ValueError(f"`perceptual` must be one of {', '.join(PERCEPTUAL_NETWORKS)}, got {name!r}.")
    network: PerceptualDistance
    if name == "alex":
        network = storage.load_module(
            AlexLPIPS, AlexLPIPSConfig, storage.builtin_path("perceptual/alex"), device=device
        )
    else:
        network = LPIPS(_lpips(name)).eval().requires_grad_(False).to(device)
    network.name, network.threshold = name, THRESHOLDS[name]
    return network


def _lpips(name: str) -> nn.Module:
    with importing("lpips", "faces", otherwise=f"`perceptual` {name!r} needs it; the built-in 'alex' needs nothing."):
        import lpips
    try:
        with torch.device("cpu"):  # whatever the caller's defaults
            return lpips.LPIPS(net=name, verbose=False).to(torch.float32)
    except OSError as e:
        raise CheckpointError(
            f"The backbone of LPIPS {name!r} is not in PyTorch's cache and could not be fetched: {e}. "
            "Connect once, or take the built-in 'alex'."
        ) from e
