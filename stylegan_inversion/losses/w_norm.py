"""W-norm regularisation, the term that keeps pSp's codes close to the average w.

Paper: Richardson et al. 2021 (pSp), "Encoding in Style", arXiv:2008.00951, L_reg.
Original code: https://github.com/eladrich/pixel2style2pixel (MIT), criteria/w_norm.py.
"""

from jaxtyping import Float
from torch import Tensor


def w_norm_loss(
    w_plus: Float[Tensor, "batch num_ws w_dim"],
    w_avg: Float[Tensor, " w_dim"] | Float[Tensor, "num_ws w_dim"],
) -> Float[Tensor, ""]:
    """Penalise how far the codes are from the average one.

    ||w_plus - w_avg||_2 over all layers at once, mean over the batch. The paper writes ||E(x)||_2, where E(x) is the
    encoder's output before the average is added; our encoders return codes with the average in them.
    """
    return (w_plus - w_avg).norm(dim=(1, 2)).mean()
