"""Perceptual distance: LPIPS of the `lpips` package, and the shift-tolerant LPIPS that ships with this package.

Papers: Zhang et al. 2018, LPIPS, arXiv:1801.03924; Ghildyal & Liu 2022, "Shift-tolerant Perceptual Similarity
Metric", ECCV 2022, arXiv:2207.13686. Original code: richzhang/PerceptualSimilarity (BSD-2),
abhijay9/ShiftTolerant-LPIPS (BSD-2). Own code. The two are different measures: figures of one must not be reported as
the other.
"""

import abc
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion import hub
from stylegan_inversion.bounds import check_bounds, number
from stylegan_inversion.errors import CheckpointError, MissingDependencyError

# px: up to this side, on a CPU, a product of matrices is quicker than a convolution channel by channel. With gradients
# the features of 64 px took 0.55 of the time in bfloat16, 0.9 in float32.
LARGEST_PRODUCT = 128
PERCEPTUAL_NETWORKS = ("st-alex", "alex", "vgg")


class PerceptualDistance(nn.Module, abc.ABC):
    """Distance of images = sum over layers of the mean over pixels of weighted squared differences of unit features.

    `name` is what `load_perceptual` takes; a network without one cannot be saved with a pipeline.
    """

    name: str | None = None

    @abc.abstractmethod
    def features(self, x: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Features of each layer, (B, C, h, w), of unit norm over C."""

    @abc.abstractmethod
    def distance(self, a: list[Tensor], b: list[Tensor]) -> Float[Tensor, " batch"]:
        """Distance of two results of `features`; a batch of one serves any other batch."""

    def forward(
        self, x: Float[Tensor, "batch 3 height width"], y: Float[Tensor, "batch_y 3 height width"]
    ) -> Float[Tensor, " batch"]:
        """Distance of images, RGB, in [-1, 1]: >= 0, (B,)."""
        return self.distance(self.features(x), self.features(y))


@dataclass(frozen=True)
class ShiftTolerantAlexNetConfig:
    """Widths of the five convolutions. The published network is the default."""

    widths: tuple[int, ...] = number((64, 192, 384, 256, 256), 1, 4096, count=5)

    def __post_init__(self) -> None:
        """Check the values."""
        check_bounds(self)


class ShiftTolerantAlexNet(PerceptualDistance):
    """Shift-tolerant LPIPS on AlexNet: no stride in the first convolution, blur before every subsampling.

    Images must be at least 31 px a side.
    """

    scaling_shift: Tensor
    scaling_scale: Tensor
    blur: Tensor

    def __init__(self, config: ShiftTolerantAlexNetConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c, d, e = config.widths
        self.conv1 = nn.Conv2d(3, a, 11, padding=2)
        self.conv2 = nn.Conv2d(a, b, 5, padding=2)
        self.conv3 = nn.Conv2d(b, c, 3, padding=1)
        self.conv4 = nn.Conv2d(c, d, 3, padding=1)
        self.conv5 = nn.Conv2d(d, e, 3, padding=1)
        self.heads = nn.ParameterList(nn.Parameter(torch.ones(width)) for width in config.widths)
        # LPIPS's scaling of [-1, 1] to ImageNet's statistics
        self.register_buffer("scaling_shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scaling_scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("blur", torch.outer(taps, taps)[None, None], persistent=False)

    def features(self, x: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Features of the five layers, of unit norm over the channels."""
        if min(x.shape[-2:]) < 31:
            raise ValueError(f"Images must be at least 31 px a side, got {x.shape[-2]} x {x.shape[-1]}.")
        x = (x - self.scaling_shift) / self.scaling_scale
        h1 = F.relu(self._halve(self.conv1(x)))
        h2 = F.relu(self.conv2(self._halve(F.max_pool2d(h1, 3, 1))))
        h3 = F.relu(self.conv3(self._halve(F.max_pool2d(h2, 3, 1))))
        h4 = F.relu(self.conv4(h3))
        h5 = F.relu(self.conv5(h4))
        return [h / ((h.square().sum(dim=1, keepdim=True) + 1e-20).sqrt() + 1e-10) for h in (h1, h2, h3, h4, h5)]

    def _halve(self, x: Tensor) -> Tensor:
        """Blur with [1, 2, 1] x [1, 2, 1], reflecting two pixels at the border, and keep every second pixel."""
        if x.device.type == "cpu" and max(x.shape[-2:]) <= LARGEST_PRODUCT:
            rows, columns = (_halving(side).to(x) for side in x.shape[-2:])
            if not x.is_contiguous(memory_format=torch.channels_last):
                return rows @ (x @ columns.T)
            pixels = columns @ x.permute(0, 2, 3, 1)
            return (rows @ pixels.flatten(2)).unflatten(2, pixels.shape[2:]).permute(0, 3, 1, 2)
        return F.conv2d(
            F.pad(x, (2, 2, 2, 2), mode="reflect"), self.blur.expand(x.shape[1], 1, 3, 3), stride=2, groups=x.shape[1]
        )

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Float[Tensor, " batch"]:
        """Weighted squared differences, averaged over the pixels and summed over the layers."""
        terms = [
            ((p - q).square().mean(dim=(2, 3)) * head).sum(dim=1) for p, q, head in zip(a, b, self.heads, strict=True)
        ]
        return torch.stack(terms).sum(dim=0)


@lru_cache(maxsize=32)
def _halving(side: int) -> Float[Tensor, "half side"]:
    """What reflects, blurs and halves a row of pixels, as a matrix."""
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.device("cpu"):  # it outlives both
        pixels = F.pad(torch.eye(side)[None], (2, 2), mode="reflect")
        return F.conv1d(pixels.transpose(0, 1), torch.tensor([[[1.0, 2.0, 1.0]]]) / 4, stride=2)[:, 0].T.contiguous()


class LPIPS(PerceptualDistance):
    """LPIPS v0.1 of the `lpips` package, which brings the linear heads and fetches its backbone."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def features(self, x: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Features of the backbone's layers, of unit norm over the channels."""
        layers = self.network.net(self.network.scaling_layer(x))
        return [h / ((h.square().sum(dim=1, keepdim=True) + 1e-20).sqrt() + 1e-10) for h in layers]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Float[Tensor, " batch"]:
        """Weighted squared differences, averaged over the pixels and summed over the layers."""
        terms = [lin((p - q).square()).mean(dim=(1, 2, 3)) for p, q, lin in zip(a, b, self.network.lins, strict=True)]
        return torch.stack(terms).sum(dim=0)


def load_perceptual(name: str = "st-alex", *, device: torch.device | str | None = None) -> PerceptualDistance:
    """Load a perceptual distance, frozen and in eval mode.

    Args:
        name: "st-alex", the built-in shift-tolerant LPIPS on AlexNet; "alex" or "vgg", LPIPS v0.1 of `lpips`.
        device: Where to put it. `None` means the CPU.

    Raises:
        ValueError: If the name is none of these.
        MissingDependencyError: If "alex" or "vgg" is asked for and `lpips` cannot be imported.
        CheckpointError: If the backbone of `lpips` is not in PyTorch's cache and cannot be fetched.
    """
    if name == "st-alex":
        folder = hub.builtin_path("faces64/perceptual")
        built_in = hub.load_module(ShiftTolerantAlexNet, ShiftTolerantAlexNetConfig, folder, device=device)
        built_in.name = name
        return built_in
    if name not in PERCEPTUAL_NETWORKS:
        raise ValueError(f"`perceptual` must be one of {', '.join(PERCEPTUAL_NETWORKS)}, got {name!r}.")
    try:
        import lpips
    except (ImportError, RuntimeError) as e:  # torchvision raises RuntimeError beside a torch it was not built for
        raise MissingDependencyError(
            f'The perceptual network {name!r} needs `lpips`: pip install "stylegan-inversion[faces]". '
            "The built-in 'st-alex' needs nothing."
        ) from e
    try:
        network = lpips.LPIPS(net=name, verbose=False)
    except OSError as e:
        raise CheckpointError(
            f"The backbone of LPIPS {name!r} is not in PyTorch's cache and could not be fetched: {e}. "
            "Connect once, or take the built-in 'st-alex'."
        ) from e
    distance = LPIPS(network).eval().requires_grad_(False).to(device)
    distance.name = name
    return distance
