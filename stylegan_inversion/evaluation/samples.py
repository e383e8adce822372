"""What a generator draws: samples that follow from a seed and their number alone, and how smoothly they change."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.evaluation.features import FeatureNetwork
from stylegan_inversion.evaluation.methods import resize
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.training.data import seeded

PATH_STEP = 1e-4  # of the path length, relative to the whole way between two w
_PATH_RESOLUTION = 256  # larger pictures are reduced to it
_TRIMMED = 1.0  # per cent of the path lengths left out at each end


def sample_w_plus(
    generator: Generator, numbers: Sequence[int], *, seed: int, truncation_psi: float = 1.0, purpose: str = "sample"
) -> Tensor:
    """The codes of samples.

    Args:
        generator: Its mapping network is used.
        numbers: Which samples; each is a function of the seed and its number.
        seed: >= 0.
        truncation_psi: See `latents.truncate`.
        purpose: Two purposes share no draws.

    Returns:
        (n, num_ws, w_dim), on the generator's device.
    """
    size = generator.config.z_dim
    z = torch.stack(
        [torch.randn(size, generator=seeded(seed, purpose, i), device="cpu", dtype=torch.float32) for i in numbers]
    )
    w_plus = latents.broadcast(generator.mapping(z.to(generator.w_avg)), generator.num_ws)
    return latents.truncate(w_plus, generator.w_avg, truncation_psi=truncation_psi)


def sample_noise(generator: Generator, numbers: Sequence[int], *, seed: int) -> list[Tensor]:
    """Noise of samples for each style layer, (n, 1, r, r), drawn on the CPU, each sample by itself."""
    sides = [conv.noise_const.shape[-1] for conv in generator.synthesis.convs]
    areas = [side * side for side in sides]
    drawn = torch.stack(
        [
            torch.randn(sum(areas), generator=seeded(seed, "noise", i), device="cpu", dtype=torch.float32)
            for i in numbers
        ]
    )
    layers = drawn.to(generator.w_avg).split(areas, dim=1)
    return [layer.reshape(len(numbers), 1, side, side) for layer, side in zip(layers, sides)]


@torch.no_grad()
def draw_samples(generator: Generator, numbers: Sequence[int], *, seed: int, truncation_psi: float = 1.0) -> Tensor:
    """Draw samples with random noise, as they would be saved: clamped, and rounded to 256 levels.

    Returns:
        (n, 3, R, R), RGB, in [-1, 1], on the generator's device. Sample i is the same in any batch, but for a rounding
        to the neighbouring level.
    """
    w_plus = sample_w_plus(generator, numbers, seed=seed, truncation_psi=truncation_psi)
    images = generator.synthesis(w_plus, noise=sample_noise(generator, numbers, seed=seed))
    return round_levels(images)


def round_levels(images: Tensor) -> Tensor:
    """Images, in [-1, 1], clamped and rounded to the levels of 8 bits, which the data have too."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@torch.no_grad()
def sample_features(
    generator: Generator,
    networks: Sequence[FeatureNetwork],
    num_samples: int,
    *,
    seed: int,
    truncation_psi: float,
    batch_size: int,
    advance: Callable[[int], object],
) -> dict[str, Tensor]:
    """Features of the first samples, each drawn once for all networks.

    Returns:
        (N, D), float32, on the CPU, by the networks' keys.
    """
    rows: dict[str, list[Tensor]] = {network.key: [] for network in networks}
    for first in range(0, num_samples, batch_size):
        numbers = range(first, min(first + batch_size, num_samples))
        samples = draw_samples(generator, numbers, seed=seed, truncation_psi=truncation_psi)
        for network in networks:
            rows[network.key].append(network.embed(samples).cpu())
        advance(len(numbers))
    return {key: torch.cat(parts) for key, parts in rows.items()}


@torch.no_grad()
def perceptual_path_length(
    generator: Generator,
    perceptual: PerceptualDistance,
    *,
    num_samples: int,
    seed: int,
    batch_size: int,
    advance: Callable[[int], object] = lambda done: None,
) -> float:
    """StyleGAN2's perceptual path length (arXiv:1912.04958): E[d(g(w_0), g(lerp(w_0, w_1; 1e-4))) / 1e-8].

    In W, at the end points of the way (t = 0), of the full picture, without truncation, with the same noise at both
    places; the lowest and the highest 1% are left out, as in the official `metrics/perceptual_path_length.py`. There d
    is LPIPS with VGG and the expectation is over 50,000 samples: figures with another network are on a scale of their
    own and must be reported with its name.

    Args:
        generator: The generator.
        perceptual: d.
        num_samples: How many ways.
        seed: Sample i is a function of the seed and i.
        batch_size: Pictures that go through a network at once.
        advance: Told how many ways are done.

    Returns:
        >= 0, lower is smoother.

    Raises:
        ValueError: If `num_samples` < 1.
    """
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be >= 1, got {num_samples}.")
    side = min(generator.config.resolution, _PATH_RESOLUTION)
    pairs = max(1, batch_size // 2)
    lengths = []
    for first in range(0, num_samples, pairs):
        numbers = range(first, min(first + pairs, num_samples))
        start = sample_w_plus(generator, numbers, seed=seed, purpose="path start")
        end = sample_w_plus(generator, numbers, seed=seed, purpose="path end")
        noise = [layer.repeat(2, 1, 1, 1) for layer in sample_noise(generator, numbers, seed=seed)]
        images = generator.synthesis(torch.cat([start, start.lerp(end, PATH_STEP)]), noise=noise)
        features = perceptual.features(resize(images, side))
        here, there = ([level[half] for level in features] for half in (slice(len(start)), slice(len(start), None)))
        lengths.append(perceptual.distance(here, there).cpu() / PATH_STEP**2)
        advance(len(numbers))
    found = torch.cat(lengths).double().numpy()
    low = np.percentile(found, _TRIMMED, method="lower")
    high = np.percentile(found, 100 - _TRIMMED, method="higher")
    return float(found[(found >= low) & (found <= high)].mean())
