"""How far two sets of pictures are apart as clouds of features, and how smoothly a generator's pictures change.

Papers: Bińkowski et al. 2018 (KID), arXiv:1801.01401; Kynkäänniemi et al. 2019 (precision and recall),
arXiv:1904.06991; Karras et al. 2020 (path length), arXiv:1912.04958. Original code: mbinkowski/MMD-GAN (BSD-3),
kynkaat/improved-precision-and-recall-metric (CC BY-NC). Own code, in float64 on the CPU except for the nearest
neighbours. `losses/frechet.py` has the Frechet distance.

KID is the name of the kernel distance in the features of one Inception network. With other features the figures are
different and must be reported under other names.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.evaluation.metrics import resize
from stylegan_inversion.losses.frechet import frechet_distance
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator

PATH_STEP = 1e-4  # relative to the whole way between two w
_PATH_RESOLUTION = 256  # larger pictures are reduced to it
_TRIMMED = 1.0  # per cent of the path lengths left out at each end
_SUBSET_SIZE = 1000
_NEIGHBOURS = 3  # of precision and recall
_ROWS = 1024  # of a matrix of distances at once: 80 MB for 10,000 columns


def measure(real: Tensor, fake: Tensor, *, seed: int) -> dict[str, float]:
    """Apply all measures to two sets of features, (N, D) and (M, D); the seed draws the subsets of the kernel distance.

    Such a subset is 1000 pictures, or half of the smaller set. Raises `ValueError` if a feature is NaN or infinite.
    """
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise ValueError("The features hold NaN or infinity; check the generator and the pictures.")
    size = min(_SUBSET_SIZE, min(len(real), len(fake)) // 2)
    kernel, std = kernel_distance(real, fake, rng=latents.seeded(seed, "subsets", 0), subset_size=size)
    precision, recall = precision_recall(real, fake)
    distances = {"frechet": frechet_distance(real, fake), "kernel": kernel, "kernel_std": std, "kernel_subset": size}
    return {**distances, "precision": precision, "recall": recall}


def kernel_distance(
    a: Tensor, b: Tensor, *, rng: torch.Generator, subset_size: int, num_subsets: int = 100
) -> tuple[float, float]:
    """Squared maximum mean discrepancy with the kernel (x . y / dim + 1)^3: KID's, unbiased, over random subsets.

    Unlike the Fréchet distance it is right on average for any number of samples, and may fall below 0. The kernel
    depends on the scale of the features: their mean square should be at most about 1. `rng`, on the CPU, draws subsets.

    Returns:
        Mean over subsets, and the standard deviation of a single subset's figure.
    """
    a, b = a.detach().cpu(), b.detach().cpu()
    figures = torch.zeros(num_subsets, device="cpu", dtype=torch.float64)
    for i in range(num_subsets):
        x = a[torch.randperm(len(a), generator=rng, device="cpu")[:subset_size]].double()
        y = b[torch.randperm(len(b), generator=rng, device="cpu")[:subset_size]].double()
        k_xx, k_yy, k_xy = (((p @ q.T) / a.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        within = k_xx.sum() - k_xx.trace() + k_yy.sum() - k_yy.trace()  # no sample is compared with itself
        figures[i] = within / (subset_size * (subset_size - 1)) - 2 * k_xy.mean()
    return figures.mean().item(), figures.std(correction=0).item()


def precision_recall(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Precision, the share of fakes inside the manifold of the real pictures, and recall, the other way round.

    A manifold is made of balls: around each sample, as far as its third nearest neighbour in its own set. The paper
    takes as many fakes as real pictures. Precision falls with pictures that look wrong, recall with missing kinds.
    """
    centre = real.detach().mean(dim=0)  # distances are differences of squares, most exact near 0
    real, fake = real.detach() - centre, fake.detach() - centre
    radius_real, radius_fake = _radii(real), _radii(fake)
    reached = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    precise = 0
    for first in range(0, len(fake), _ROWS):
        distances = _distances(fake[first : first + _ROWS], real)  # (rows, count_real)
        precise += int((distances <= radius_real).any(dim=1).sum())
        reached |= (distances <= radius_fake[first : first + _ROWS, None]).any(dim=0)
    return precise / len(fake), reached.double().mean().item()


def _radii(features: Tensor) -> Tensor:
    """Squared distance of each sample to its third nearest neighbour, (N,)."""
    radii = []
    for first in range(0, len(features), _ROWS):
        distances = _distances(features[first : first + _ROWS], features)
        rows = torch.arange(len(distances), device=features.device)
        distances[rows, first + rows] = torch.inf  # a sample is not its own neighbour
        radii.append(distances.kthvalue(_NEIGHBOURS, dim=1).values)
    return torch.cat(radii)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of all pairs, (A, B), >= 0."""
    products = torch.addmm(b.square().sum(dim=1)[None], a, b.T, alpha=-2)
    return products.add_(a.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def sample_w_plus(
    generator: Generator, numbers: Sequence[int], *, seed: int, truncation_psi: float = 1.0, purpose: str = "sample"
) -> Tensor:
    """Draw the codes of samples, (n, num_ws, w_dim); each follows from the seed, the purpose and its number."""
    z = latents.seeded_normal([latents.seeded(seed, purpose, i) for i in numbers], generator.config.z_dim)
    w_plus = latents.broadcast(generator.mapping(z.to(generator.w_avg)), generator.num_ws)
    return latents.truncate(w_plus, generator.w_avg, truncation_psi=truncation_psi)


def sample_noise(generator: Generator, numbers: Sequence[int], *, seed: int) -> list[Tensor]:
    """Draw the noise of samples for each style layer, (n, 1, r, r), each sample by itself."""
    shapes = [conv.noise_const.shape for conv in generator.synthesis.convs]
    drawn = latents.seeded_noise(shapes, [latents.seeded(seed, "noise", i) for i in numbers])
    return [layer.to(generator.w_avg) for layer in drawn]


@torch.no_grad()
def draw_samples(generator: Generator, numbers: Sequence[int], *, seed: int, truncation_psi: float = 1.0) -> Tensor:
    """Draw samples with random noise, (n, 3, R, R), RGB, in [-1, 1], rounded to the 256 levels of a saved picture.

    Sample i is the same in any batch, except for rounding to the neighbouring level.
    """
    w_plus = sample_w_plus(generator, numbers, seed=seed, truncation_psi=truncation_psi)
    images = generator.synthesis(w_plus, noise=sample_noise(generator, numbers, seed=seed))
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


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

    In W, at the start of the way (t = 0), of the full picture, without truncation, with the same noise at both places;
    the lowest and the highest 1% are left out, as in the official `metrics/perceptual_path_length.py`. There d is LPIPS
    with VGG over 50,000 samples: figures with another network have their own scale and must be reported with its name.

    `advance` is called with the number of ways that were just finished.
    """
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
