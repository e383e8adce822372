"""Distance to a known w: what an encoder should answer for samples of the generator itself.

No term of pSp or e4e: photos have no true w. Samples have one, and training encoders on them is the older way, which
Zhu et al. 2020 (IDInvert), arXiv:2004.00049, describe. Own code.
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
        target: The codes that the images were drawn from; one w for all layers, or one a layer.

    Returns:
        Scalar, >= 0: the mean squared error of a coordinate, whatever the generator's size.
    """
    if target.ndim == 2:
        target = target[:, None]  # (batch, 1, w_dim)
    return (w_plus - target).square().mean()
