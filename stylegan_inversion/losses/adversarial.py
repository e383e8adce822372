"""The non-saturating logistic GAN losses and the R1 penalty, for discriminators of images and of codes alike.

Papers: Goodfellow et al. 2014, arXiv:1406.2661; Mescheder et al. 2018 (R1), arXiv:1801.04406; used by StyleGAN2
(Karras et al. 2020, arXiv:1912.04958) on images and by e4e (Tov et al. 2021, arXiv:2102.02766) on w.
Original code of the latter: https://github.com/omertov/encoder4editing (MIT), training/coach.py.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus


def discriminator_loss(real_logits: Float[Tensor, "..."], fake_logits: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Reward high logits on real samples and low ones on fakes: mean softplus(-D(real)) + mean softplus(D(fake)).

    The numbers of real and fake samples may differ. A discriminator that outputs 0 gives 2 log 2.
    """
    return softplus(-real_logits).mean() + softplus(fake_logits).mean()


def generator_loss(fake_logits: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Reward fakes that the discriminator takes for real: mean softplus(-D(fake)). e4e's encoder makes fakes of w."""
    return softplus(-fake_logits).mean()


def r1_penalty(real_logits: Float[Tensor, "..."], real_inputs: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
    """Penalise a steep discriminator on real samples: the mean over the batch of ||grad_x D(x)||^2.

    The factors around it are the caller's: the papers weight it gamma / 2, and lazy regularisation multiplies it by its
    interval.

    Args:
        real_logits: Discriminator outputs on `real_inputs`, computed from them.
        real_inputs: Real samples (images or w), with `requires_grad` set before the discriminator saw them.

    Returns:
        Scalar, >= 0, differentiable by the discriminator's parameters.

    Raises:
        ValueError: If `real_inputs` does not require a gradient, or `real_logits` has none.
    """
    if not (real_inputs.requires_grad and real_logits.requires_grad):
        raise ValueError(
            "`real_logits` must come from `real_inputs` with gradients on: call `real_inputs.requires_grad_()` "
            "before the discriminator, outside of `torch.no_grad()`."
        )
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_inputs, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()
