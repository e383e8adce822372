"""The region of pSp's crop losses, which weight the face more than its surroundings.

Paper: Richardson et al. 2021 (pSp), "Encoding in Style", arXiv:2008.00951; its frontalisation uses them.
Original code: https://github.com/eladrich/pixel2style2pixel (MIT), training/coach.py.
"""

from jaxtyping import Float
from torch import Tensor

_ROWS, _COLUMNS, _SIDE = (35, 223), (32, 220), 256  # of FFHQ's crop at 256 px


def inner_face(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels rows columns"]:
    """Cut out rows 35-222 and columns 32-219 of 256, scaled to the image's side and rounded (halves up).

    Any loss of images becomes a crop loss: `l2_loss(inner_face(y_hat), inner_face(y))`. Nothing is resampled.

    Args:
        x: Square FFHQ crops of any side. In tighter crops, such as those of faces64, the region is tighter as well.

    Returns:
        A view of `x`.
    """
    height, width = x.shape[-2:]
    if height != width:
        raise ValueError(f"Images must be square, got {height} x {width}.")
    (top, bottom), (left, right) = (
        tuple((position * height + _SIDE // 2) // _SIDE for position in positions) for positions in (_ROWS, _COLUMNS)
    )
    return x[:, :, top:bottom, left:right]
