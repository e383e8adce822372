"""The optimizer of a run, its learning rate, and the step that many processes make as one."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stylegan_inversion.training.config import OptimizerOptions
from stylegan_inversion.training.ranger import Ranger

MIN_SCALE = 2.0**-10  # of float16's gradients: below, it is not the scale that makes them overflow


class Schedule:
    """The learning rate as a function of the step alone: nothing to save."""

    def __init__(self, optimizer: torch.optim.Optimizer, options: OptimizerOptions, *, steps: int) -> None:
        self.optimizer, self.options, self.steps = optimizer, options, steps

    def step(self, step: int) -> None:
        """Set the learning rate for a step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)

    def rate(self, step: int) -> float:
        """Learning rate at a step, counted from 0."""
        options = self.options
        rate = options.lr
        warmup = options.warmup * self.steps
        if step < warmup:
            rate *= (step + 1) / (warmup + 1)
        elif options.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, self.steps - warmup))))
        return rate


def make_optimizer(
    options: OptimizerOptions, parameters: Sequence[nn.Parameter], *, steps: int
) -> tuple[torch.optim.Optimizer, Schedule]:
    """Build the optimizer and its schedule, set for step 0."""
    settings: dict[str, Any] = (
        {} if options.betas is None else {"betas": (float(options.betas[0]), float(options.betas[1]))}
    )
    cls = {"ranger": Ranger, "adam": torch.optim.Adam}[options.name]
    if options.name == "adam":
        settings["fused"] = True  # one pass over the memory instead of ten
    optimizer = cls(parameters, lr=options.lr, **settings)
    schedule = Schedule(optimizer, options, steps=steps)
    schedule.step(0)
    return optimizer, schedule


def lazy_options(options: OptimizerOptions, every: int) -> OptimizerOptions:
    """Options of an optimizer that takes a further step, of a regulariser, each `every` steps.

    With c = every / (every + 1), lr * c and betas ** c, the steps reach as far as they would without the further ones
    (StyleGAN2, arXiv:1912.04958, appendix B).

    Args:
        options: The optimizer's.
        every: Steps between two regularisations; 0 for none, which changes nothing.
    """
    if every == 0:
        return options
    c = every / (every + 1)
    betas = None if options.betas is None else [beta**c for beta in options.betas]
    return dataclasses.replace(options, lr=options.lr * c, betas=betas)


def apply_gradients(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    loss: Tensor,
    *,
    max_norm: float | None = None,
    last: bool = True,
) -> bool:
    """Average the gradients of all processes and take a step, unless something is not finite.

    One flat all-reduce, as NVIDIA's StyleGAN code does, instead of `DistributedDataParallel`: parameters that a stage
    does not use simply have no gradient, and penalties may differentiate twice.

    Args:
        accelerator: The processes, and the scaler of float16.
        optimizer: Of the parameters.
        parameters: Those that are trained; some may have no gradient.
        loss: The loss of this process, to tell a bad step.
        max_norm: Longer gradients are scaled down to this norm.
        last: Whether no other optimizer steps on gradients of the same pass: float16's scale changes after the last.

    Returns:
        Whether loss and gradients were finite, the same for all processes. If not, nothing has changed, but for
        the scale of float16: overflows are its normal life and count as finite, until the scale is next to nothing.
    """
    used = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in used if p.grad is not None]
    loss = loss.detach().reshape(1).float()
    if accelerator.num_processes > 1:
        flat = torch.cat([g.flatten() for g in gradients] + [loss])
        *means, loss = accelerator.reduce(flat, reduction="mean").split([g.numel() for g in gradients] + [1])
        for gradient, mean in zip(gradients, means):
            gradient.copy_(mean.view_as(gradient))
    scaler = accelerator.scaler
    checked = [loss] if scaler is not None else [loss, *gradients]
    if not torch.isfinite(torch.stack(torch._foreach_norm(checked))).all():
        optimizer.zero_grad(set_to_none=True)
        return False
    if scaler is not None:
        scaler.unscale_(optimizer)
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(used, max_norm)
    if scaler is None:
        optimizer.step()
        return True
    before = scaler.get_scale()
    scaler.step(optimizer)
    if last:
        scaler.update()
    return not scaler.get_scale() < min(before, MIN_SCALE)
