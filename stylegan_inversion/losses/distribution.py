"""How far two sets of pictures are apart, as clouds of features: Fréchet and kernel distance, precision and recall.

Papers: Heusel et al. 2017 (FID), arXiv:1706.08500; Bińkowski et al. 2018 (KID), arXiv:1801.01401; Kynkäänniemi et al.
2019 (precision and recall), arXiv:1904.06991. Original code: bioinf-jku/TTUR (Apache-2.0), mbinkowski/MMD-GAN (BSD-3),
kynkaat/improved-precision-and-recall-metric (CC BY-NC). Own code, in float64 on the CPU but for the nearest neighbours.

FID and KID are the names of these distances in the features of one Inception network; with other features the figures
are others, and must be given other names.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_ROWS = 1024  # of a matrix of distances at once: 80 MB for 10,000 columns


class KernelDistance(NamedTuple):
    """Mean over subsets, and the standard deviation of a single subset's figure."""

    mean: float
    std: float


class PrecisionRecall(NamedTuple):
    """Shares, in [0, 1]: of fakes that look real, and of the real that the fakes reach."""

    precision: float
    recall: float


def pool_features(layers: Sequence[Tensor]) -> Float[Tensor, "batch dim"]:
    """One vector a picture: each layer averaged over its pixels, all layers one after another.

    Multiplied by sqrt(dim / number of layers), so that layers of unit norm, as `PerceptualDistance.features` and
    `IdentityEmbedding.embed` give them, end with a mean square of at most 1: a scale that suits the cubic kernel.

    Args:
        layers: (B, C, h, w), or (B, C) without pixels.

    Raises:
        ValueError: If there is no layer.
    """
    if not layers:
        raise ValueError("`layers` must hold at least one layer, got none.")
    pooled = torch.cat([layer.flatten(2).mean(dim=2) if layer.ndim > 2 else layer for layer in layers], dim=1)
    return pooled * (pooled.shape[1] / len(layers)) ** 0.5


class FeatureStatistics:
    """Mean and covariance of features that come batch by batch, or from several processes, in float64 on the CPU.

    Batches are merged by their means and sums of squared deviations (Chan et al. 1979): nothing is lost to
    cancellation, and the order makes no difference beyond rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None  # sum of the outer products of deviations, (D, D)

    def update(self, features: Float[Tensor, "batch dim"]) -> None:
        """Add a batch; an empty one changes nothing.

        Raises:
            ValueError: If the features are not as long as those before, or hold NaN or infinity.
        """
        _check_finite("features", features)
        if len(features):
            features = features.detach().cpu().double()
            mean = features.mean(dim=0)
            deviations = features - mean
            self._add(len(features), mean, deviations.T @ deviations)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add what another one has seen.

        Raises:
            ValueError: If its features are of another length.
        """
        if other._mean is not None and other._scatter is not None:
            self._add(other.count, other._mean, other._scatter)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return
        if len(mean) != len(self._mean):
            raise ValueError(f"`features` must have {len(self._mean)} columns, as those before, got {len(mean)}.")
        total, offset = self.count + count, mean - self._mean
        self._scatter += scatter + torch.outer(offset, offset) * (self.count * count / total)
        self._mean += offset * (count / total)
        self.count = total

    @property
    def mean(self) -> Float64[Tensor, " dim"]:
        """The mean.

        Raises:
            ValueError: If nothing has been added.
        """
        if self._mean is None:
            raise ValueError("A mean needs at least 1 sample, got 0.")
        return self._mean

    @property
    def cov(self) -> Float64[Tensor, "dim dim"]:
        """The unbiased covariance.

        Raises:
            ValueError: If fewer than two samples have been added.
        """
        if self._scatter is None or self.count < 2:
            raise ValueError(f"A covariance needs at least 2 samples, got {self.count}.")
        return self._scatter / (self.count - 1)


def frechet_distance(
    mean_a: Float[Tensor, " dim"],
    cov_a: Float[Tensor, "dim dim"],
    mean_b: Float[Tensor, " dim"],
    cov_b: Float[Tensor, "dim dim"],
) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    The last trace is the sum of the singular values of A^(1/2) B^(1/2), from symmetric eigen-decompositions: no square
    root of a matrix that is not symmetric, no imaginary part to drop, and singular covariances (fewer samples than
    dimensions) need no care. Estimated from n samples it is too large by a term of order 1 / n: figures of different n
    are not comparable.

    Args:
        mean_a: Mean of one.
        cov_a: Its covariance, symmetric, positive semi-definite.
        mean_b: Mean of the other.
        cov_b: Its covariance.

    Returns:
        >= 0; 0 for equal Gaussians, up to rounding. In squared units of the features.

    Raises:
        ValueError: If the shapes do not fit, or a number is NaN or infinite.
    """
    given = {"mean_a": mean_a, "cov_a": cov_a, "mean_b": mean_b, "cov_b": cov_b}
    dim = len(mean_a)
    for name, tensor in given.items():
        wanted = (dim,) if name.startswith("mean") else (dim, dim)
        if tuple(tensor.shape) != wanted:
            raise ValueError(f"`{name}` must be of shape {wanted}, as `mean_a` is, got {tuple(tensor.shape)}.")
        _check_finite(name, tensor)
    m_a, a, m_b, b = (tensor.detach().cpu().double() for tensor in given.values())
    cross = torch.linalg.svdvals(_root(a).T @ _root(b)).sum()
    return max(0.0, ((m_a - m_b).square().sum() + a.trace() + b.trace() - 2 * cross).item())


def _root(cov: Tensor) -> Tensor:
    """L, (D, rank), with L L^T = `cov`; what is rounding is left out."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    kept = values > values[-1].clamp_min(0) * len(cov) * torch.finfo(cov.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def kernel_distance(
    a: Float[Tensor, "count_a dim"],
    b: Float[Tensor, "count_b dim"],
    *,
    rng: torch.Generator,
    num_subsets: int = 100,
    subset_size: int = 1000,
) -> KernelDistance:
    """Squared maximum mean discrepancy with the kernel (x . y / dim + 1)^3: KID's, unbiased, over random subsets.

    Unlike the Fréchet distance it is right on average for any number of samples, and may fall below 0.

    Args:
        a: Features of one set, with a mean square of about 1 at most; the kernel is not free of scale.
        b: Features of the other.
        rng: Draws the subsets; it must live on the CPU.
        num_subsets: How many.
        subset_size: Samples of each set in a subset, drawn without repetition.

    Raises:
        ValueError: If the features differ in length, a set is smaller than a subset, a subset smaller than 2, there is
            no subset, or a number is NaN or infinite.
    """
    _check_pair("a", a, "b", b)
    if num_subsets < 1:
        raise ValueError(f"`num_subsets` must be >= 1, got {num_subsets}.")
    if not 2 <= subset_size <= min(len(a), len(b)):
        raise ValueError(
            f"`subset_size` must be in [2, {min(len(a), len(b))}], the size of the smaller set, got {subset_size}."
        )
    a, b = a.detach().cpu(), b.detach().cpu()
    figures = torch.zeros(num_subsets, device="cpu", dtype=torch.float64)
    for i in range(num_subsets):
        x = a[torch.randperm(len(a), generator=rng, device="cpu")[:subset_size]].double()
        y = b[torch.randperm(len(b), generator=rng, device="cpu")[:subset_size]].double()
        k_xx, k_yy, k_xy = (((p @ q.T) / a.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        within = k_xx.sum() - k_xx.trace() + k_yy.sum() - k_yy.trace()  # a sample is not compared with itself
        figures[i] = within / (subset_size * (subset_size - 1)) - 2 * k_xy.mean()
    return KernelDistance(figures.mean().item(), figures.std(correction=0).item())


def precision_recall(
    real: Float[Tensor, "count_real dim"], fake: Float[Tensor, "count_fake dim"], *, k: int = 3
) -> PrecisionRecall:
    """Share of fakes inside the manifold of the real, and of the real inside the fakes' manifold.

    A manifold is made of balls: around each sample, as far as its k-th nearest neighbour in its own set.

    Args:
        real: Features of real pictures.
        fake: Features of generated ones; the papers take as many.
        k: Which neighbour; 3 in the paper.

    Returns:
        Precision, which falls with pictures that look wrong, and recall, which falls with kinds that are missing.

    Raises:
        ValueError: If the features differ in length, a set has not more than `k` samples, `k` < 1, or a number is NaN
            or infinite.
    """
    _check_pair("real", real, "fake", fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"`k` must be in [1, {min(len(real), len(fake)) - 1}], below the smaller set's size, got {k}.")
    centre = real.detach().mean(dim=0)  # distances are differences of squares: the smaller these are, the better
    real, fake = real.detach() - centre, fake.detach() - centre
    radius_real, radius_fake = _radii(real, k), _radii(fake, k)
    reached = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    precise = 0
    for first in range(0, len(fake), _ROWS):
        distances = _distances(fake[first : first + _ROWS], real)  # (rows, count_real)
        precise += int((distances <= radius_real).any(dim=1).sum())
        reached |= (distances <= radius_fake[first : first + _ROWS, None]).any(dim=0)
    return PrecisionRecall(precise / len(fake), reached.double().mean().item())


def _radii(features: Tensor, k: int) -> Tensor:
    """Squared distance of each sample to its k-th nearest neighbour, (N,)."""
    radii = []
    for first in range(0, len(features), _ROWS):
        distances = _distances(features[first : first + _ROWS], features)
        rows = torch.arange(len(distances), device=features.device)
        distances[rows, first + rows] = torch.inf  # not itself
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of all pairs, (A, B), >= 0."""
    products = torch.addmm(b.square().sum(dim=1)[None], a, b.T, alpha=-2)
    return products.add_(a.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def _check_pair(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"`{name_a}` and `{name_b}` must have as many columns, got {a.shape[1]} and {b.shape[1]}.")
    _check_finite(name_a, a)
    _check_finite(name_b, b)


def _check_finite(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise ValueError(f"`{name}` holds NaN or infinity; check the network or the pictures that it comes from.")
