"""Frechet distance of two sets of pictures, as clouds of features.

Paper: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", arXiv:1706.08500. Original code:
bioinf-jku/TTUR (Apache-2.0). Own code. FID is the name of this distance in the features of one Inception network: with
other features the figures are different and must be reported under other names.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def pool_features(layers: Sequence[Tensor]) -> Tensor:
    """Average each layer, (B, C, h, w) or (B, C), over its pixels and join the layers into one vector a picture.

    Multiplied by sqrt(dim / number of layers): layers of unit norm, as `PerceptualDistance.features` and
    `IdentityEmbedding.embed` give them, end with a mean square of at most 1, a scale that suits the cubic kernel.
    """
    pooled = torch.cat([layer.flatten(2).mean(dim=2) if layer.ndim > 2 else layer for layer in layers], dim=1)
    return pooled * (pooled.shape[1] / len(layers)) ** 0.5


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of features, (N, D) and (M, D), as Gaussians: |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    N and M are >= 2, since one sample has no covariance. The distance is >= 0.

    The last trace is the sum of the singular values of A^(1/2) B^(1/2), from symmetric eigen-decompositions, so
    singular covariances (fewer samples than dimensions) need no care. The estimate is too large by a term of order
    1 / n: figures of different n are not comparable. Computed in float64 on the CPU.
    """
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    cross = torch.linalg.svdvals(_root(cov_a).T @ _root(cov_b)).sum()
    return max(0.0, ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item())


def _root(cov: Tensor) -> Tensor:
    """L, (D, rank), with L L^T = `cov`; components at the level of rounding are left out."""
    values, vectors = torch.linalg.eigh(cov)
    kept = values > values[-1].clamp_min(0) * len(cov) * torch.finfo(cov.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()
