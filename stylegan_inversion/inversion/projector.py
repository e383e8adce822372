"""Projection of images into W or W+ by optimisation.

Paper: Karras et al. 2020, arXiv:1912.04958, appendix D. Settings: PTI's (Roich et al. 2022, arXiv:2106.05744;
danielroich/PTI, MIT, `configs/hyperparameters.py` and `training/projectors/w_projector.py`). Own code.

Departures from PTI's code:
- The learning rate is the one that takes effect: PTI overwrites `first_inv_lr` 5e-3 by 0.01 times the ramp.
- w is repeated for as many layers as the generator has, not 18.
- The optimised noise is returned; PTI throws it away.
- For each image the w of the lowest distance is returned, not the last one. The distance is measured with noise on w.
- The perceptual network is the caller's; PTI takes the VGG16 of NVIDIA's LPIPS.
"""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.errors import DivergedError
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator

logger = logging.getLogger(__name__)

Callback = Callable[[int, dict[str, Any]], bool | None]
"""Called after each step with its number, from 1, and its figures. Returns True to stop there."""


@dataclass(frozen=True)
class ProjectorConfig(BoundedConfig):
    """Settings of the projection. The defaults are PTI's."""

    num_steps: int = number(450, 1, 1_000_000)
    learning_rate: float = number(0.01, 1e-12, 1e3)  # of Adam, at the top of the ramp
    ramp_up: float = number(0.05, 1e-6, 1.0)  # share of the steps over which the learning rate rises linearly
    ramp_down: float = number(0.25, 1e-6, 1.0)  # share over which it falls along a cosine
    num_w_samples: int = number(600, 2, 100_000)  # draws of z for the average and the spread of w; 10,000 in StyleGAN2
    w_noise: float = number(0.05, 0.0, 100.0)  # noise on w at the start, in units of the spread of w
    w_noise_ramp: float = number(0.75, 1e-6, 1.0)  # share of the steps over which that noise falls to nothing
    noise_weight: float = number(1e5, 0.0, 1e12)  # weight of the noise regularisation
    optimize_noise: bool = True

    def learning_rate_at(self, step: int) -> float:
        """Compute the learning rate at a step, from 0."""
        t = step / self.num_steps
        ramp = 0.5 - 0.5 * math.cos(min(1.0, (1 - t) / self.ramp_down) * math.pi)
        return self.learning_rate * ramp * min(1.0, t / self.ramp_up)

    def w_noise_at(self, step: int) -> float:
        """Compute the noise on w at a step, from 0, in units of the spread of w."""
        return self.w_noise * max(0.0, 1 - step / self.num_steps / self.w_noise_ramp) ** 2


@dataclass(frozen=True, eq=False)
class Projection:
    """Result of a projection."""

    w_plus: Float[Tensor, "batch num_ws w_dim"]  # all layers are equal if the projection was into W
    noise: list[Tensor]  # the optimised noise, one tensor (B, 1, r, r) for each style layer
    losses: list[float] = field(default_factory=list)  # perceptual distance at each step, averaged over the batch
    stopped_by: str = "steps"  # or "callback", "nan"


def w_statistics(generator: Generator, num_samples: int, *, seed: int = 123) -> tuple[Tensor, float]:
    """Estimate the average of w, (w_dim,), and its spread: the root of the mean squared distance from the average."""
    w = generator.sample_w(num_samples, latents.random_source(seed))
    w_avg = w.mean(dim=0)
    return w_avg, (w - w_avg).square().sum(dim=1).mean().sqrt().item()


def noise_regularization(noise: list[Tensor]) -> Float[Tensor, ""]:
    """Penalise noise that is not white: squared autocorrelation at a shift of one pixel, over a pyramid down to 8 px.

    The terms of the tensors (B, 1, r, r), their levels, both axes and the batch are summed.
    """
    total = noise[0].new_zeros(())
    for level in noise:
        while True:
            total = total + (level * level.roll(1, dims=3)).mean(dim=(1, 2, 3)).square().sum()
            total = total + (level * level.roll(1, dims=2)).mean(dim=(1, 2, 3)).square().sum()
            if level.shape[2] <= 8:
                break
            level = F.avg_pool2d(level, 2)
    return total


@torch.inference_mode(False)
@torch.enable_grad()
def project_w(
    generator: Generator,
    target: Float[Tensor, "batch 3 resolution resolution"],
    *,
    perceptual: PerceptualDistance,
    config: ProjectorConfig | None = None,
    seed: int = 123,
    callback: Callback | None = None,
    per_layer: bool = False,
) -> Projection:
    """Find the w that draws an image most like the target, starting from the average w.

    Args:
        generator: Not changed.
        target: Images, RGB, in [-1, 1]. Each gets its own w and noise, the same as it would get alone.
        perceptual: Distance to minimise. Images above 256 px are pooled to 256 for it.
        config: Settings. `None` means PTI's.
        seed: Seed of the draws of z and of the noise.
        callback: Called after each step with the step, from 1, and {"stage": "projection", "loss", "learning_rate",
            "y_hat", "w_plus"}; `y_hat` is the image of this step. Returning True stops the run with the best state so
            far; an exception passes through.
        per_layer: Find one w for each layer instead, as Image2StyleGAN does (arXiv:1904.03189): nearer, less editable.

    Returns:
        The state of the lowest loss.

    Raises:
        ValueError: If the target has another side than the generator's images.
        DivergedError: If the first step gives NaN or infinity for any image. Later, the run stops for all images, with
            their best states.
    """
    config = config or ProjectorConfig()
    resolution, num_ws = generator.config.resolution, generator.num_ws
    if target.shape[-2:] != (resolution, resolution):
        raise ValueError(f"`target` must be {resolution} px a side, got {target.shape[-2]} x {target.shape[-1]}.")
    target = target.clone()  # leave the caller's inference mode
    synthesis = copy.deepcopy(generator.synthesis).requires_grad_(False)
    w_avg, w_spread = w_statistics(generator, config.num_w_samples, seed=seed)
    rng = latents.random_source(seed)

    def draw(*shape: int) -> Tensor:
        """Draw the same numbers for each image: those that it would get alone."""
        drawn = latents.normal(rng, 1, *shape).to(target)
        return drawn.repeat(len(target), *[1] * len(shape))

    w_opt = w_avg.to(target).repeat(len(target), num_ws if per_layer else 1, 1).requires_grad_()
    noise = [draw(1, *conv.noise_const.shape) for conv in synthesis.convs]
    if config.optimize_noise:
        noise = [tensor.requires_grad_() for tensor in noise]
    learned = [w_opt, *noise] if config.optimize_noise else [w_opt]
    optimizer = torch.optim.Adam(learned, betas=(0.9, 0.999), fused=True)
    with torch.no_grad():
        wanted = perceptual.features(_at_most_256(target))

    losses: list[float] = []
    best, stopped_by = target.new_full((len(target),), torch.inf), "steps"
    w_best, noise_best = w_opt.detach().clone(), [t.detach().clone() for t in noise]
    for step in range(config.num_steps):
        w_plus = w_opt + draw(*w_opt.shape[1:]) * (w_spread * config.w_noise_at(step))
        y_hat = synthesis(w_plus.expand(-1, num_ws, -1), noise=noise)
        distance = perceptual.distance(perceptual.features(_at_most_256(y_hat)), wanted)
        # Summed over the batch, so that each image takes the steps it would take alone.
        loss = distance.sum()
        if config.optimize_noise:
            loss = loss + noise_regularization(noise) * config.noise_weight
        figure, total = torch.stack([distance.mean(), loss]).tolist()  # the only wait for the device in a step
        if not math.isfinite(total):
            if not losses:
                raise DivergedError(f"The loss of the first step is {total}: check the target and the generator.")
            logger.warning("Step %d gave NaN or infinity; keeping the best state so far.", step + 1)
            stopped_by = "nan"
            break
        losses.append(figure)
        better = distance.detach() <= best
        best = torch.where(better, distance.detach(), best)
        for kept, tensor in zip([w_best, *noise_best], [w_opt, *noise]):
            kept.copy_(tensor.detach().where(better.view(-1, *[1] * (kept.ndim - 1)), kept))

        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for tensor in noise if config.optimize_noise else []:
                tensor -= tensor.mean(dim=(1, 2, 3), keepdim=True)
                tensor *= tensor.square().mean(dim=(1, 2, 3), keepdim=True).rsqrt()
        info = {"stage": "projection", "loss": figure, "learning_rate": config.learning_rate_at(step)}
        tensors = {"y_hat": y_hat.detach(), "w_plus": w_opt.detach().expand(-1, num_ws, -1)}
        if callback and callback(step + 1, info | tensors):
            stopped_by = "callback"
            break
    w_plus = w_best if per_layer else latents.broadcast(w_best[:, 0], num_ws)
    return Projection(w_plus, noise_best, losses, stopped_by)


def _at_most_256(x: Tensor) -> Tensor:
    return F.interpolate(x, size=(256, 256), mode="area") if x.shape[-1] > 256 else x
