"""SeFa: directions from the weights alone, along which the styles of some layers change most.

Paper: Shen and Zhou 2021, "Closed-Form Factorization of Latent Semantics in GANs", arXiv:2007.06600.
Original code: https://github.com/genforce/sefa (MIT); the normalisation is that of
https://github.com/omertov/encoder4editing (MIT), editings/sefa.py.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def factorize(
    weights: Sequence[Float[Tensor, "_ w_dim"]], num_directions: int | None = None
) -> tuple[Float[Tensor, "num_directions w_dim"], Float[Tensor, " num_directions"]]:
    """Find the directions in W that the affine layers amplify most.

    The eigenvectors of A^T A, where A stacks the rows (output channels) of all `weights`, each divided by its norm.

    Args:
        weights: Affine (modulation) weights of the chosen convolutions, each (channels, w_dim). e4e takes the layers
            2 to 5, counted from the first convolution as 0.
        num_directions: How many to return, in [1, w_dim]. `None` returns all.

    Returns:
        Directions of unit norm, the most amplified first and the largest entry of each positive (the original's signs
        are arbitrary), and their eigenvalues, >= 0. Both float32 on the CPU.
    """
    sizes = {weight.shape[1] for weight in weights}
    if len(sizes) != 1:
        raise ValueError(f"`weights` must be at least one matrix, all with the same w_dim, got w_dim {sorted(sizes)}.")
    rows = torch.cat([weight.detach().cpu().double() for weight in weights])  # (all channels, w_dim)
    w_dim = rows.shape[1]
    count = w_dim if num_directions is None else num_directions
    if not 1 <= count <= w_dim:
        raise ValueError(f"`num_directions` must be in [1, {w_dim}], got {count}.")
    norms = rows.norm(dim=1, keepdim=True)
    if not (torch.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError("Every row of `weights` must be finite and not zero.")
    rows = rows / norms
    eigenvalues, directions = torch.linalg.eigh(rows.T @ rows)  # ascending; directions are columns
    eigenvalues, directions = eigenvalues.flip(0)[:count].clamp_min(0), directions.T.flip(0)[:count]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))  # (count, 1)
    return (directions * largest.sign()).float(), eigenvalues.float()
