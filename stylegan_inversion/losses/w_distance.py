"""Distance to a known w, for training an encoder on samples of the generator.

pSp and e4e have no such term, because photos have no true w. Samples have one; Zhu et al. 2020 (IDInvert),
arXiv:2004.00049, describe training on them. Own code.
"""

from jaxtyping import Float
from torch import Tensor


def w_distance_loss(
    w_plus: Float[Tensor, "batch num_ws w_dim"],
    target: Float[Tensor, "batch w_dim"] | Float[Tensor, "batch num_ws w_dim"],
) -> Float[Tensor, ""]:
    """Penalise the distance to the true codes: mean over batch and layers of ||w_i - t_i||_2^2 / w_dim.

    Args:
        w_plus: The encoder's codes in W+, the average included, unbounded.
        target: The codes that the images were drawn from: one w for all layers, or one for each layer.
    """
    if target.ndim == 2:
        target = target[:, None]  # (batch, 1, w_dim)
    return (w_plus - target).square().mean()
