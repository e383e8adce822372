"""The optimizer of a run: Ranger, the learning rate, and one step on the gradients of all processes.

pSp and e4e train with Ranger: RAdam, Lookahead and gradient centralisation. Papers: Liu et al. 2020 (RAdam),
arXiv:1908.03265, algorithm 2; Zhang et al. 2019 (Lookahead), arXiv:1907.08610, algorithm 1; Yong et al. 2020 (gradient
centralisation), arXiv:2004.01461, equation 1. Original combination:
https://github.com/lessw2020/Ranger-Deep-Learning-Optimizer (Apache-2.0), version 20.4.11, as pSp and e4e use it.
RAdam is PyTorch's, with the same threshold and the same place of epsilon; the rest is own code, from the papers.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from stylegan_inversion.training.config import OptimizerOptions

MIN_SCALE = 2.0**-10  # float16's gradients that overflow below this scale do not do so because of it


class Ranger(torch.optim.RAdam):
    """RAdam that pulls its weights back, every `K` steps, half way to where they were `K` steps ago.

    Its state is all tensors, so a resumed run is exact to the bit. Parameters without a gradient are skipped, and each
    counts its own steps. The settings are those of pSp and e4e, which train at a learning rate of 1e-4.
    """

    K, ALPHA = 6, 0.5  # Lookahead: steps between two of its steps, from the slow weights towards the fast ones
    EPS = 1e-5  # added to the root of the second moment; large beside Adam's 1e-8

    def __init__(self, params: ParamsT, lr: float = 1e-3, *, betas: tuple[float, float] = (0.95, 0.999)) -> None:
        """Set up; `betas` are the decays of the two moments, each in [0, 1)."""
        super().__init__(params, lr, betas, self.EPS, foreach=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step. Gradients must be dense; those of matrices and convolutions are centralised, in place."""
        used = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        begun = {p: p.detach().clone(memory_format=torch.preserve_format) for p in used if not self.state[p]}
        for gradient in (p.grad for p in used if p.grad.ndim > 1):
            gradient -= gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True)
        super().step()
        for p, slow in begun.items():
            self.state[p]["slow"] = slow
        if due := [p for p in used if self.state[p]["step"] % self.K == 0]:
            slow_weights = [self.state[p]["slow"] for p in due]
            torch._foreach_lerp_(slow_weights, due, self.ALPHA)
            torch._foreach_copy_(due, slow_weights)


class Schedule:
    """The learning rate as a function of the step alone: nothing to save."""

    def __init__(self, optimizer: torch.optim.Optimizer, options: OptimizerOptions, *, steps: int) -> None:
        self.optimizer, self.options, self.steps = optimizer, options, steps
        self.step(0)

    def step(self, step: int) -> None:
        """Set the learning rate for a step, counted from 0."""
        options, rate = self.options, self.options.lr
        warmup = options.warmup * self.steps
        if step < warmup:
            rate *= (step + 1) / (warmup + 1)
        elif options.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, self.steps - warmup))))
        for group in self.optimizer.param_groups:
            group["lr"] = rate


def make_optimizer(
    options: OptimizerOptions, parameters: Sequence[nn.Parameter], *, steps: int
) -> tuple[torch.optim.Optimizer, Schedule]:
    """Build the optimizer and its learning rate, set for step 0."""
    settings: dict[str, Any] = {} if options.betas is None else {"betas": options.betas}
    optimizer: torch.optim.Optimizer
    if options.name == "adam":
        optimizer = torch.optim.Adam(parameters, fused=True, **settings)  # one pass over the memory instead of ten
    else:
        optimizer = Ranger(parameters, **settings)
    return optimizer, Schedule(optimizer, options, steps=steps)


def lazy_options(options: OptimizerOptions, every: int) -> OptimizerOptions:
    """Options of an optimizer that takes a further step, of a regulariser, each `every` steps; 0 changes nothing.

    With c = every / (every + 1), lr * c and betas ** c, the steps reach as far as they would without the further ones
    (StyleGAN2, arXiv:1912.04958, appendix B).
    """
    if every == 0:
        return options
    c = every / (every + 1)
    betas = options.betas and (options.betas[0] ** c, options.betas[1] ** c)
    return dataclasses.replace(options, lr=options.lr * c, betas=betas)


def apply_gradients(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, loss: Tensor, *, max_norm: float | None = None
) -> bool:
    """Average the gradients of all processes and take a step, unless something is not finite.

    One flat all-reduce, as NVIDIA's StyleGAN code does, instead of `DistributedDataParallel`: parameters that a stage
    does not use simply have no gradient, and penalties may differentiate twice.

    Gradients longer than `max_norm` are scaled down to it. Returns whether they and the `loss` of this process were
    finite, the same in all processes. If not, nothing has changed but the scale of float16, whose overflows are normal
    and count as finite until the scale is below `MIN_SCALE`.
    """
    used = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
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
    scaler.update()
    return not scaler.get_scale() < min(before, MIN_SCALE)


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move an exponential moving average of a network's parameters; its buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for buffer, now in zip(average.buffers(), network.buffers()):
        buffer.copy_(now)
