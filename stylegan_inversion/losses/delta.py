"""Delta regularisation, the term that keeps e4e's codes close to W.

Paper: Tov et al. 2021 (e4e), "Designing an Encoder for StyleGAN Image Manipulation", arXiv:2102.02766.
Original code: https://github.com/omertov/encoder4editing (MIT), training/coach.py.
"""

from jaxtyping import Float
from torch import Tensor


def delta_loss(w_plus: Float[Tensor, "batch num_ws w_dim"], num_deltas: int) -> Float[Tensor, ""]:
    """Penalise how far the later styles move away from the first one.

    Delta regularisation of e4e (L_d-reg): sum over i of ||w_i - w_0||_2, mean over the batch.

    Args:
        w_plus: Style codes in W+, unbounded. `w_plus[:, 0]` is the base w.
        num_deltas: How many deltas are trained so far, in [0, num_ws - 1]. 0 gives a loss of 0.

    Returns:
        Scalar, >= 0, same dtype as `w_plus`. Its gradient is finite where a delta is exactly 0.

    Raises:
        ValueError: If `num_deltas` is outside [0, num_ws - 1].
    """
    num_ws = w_plus.shape[1]
    if not 0 <= num_deltas < num_ws:
        raise ValueError(f"`num_deltas` must be in [0, {num_ws - 1}], got {num_deltas}.")
    deltas = w_plus[:, 1 : num_deltas + 1] - w_plus[:, :1]  # (batch, num_deltas, w_dim)
    return deltas.norm(dim=2).sum(dim=1).mean()
