"""Pixel-wise distance, a term of every encoder and of PTI.

Paper: Richardson et al. 2021 (pSp), "Encoding in Style", arXiv:2008.00951, equation 2.
Original code: https://github.com/eladrich/pixel2style2pixel (MIT), training/coach.py.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss


def l2_loss(
    y_hat: Float[Tensor, "batch channels height width"], y: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, ""]:
    """Penalise differences of pixels: mean of (y_hat - y)^2 over batch, channels and pixels.

    The paper writes L_2 = ||x - pSp(x)||_2; its code, followed here, takes the mean squared error. For images in
    [-1, 1] it is at most 4, and four times the error of images in [0, 1].
    """
    return mse_loss(y_hat, y)
