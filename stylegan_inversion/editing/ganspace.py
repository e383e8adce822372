"""GANSpace: the principal components of W as directions.

Paper: Härkönen et al. 2020, "GANSpace: Discovering Interpretable GAN Controls", arXiv:2004.02546.
Original code: https://github.com/harskish/ganspace (Apache-2.0). Own code.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stylegan_inversion.editing.directions import Direction, both_ways

REACH = 2.0  # standard deviations; a photo may already lie that far out, and at 3 it turns black or white


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """Mean, axes and spread of W."""

    mean: Float[Tensor, " w_dim"]
    components: Float[Tensor, "num_components w_dim"]  # orthonormal, one in each row, the widest first
    std: Float[Tensor, " num_components"]  # standard deviation of w along each component, > 0

    def __post_init__(self) -> None:
        for name in ("mean", "components", "std"):
            if not torch.isfinite(getattr(self, name)).all():
                raise ValueError(f"`{name}` must be finite, got NaN or infinity.")
        if (self.std <= 0).any():
            raise ValueError(f"`std` must be positive, its smallest value is {self.std.min():.4g}.")

    def first(self, count: int) -> "PrincipalComponents":
        """Keep the `count` widest components."""
        return PrincipalComponents(self.mean, self.components[:count], self.std[:count])


def fit_pca(w: Float[Tensor, "samples w_dim"], num_components: int) -> PrincipalComponents:
    """Find the principal components of samples of W, exactly, in float64.

    Args:
        w: Samples of W, such as `generator.mapping(z)`.
        num_components: How many to keep, in [1, min(samples - 1, w_dim)].

    Returns:
        Components of unit norm, the largest entry of each positive, float32 on the CPU.
    """
    limit = min(w.shape[0] - 1, w.shape[1])
    if not 1 <= num_components <= limit:
        raise ValueError(f"`num_components` must be in [1, {limit}] for {w.shape[0]} samples, got {num_components}.")
    samples = w.detach().cpu().double()
    if not torch.isfinite(samples).all():
        raise ValueError("`w` must be finite, got NaN or infinity.")
    mean = samples.mean(dim=0)
    centred = samples - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / (w.shape[0] - 1))  # ascending; axes are columns
    variances, axes = variances.flip(0)[:num_components], axes.T.flip(0)[:num_components]
    if variances[-1] <= 1e-12 * variances[0].clamp_min(1e-12):
        raise ValueError(f"`w` spreads in fewer than {num_components} directions; ask for fewer or give more samples.")
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))  # (num_components, 1)
    return PrincipalComponents(mean.float(), (axes * largest.sign()).float(), variances.sqrt().float())


def name_components(
    principal: PrincipalComponents, *, name: str = "ganspace", layers: tuple[int, int] | None = None
) -> list[Direction]:
    """Turn principal components into directions name_1, name_2, ..., with ranges of 2 standard deviations both ways."""
    return [
        Direction.from_vector(
            f"{name}_{k}",
            vector,
            layers=layers,
            strength_range=both_ways(REACH * std),
            description=f"Number {k} of the ways in which this generator's pictures differ most. Nobody named it.",
        )
        for k, (vector, std) in enumerate(zip(principal.components, principal.std.tolist()), 1)
    ]
