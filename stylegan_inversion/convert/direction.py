"""Directions of the field: InterFaceGAN's boundaries and the papers' edit directions, GANSpace's components.

Formats: genforce/interfacegan (MIT) `.npy`, float64 (1, 512); omertov/encoder4editing and danielroich/PTI (MIT) `.pt`,
(1, 512) or (1, 18, 512), each layer of unit norm; harskish/ganspace (Apache-2.0) as e4e ships it, a dict of `mean`
(1, 512), `comp` (n, 1, 512) and `std` (n,).
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.editing.ganspace import PrincipalComponents
from stylegan_inversion.errors import CheckpointError

_UNIT_TOLERANCE = 0.01


def vector_from_official(tensor: Tensor) -> Float[Tensor, "*num_ws w_dim"]:
    """Read a boundary or an edit direction.

    Args:
        tensor: (w_dim,), (1, w_dim), (num_ws, w_dim) or (1, num_ws, w_dim), of unit norm in each layer within 1 %.

    Returns:
        The vector in float32, exactly of unit norm, (w_dim,) or (num_ws, w_dim).

    Raises:
        CheckpointError: If it has another shape, or not unit norm: a style code has the same shape.
    """
    if not tensor.is_floating_point() or not 1 <= tensor.ndim <= 3 or not tensor.numel():
        raise CheckpointError(
            f"Not a direction: it has the shape {tuple(tensor.shape)} and the type {tensor.dtype}, not (w_dim,), "
            "(1, w_dim), (num_ws, w_dim) or (1, num_ws, w_dim) in floating point."
        )
    vector = tensor.double()
    while vector.ndim > 1 and len(vector) == 1:
        vector = vector[0]
    if vector.ndim > 2:
        raise CheckpointError(f"Not a direction but {len(vector)} style codes: shape {tuple(tensor.shape)}.")
    norms = vector.norm(dim=-1, keepdim=True)
    if not bool(((norms - 1).abs() <= _UNIT_TOLERANCE).all()):  # NaN too
        raise CheckpointError(
            f"Not a direction of unit norm: its norms are in [{norms.min():.4g}, {norms.max():.4g}]. A style code "
            "(such as PTI's pivot) has this shape too; if it is a direction, pass it to `Direction.from_vector`."
        )
    return (vector / norms).float()


def direction_from_official(tensor: Tensor, *, name: str, description: str = "") -> Direction:
    """Read a boundary or an edit direction as a `Direction`; see `vector_from_official`.

    Args:
        tensor: What the file holds.
        name: What changes, as a Python identifier; the file does not tell.
        description: Where it comes from.

    Raises:
        CheckpointError: As `vector_from_official`.
        ValueError: If `name` is no identifier.
    """
    return Direction(name, vector_from_official(tensor), description=description)


def components_from_ganspace(checkpoint: Mapping[str, Any]) -> PrincipalComponents:
    """Read GANSpace's components, as `ffhq_pca.pt` of e4e holds them.

    Raises:
        CheckpointError: If a tensor is missing, or the shapes do not fit each other.
    """
    tensors = [checkpoint.get(name) for name in ("mean", "comp", "std")]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise CheckpointError(
            f"Not GANSpace's components: expected tensors `mean`, `comp` and `std`, got {list(checkpoint)[:5]}."
        )
    mean, components, std = (tensor.float() for tensor in tensors if isinstance(tensor, Tensor))
    w_dim = components.shape[-1] if components.ndim else 0
    if mean.numel() != w_dim or not w_dim or components.numel() != std.numel() * w_dim:
        raise CheckpointError(
            f"Not GANSpace's components: `mean` {tuple(mean.shape)}, `comp` {tuple(components.shape)} and `std` "
            f"{tuple(std.shape)} are not (1, w_dim), (n, 1, w_dim) and (n,)."
        )
    components = components.reshape(-1, w_dim)
    try:
        return PrincipalComponents(mean.reshape(w_dim), components, std.reshape(-1))
    except ValueError as e:
        raise CheckpointError(f"Not GANSpace's components: {e}") from e


def components_to_ganspace(principal: PrincipalComponents) -> dict[str, Tensor]:
    """Write components as e4e's `.pt` holds them: `torch.save` the result."""
    return {
        "mean": principal.mean[None].clone(),
        "comp": principal.components[:, None].clone(),
        "std": principal.std.clone(),
    }


def direction_to_official(direction: Direction) -> Tensor:
    """Write a direction as e4e's `.pt` holds it, (1, w_dim) or (1, num_ws, w_dim): `torch.save` the result."""
    return direction.vector[None].to(torch.float32).clone()
