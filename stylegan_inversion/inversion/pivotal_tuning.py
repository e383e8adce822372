"""Pivotal tuning: change the generator until it draws the photo at its pivot, and leave the rest as it was.

Paper: Roich et al. 2022, "Pivotal Tuning for Latent-based Editing of Real Images", arXiv:2106.05744, section 3.
Original code: danielroich/PTI (MIT), `configs/hyperparameters.py`, `training/coaches/`. Own code.

Departures from PTI's code:
- The threshold is checked from the second step on, so that the generator is tuned at least once. Several images also
  stop at it, once all are below; PTI takes all steps there. An image that is below makes no update meanwhile.
- The state of the lowest loss is returned, not the last one.
- A locality step that would go past the sampled w ends there, so that the codes always lie between pivot and sample.
- The noise of the projection, if given, becomes the tuned generator's constant noise; PTI goes back to the old one.
"""

import copy
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.errors import DivergedError
from stylegan_inversion.inversion.projector import Callback
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuningConfig(BoundedConfig):
    """Settings of pivotal tuning. The defaults are PTI's."""

    num_steps: int = number(350, 0, 1_000_000)  # 0 gives an untuned copy
    learning_rate: float = number(3e-4, 1e-12, 1e3)  # of Adam, constant
    l2_weight: float = number(1.0, 0.0, 1e6)
    lpips_weight: float = number(1.0, 0.0, 1e6)
    # stop once the perceptual distance is below; `None` takes the network's own; 0 never stops
    lpips_threshold: float | None = number(None, 0.0, 1e6)
    use_locality: bool = False  # off in PTI's code; keeps the generator as it was away from the pivot
    locality_interval: int = number(1, 1, 1_000_000)  # steps between two locality terms
    locality_samples: int = number(1, 1, 4096)  # codes in a term
    locality_alpha: float = number(30.0, 0.0, 1e6)  # distance from the pivot over all layers, in units of w
    locality_l2_weight: float = number(0.1, 0.0, 1e6)
    locality_lpips_weight: float = number(0.1, 0.0, 1e6)
    locality_truncation_psi: float = number(0.5, -10.0, 10.0)


@dataclass(frozen=True, eq=False)
class Tuning:
    """Result of pivotal tuning."""

    generator: Generator  # a tuned copy, frozen, in eval mode
    losses: list[float] = field(default_factory=list)  # weighted loss at each step, mean over the targets
    stopped_by: str = "steps"  # or "threshold", "callback", "nan"
    lpips_threshold: float = 0.0  # the perceptual distance below which it stops


@torch.inference_mode(False)
@torch.enable_grad()
def tune_generator(
    generator: Generator,
    target: Float[Tensor, "batch 3 resolution resolution"],
    w_pivot: Float[Tensor, "pivots num_ws w_dim"],
    *,
    perceptual: PerceptualDistance,
    config: TuningConfig | None = None,
    noise: Sequence[Tensor] | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Tuning:
    """Tune a copy of the generator's synthesis network so that it draws the targets at their pivots.

    Args:
        generator: Not changed.
        target: Images, RGB, in [-1, 1]. Several images share one tuned generator: in each step each image has a turn,
            which ends in an update of its own, as in PTI's `multi_id_coach.py`.
        w_pivot: A pivot for each image. It is not optimised.
        perceptual: The perceptual distance of the loss.
        config: Settings. `None` means PTI's.
        noise: Noise of the projection, one tensor (1, 1, r, r) for each style layer, which becomes the copy's constant
            noise. `None` keeps the generator's own.
        seed: Seed of the locality term's draws of z.
        callback: Called after each step with the step, from 1, and {"stage": "tuning", "loss", "l2", "lpips",
            "y_hat"}, means over the images. Returning True stops the run with the best state so far; an exception
            passes through.

    Returns:
        The state of the lowest loss, which is the mean over the images, each measured in its turn.

    Raises:
        ValueError: If shapes do not fit, or `noise` belongs to several images.
        DivergedError: If the first step gives NaN or infinity. Later, the run stops with the best state.
    """
    config = config or TuningConfig()
    resolution = generator.config.resolution
    if target.shape[-2:] != (resolution, resolution):
        raise ValueError(f"`target` must be {resolution} px a side, got {target.shape[-2]} x {target.shape[-1]}.")
    if len(target) != len(w_pivot):
        raise ValueError(f"`w_pivot` must have one entry for each image, got {len(w_pivot)} for {len(target)} images.")
    tuned = copy.deepcopy(generator).eval().requires_grad_(False)
    if noise is not None:
        if any(len(tensor) != 1 for tensor in noise):
            raise ValueError("`noise` must belong to one image: a generator has one constant noise.")
        for conv, tensor in zip(tuned.synthesis.convs, noise, strict=True):
            conv.noise_const.copy_(tensor[0, 0])
    parameters = [p.requires_grad_() for p in tuned.synthesis.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)  # saves a fifth of a step on a CPU
    pairs = [(y[None].clone(), w[None].detach().clone()) for y, w in zip(target, w_pivot)]  # leave inference mode
    with torch.no_grad():
        wanted = [perceptual.features(y) for y, _ in pairs]
        best = [p.clone() for p in parameters]
    rng = latents.random_source(seed)
    threshold = perceptual.threshold if config.lpips_threshold is None else config.lpips_threshold

    losses: list[float] = []
    best_loss, stopped_by = float("inf"), "steps"
    figures, pictures = dict[str, list[float]](), list[Tensor]()  # of a step: a turn of each image
    for step, turn in itertools.product(range(config.num_steps + 1), range(len(pairs))):
        (y, w), last = pairs[turn], step == config.num_steps  # the last step only measures the losses
        local = config.use_locality and not last and step % config.locality_interval == 0
        w_local, frozen = _locality_targets(generator, w, config, rng) if local else (w[:0], y[:0])
        drawn = _draw(tuned, w, w_local)  # one pass is faster than two on a CPU
        features = perceptual.features(drawn)
        l2 = F.mse_loss(drawn[:1], y)
        lpips = perceptual.distance([layer[:1] for layer in features], wanted[turn]).mean()
        loss = config.l2_weight * l2 + config.lpips_weight * lpips
        values = torch.stack([loss, l2, lpips]).tolist()  # the only wait in a turn
        if not math.isfinite(values[0]):
            if not losses:
                raise DivergedError(f"The loss of the first step is {values[0]}: check the target and the pivot.")
            logger.warning("Step %d gave NaN or infinity; keeping the best state so far.", step + 1)
            stopped_by = "nan"
            break
        for name, value in zip(("loss", "l2", "lpips"), values):
            figures.setdefault(name, []).append(value)
        pictures += [drawn[:1].detach()] if callback else []
        if turn == len(pairs) - 1:
            means = {name: sum(each) / len(pairs) for name, each in figures.items()}
            losses.append(means["loss"])
            if losses[-1] <= best_loss:
                best_loss = losses[-1]
                with torch.no_grad():
                    torch._foreach_copy_(best, parameters)
            if step > 0:
                if callback and callback(step, {"stage": "tuning", **means, "y_hat": torch.cat(pictures)}):
                    stopped_by = "callback"
                    break
                if max(figures["lpips"]) <= threshold:  # no image was due, so all were measured in one state
                    stopped_by = "threshold"
                    break
            figures, pictures = {}, []
        if last or (step > 0 and values[2] <= threshold):  # an image that is near enough makes no change
            continue
        if local:
            local_l2 = F.mse_loss(drawn[1:], frozen)
            local_lpips = perceptual.distance([layer[1:] for layer in features], perceptual.features(frozen)).mean()
            loss = loss + config.locality_l2_weight * local_l2 + config.locality_lpips_weight * local_lpips
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        torch._foreach_copy_(parameters, best)
    return Tuning(tuned.requires_grad_(False), losses, stopped_by, threshold)


@torch.no_grad()
def _locality_targets(
    generator: Generator, w_pivot: Tensor, config: TuningConfig, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw codes near a pivot, and the given generator's images there, which the tuned one must reproduce (L_R)."""
    w_sampled = latents.broadcast(generator.sample_w(config.locality_samples, rng), generator.num_ws)
    w_sampled = latents.truncate(w_sampled, generator.w_avg, truncation_psi=config.locality_truncation_psi)
    torch.randint(1, (config.locality_samples,), generator=rng, device="cpu")  # keeps what earlier versions drew next
    w_local = interpolate_codes(w_pivot.expand_as(w_sampled), w_sampled, alpha=config.locality_alpha)
    return w_local, generator.synthesis(w_local, noise_mode="none")


def interpolate_codes(
    w_pivot: Float[Tensor, "batch num_ws w_dim"], w_sampled: Float[Tensor, "batch num_ws w_dim"], *, alpha: float
) -> Float[Tensor, "batch num_ws w_dim"]:
    """Go a fixed distance from the pivots towards random codes (section 3.3).

    w_r = w_p + alpha (w_z - w_p) / ||w_z - w_p||_2. The norm is over all layers together, as in the original code: in
    W, where all layers are equal, alpha 30 moves each layer by 30 / sqrt(18) = 7.07 at 1024 px. The result is w_z where
    that is nearer than `alpha`.
    """
    towards = w_sampled - w_pivot
    norm = towards.norm(dim=(1, 2), keepdim=True)  # (batch, 1, 1)
    share = (alpha / norm.where(norm > 0, 1.0)).clamp(max=1.0)
    return w_pivot + share * towards


def _draw(tuned: Generator, w_pivot: Tensor, w_local: Tensor) -> Tensor:
    """Draw the image at a pivot, with the constant noise, then those near it, without noise."""
    if not len(w_local):
        return tuned.synthesis(w_pivot)
    codes = torch.cat([w_pivot, w_local])
    with_noise = (torch.arange(len(codes), device=codes.device) < 1).view(-1, 1, 1, 1)
    return tuned.synthesis(codes, noise=[conv.noise_const * with_noise for conv in tuned.synthesis.convs])
