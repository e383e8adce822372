"""Style mixing: some layers of one code, the rest of another.

Papers: Karras et al. 2019, arXiv:1812.04948, section 3.1; Richardson et al. 2021 (pSp), arXiv:2008.00951, section 4.3.
Original code: https://github.com/eladrich/pixel2style2pixel (MIT), `latent_mask` and `mix_alpha`.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stylegan_inversion.editing.directions import layer_slice


def mix_styles(
    w_plus_a: Float[Tensor, "batch num_ws w_dim"],
    w_plus_b: Float[Tensor, "_ num_ws w_dim"],
    *,
    layers: tuple[int, int] | Bool[Tensor, " _"] | None = None,
    alpha: float = 1.0,
) -> Float[Tensor, "batch num_ws w_dim"]:
    """Blend the chosen layers of one code with those of another; with all layers this is linear interpolation.

    Args:
        w_plus_a: Style codes in W+ that keep the other layers. Not changed.
        w_plus_b: Style codes that give the chosen layers: one for each of `w_plus_a`, or a single one for all. pSp
            draws it from W (`latents.broadcast(generator.mapping(z), num_ws)`).
        layers: Half-open range `(start, stop)` of style layers, or a mask (num_ws,). `None` takes all. pSp's
            "8,9,...,17" is `(8, 18)`.
        alpha: Weight of `w_plus_b`: 0 keeps a, 1 takes b. Other values blend or extrapolate.
    """
    batch, num_ws, _ = w_plus_a.shape
    if w_plus_b.shape[0] not in (1, batch):
        raise ValueError(f"`w_plus_b` must hold 1 or {batch} codes, as `w_plus_a` does, got {w_plus_b.shape[0]}.")
    if not math.isfinite(alpha):
        raise ValueError(f"`alpha` must be finite, got {alpha}.")
    mask: Tensor
    if isinstance(layers, Tensor):
        if len(layers) != num_ws:
            raise ValueError(f"The mask `layers` must have {num_ws} entries, one a style layer, got {len(layers)}.")
        mask = layers.to(w_plus_a.device)
    else:
        mask = torch.zeros(num_ws, dtype=torch.bool, device=w_plus_a.device)
        mask[layer_slice((0, num_ws) if layers is None else layers, num_ws)] = True
    return torch.where(mask[:, None], w_plus_a.lerp(w_plus_b.to(w_plus_a), alpha), w_plus_a)
