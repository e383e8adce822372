"""PTI's locality regularisation: away from the pivot the tuned generator must draw what the original one did.

Paper: Roich et al. 2021 (PTI), "Pivotal Tuning for Latent-based Editing of Real Images", arXiv:2106.05744, section 3.3.
Original code: https://github.com/danielroich/PTI (MIT), training/coaches/localitly_regulizer.py.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss


def interpolate_codes(
    w_pivot: Float[Tensor, "batch num_ws w_dim"],
    w_sampled: Float[Tensor, "batch num_ws w_dim"],
    *,
    alpha: float = 30.0,
) -> Float[Tensor, "batch num_ws w_dim"]:
    """Go a fixed distance from the pivot towards random codes: where the generator is held to its old behaviour.

    w_r = w_p + alpha (w_z - w_p) / ||w_z - w_p||_2 for each sample, with the norm over all layers together, as in the
    original code: in W, where all layers are equal, alpha 30 steps 30 / sqrt(18) = 7.07 a layer at 1024 px.
    Departure: a step that would go past w_z ends there, so that the codes always lie between the two.

    Args:
        w_pivot: The pivots, in W+ or in W repeated over the layers.
        w_sampled: Codes of random z, repeated over the layers.
        alpha: Distance from the pivot over all layers together, in the units of w.

    Returns:
        Codes at distance `alpha` from the pivot, or the sampled ones where those are nearer.
    """
    towards = w_sampled - w_pivot
    norm = towards.norm(dim=(1, 2), keepdim=True)  # (batch, 1, 1)
    share = (alpha / norm.where(norm > 0, 1.0)).clamp(max=1.0)
    return w_pivot + share * towards


def locality_terms(
    y_hat: Float[Tensor, "batch 3 height width"],
    y_hat_frozen: Float[Tensor, "batch 3 height width"],
    *,
    perceptual: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compare the tuned and the original generator on the same codes (PTI, L_R), pixel-wise and perceptually.

    Args:
        y_hat: Images of the tuned generator at `interpolate_codes`, RGB, in [-1, 1].
        y_hat_frozen: Images of the original generator at the same codes, RGB, in [-1, 1]. No gradient flows into it.
        perceptual: Distance of two batches of images, (B,), such as LPIPS.

    Returns:
        The mean squared error and the perceptual distance, unweighted (the original weights both 0.1).
    """
    frozen = y_hat_frozen.detach()
    return mse_loss(y_hat, frozen), perceptual(y_hat, frozen).mean()
