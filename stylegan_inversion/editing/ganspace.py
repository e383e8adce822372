"""GANSpace: the principal components of W, and edits that set the coordinate of a code along one of them.

Paper: Härkönen et al. 2020, "GANSpace: Discovering Interpretable GAN Controls", arXiv:2004.02546.
Original code: https://github.com/harskish/ganspace (Apache-2.0); the edit is that of
https://github.com/omertov/encoder4editing (MIT), editings/ganspace.py.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stylegan_inversion.editing.directions import Direction, both_ways, layer_slice

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


def set_coordinate(
    w_plus: Float[Tensor, "batch num_ws w_dim"],
    principal: PrincipalComponents,
    *,
    component: int,
    coordinate: float,
    layers: tuple[int, int] | None = None,
) -> Float[Tensor, "batch num_ws w_dim"]:
    """Move codes along a component until their coordinate has a given value: an absolute edit, not a step.

    e4e's GANSpace edit: w + (coordinate - c) std_k u_k in the chosen layers, with c = (w_0 - mean) . u_k / std_k. As in
    the original, c is that of layer 0 alone: where the layers of a code differ, the others do not end up at
    `coordinate`. The original's tuple (component, start, end, strength) is `component=component, layers=(start, end),
    coordinate=strength`. For a step use `Direction(name, principal.components[k])`.

    Args:
        w_plus: Style codes in W+. Not changed.
        principal: Components of this generator's W.
        component: Which one, in [0, num_components - 1].
        coordinate: Where to go, in standard deviations from the mean.
        layers: Half-open range `(start, stop)` of style layers to move. `None` moves all.
    """
    num_components, w_dim = principal.components.shape
    if not 0 <= component < num_components:
        raise ValueError(f"`component` must be in [0, {num_components - 1}], got {component}.")
    if w_plus.shape[2] != w_dim:
        raise ValueError(f"The components have w_dim {w_dim}, but `w_plus` has {w_plus.shape[2]}.")
    chosen = layer_slice((0, w_plus.shape[1]) if layers is None else layers, w_plus.shape[1])
    axis = principal.components[component].to(w_plus)
    std = principal.std[component].to(w_plus)
    current = (w_plus[:, 0] - principal.mean.to(w_plus)) @ axis / std  # (batch,)
    moved = w_plus.clone()
    moved[:, chosen] += ((coordinate - current) * std)[:, None, None] * axis
    return moved


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
