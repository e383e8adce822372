"""Path-length regularisation: a step of fixed size in w changes the image by a fixed amount.

Paper: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", arXiv:1912.04958, section 3.2 and
appendix B. Original code: NVlabs/stylegan2 (NVIDIA Source Code Licence); a PyTorch port: rosinality/stylegan2-pytorch
(MIT). Own code. The weight is the caller's: StyleGAN2 weights the penalty with 2 and computes it in every 4th step of
the generator (times 4 in return), on half the batch.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

MEAN_DECAY = 0.01


def path_length(
    images: Float[Tensor, "batch 3 height width"],
    w_plus: Float[Tensor, "batch num_ws w_dim"],
    noise: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, " batch"]:
    """Measure how much each image changes with its w_plus along one random direction y of the image: ||J_w^T y||_2.

    In W+ the squares are summed over w_dim and averaged over the layers, as in NVIDIA's code.

    Args:
        images: Generated from `w_plus`, in any range, not clamped.
        w_plus: Codes that the images were computed from with gradients on: a leaf, or an output of the mapping network.
        noise: Standard normal numbers. They are divided by sqrt(height x width) here, so that the length does not grow
            with the number of pixels.

    Returns:
        Lengths, >= 0, differentiable by the generator's parameters. A length of 0 gives them no gradient.

    Raises:
        ValueError: If `w_plus` or `images` has no gradient.
    """
    if not (w_plus.requires_grad and images.requires_grad):
        raise ValueError(
            "`images` must come from `w_plus` with gradients on: call `w_plus.requires_grad_()` before the generator "
            "(codes of a mapping network that is trained have it), outside of `torch.no_grad()`."
        )
    y = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * y).sum(), w_plus, create_graph=True)
    # Unlike a square root of a sum, this norm has a gradient at 0: zero.
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1) / math.sqrt(w_plus.shape[1])


def path_length_penalty(
    lengths: Float[Tensor, " batch"], mean: Float[Tensor, ""]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Penalise lengths away from their running mean: the mean over the batch of (length - mean)^2.

    Departure: the mean is the one before this batch, a constant; the original code moves it first and lets its 1% of
    the gradient through. So the averages of the penalties and of the new means over processes or micro-batches are
    exactly those of the whole batch, and the pull on the batch's average length is 2% stronger.

    Args:
        lengths: From `path_length`.
        mean: Running mean so far, 0 at the start.

    Returns:
        The penalty, and the new running mean, detached: 1% of the way to the batch's.
    """
    mean = mean.detach()
    return (lengths - mean).square().mean(), torch.lerp(mean, lengths.detach().mean().to(mean.dtype), MEAN_DECAY)
