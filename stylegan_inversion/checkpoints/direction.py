"""Directions of the field: InterFaceGAN's boundaries and the papers' edit directions, GANSpace's components.

Formats: genforce/interfacegan (MIT) `.npy`, float64 (1, 512); omertov/encoder4editing and danielroich/PTI (MIT) `.pt`,
(1, 512) or (1, 18, 512); others keep all layers in (18, 512) or in one row, (1, 9216). Their code adds strength times
what the file holds, so its norm is the unit of strength. harskish/ganspace (Apache-2.0) as e4e ships it: a dict of
`mean` (1, 512), `comp` (n, 1, 512) and `std` (n,).
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stylegan_inversion import storage
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.editing.ganspace import PrincipalComponents
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import GeneratorConfig

W_DIM = 512  # of every public file
_SAME = 1e-3  # how far the rows of one direction may be from each other, relative to their norm


def vector_from_official(tensor: Tensor, *, w_dim: int = W_DIM) -> Float[Tensor, "*num_ws w_dim"]:
    """Read a boundary or an edit direction, of any norm.

    Args:
        tensor: (w_dim,), (1, w_dim), (num_ws, w_dim), (1, num_ws, w_dim), or the layers in one row, (num_ws * w_dim,)
            or (1, num_ws * w_dim).
        w_dim: Tells a row of all layers from a row of one.

    Returns:
        The vector as it is, in float32: (num_ws, w_dim), or (w_dim,) where the file has one row or equal ones.

    Raises:
        CheckpointError: If it has another shape or type, is zero, or holds NaN or infinity.
    """
    vector = tensor.double()
    while 1 < vector.ndim <= 3 and len(vector) == 1:
        vector = vector[0]
    if not tensor.is_floating_point() or vector.ndim not in (1, 2) or not vector.numel():
        found = f"shape {tuple(tensor.shape)} and type {tensor.dtype}"
        raise CheckpointError(f"Not a direction, (w_dim,) or (num_ws, w_dim) in floating point: it has {found}.")
    if not torch.isfinite(vector).all() or not vector.any():
        raise CheckpointError("Not a direction: it is zero, or holds NaN or infinity.")
    if vector.ndim == 1 and len(vector) > w_dim and len(vector) % w_dim == 0:
        vector = vector.reshape(-1, w_dim)
    if vector.ndim == 2:
        mean = vector.mean(dim=0)
        if (vector - mean).norm(dim=1).max() <= _SAME * mean.norm():
            vector = mean
    return vector.float()


def components_from_ganspace(checkpoint: Mapping[str, Any]) -> PrincipalComponents:
    """Read GANSpace's components, as `ffhq_pca.pt` of e4e holds them.

    Raises:
        CheckpointError: If a tensor is missing, or the shapes do not fit each other.
    """
    mean, components, std = (checkpoint[name] for name in ("mean", "comp", "std"))
    try:
        w_dim = components.shape[-1]
        parts = mean.reshape(w_dim), components.reshape(len(std), w_dim), std.reshape(-1)
        return PrincipalComponents(*(tensor.to(torch.float32, copy=True) for tensor in parts))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as e:
        words = "Not GANSpace's components, `mean` (1, w_dim), `comp` (n, 1, w_dim) and `std` (n,)"
        raise CheckpointError(f"{words}: {e}") from e


def style_directions(domain: str | None, config: GeneratorConfig) -> dict[str, Direction]:
    """Make the published directions in S (StyleSpace) of a generator of a domain and of its sizes; they need no file.

    Channels (layer, channel), with the layers counted as in StyleSpace, ToRGB layers included, and the ranges are those
    of AIRI-Institute/StyleFeatureEditor (MIT). Strength 1 adds 3 to each channel, as in its code.
    """
    found, sizes = dict[str, Direction](), config.style_sizes
    if domain != f"ffhq-{config.resolution}" or sizes != GeneratorConfig(config.resolution).style_sizes:
        return found
    for entry in json.loads(storage.builtin_path("stylespace.json").read_text("utf-8")).get(domain, ()):
        offsets = [torch.zeros(size) for size in sizes]
        for layer, channel in entry["channels"]:
            offsets[layer - (layer + 1) // 3][channel] = 3.0
        low, high = entry.get("strength_range", (None, None))
        limits = None if low is None else (float(low), float(high))
        text = f"{entry['description']} StyleSpace (AIRI-Institute/StyleFeatureEditor, MIT)"
        found[entry["name"]] = Direction.from_vector(
            entry["name"], torch.cat(offsets), strength_range=limits, description=text, unit=None, space="s"
        )
    return found
