"""Ranger, the optimiser of pSp and e4e: RAdam, Lookahead and gradient centralisation.

Papers: Liu et al. 2020 (RAdam), arXiv:1908.03265, algorithm 2; Zhang et al. 2019 (Lookahead), arXiv:1907.08610,
algorithm 1; Yong et al. 2020 (gradient centralisation), arXiv:2004.01461, equation 1. Original combination:
https://github.com/lessw2020/Ranger-Deep-Learning-Optimizer (Apache-2.0), version 20.4.11, as pSp and e4e use it.
Own code, from the papers.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class Ranger(torch.optim.Optimizer):
    """RAdam whose weights are pulled back, every `k` steps, half way to where they were `k` steps ago.

    The whole state is tensors, so `state_dict` and `load_state_dict` continue a run to the bit. Parameters without a
    gradient are skipped, and count their own steps.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        alpha: float = 0.5,
        k: int = 6,
        n_sma_threshold: float = 5.0,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
    ) -> None:
        """Set up; the defaults but `lr` are those of pSp and e4e, which train at 1e-4.

        Args:
            params: Parameters or groups of them. Real and dense.
            lr: Learning rate, > 0.
            alpha: Lookahead's step from the slow weights towards the fast ones, in [0, 1]. 1 switches Lookahead off.
            k: Steps between two steps of Lookahead, >= 1.
            n_sma_threshold: RAdam's: while the length of the approximated moving average is not above it (steps 1 to 5
                with the default betas), the second moment is not trusted, and a step is lr times the first one. >= 4.
            betas: Decay of the two moments, each in [0, 1).
            eps: Added to the root of the second moment, > 0. Large beside Adam's 1e-8.
            weight_decay: Share of the weights, times `lr`, that is taken away at each step (decoupled), >= 0.

        Raises:
            ValueError: If a value is out of range.
        """
        for name, value, good, allowed in (
            ("lr", lr, lr > 0, "> 0"),
            ("alpha", alpha, 0 <= alpha <= 1, "in [0, 1]"),
            ("k", k, k >= 1, ">= 1"),
            ("n_sma_threshold", n_sma_threshold, n_sma_threshold >= 4, ">= 4"),
            ("betas", betas, all(0 <= beta < 1 for beta in betas), "in [0, 1)"),
            ("eps", eps, eps > 0, "> 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, ">= 0"),
        ):
            if not good:
                raise ValueError(f"`{name}` must be {allowed}, got {value}.")
        defaults = {"lr": lr, "alpha": alpha, "k": k, "n_sma_threshold": n_sma_threshold, "betas": betas, "eps": eps}
        super().__init__(params, defaults | {"weight_decay": weight_decay})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for kept in self.state.values():
            kept["step"] = kept["step"].cpu()  # read at each step: elsewhere it would wait for the device

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Computes the loss and its gradients anew.

        Returns:
            What the closure gave.

        Raises:
            ValueError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_step: dict[int, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise ValueError("Gradients must be dense, got a sparse one: set `sparse=False` in the embedding.")
                state = self._state_of(p)
                state["step"] += 1
                by_step.setdefault(int(state["step"]), []).append(p)
            for step, params in by_step.items():  # one round, unless some parameters joined late
                self._update(params, step, group)
        return loss

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["slow"] = p.detach().clone(memory_format=torch.preserve_format)
        return state

    def _update(self, params: list[Tensor], step: int, group: dict[str, Any]) -> None:
        """One step of parameters that are all at the same step, counted from 1."""
        lr, (beta1, beta2) = group["lr"], group["betas"]
        exp_avg, exp_avg_sq, slow = ([self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "slow"))
        gradients = [_centralised(p.grad) for p in params if p.grad is not None]

        torch._foreach_mul_(exp_avg, beta1)
        torch._foreach_add_(exp_avg, gradients, alpha=1 - beta1)
        torch._foreach_mul_(exp_avg_sq, beta2)
        torch._foreach_addcmul_(exp_avg_sq, gradients, gradients, 1 - beta2)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        rectification = _rectification(step, beta2, group["n_sma_threshold"])
        size = lr / (1 - beta1**step)
        if rectification is None:
            torch._foreach_add_(params, exp_avg, alpha=-size)
        else:
            denominator = torch._foreach_sqrt(exp_avg_sq)
            torch._foreach_add_(denominator, group["eps"])
            torch._foreach_addcdiv_(params, exp_avg, denominator, -size * rectification)
        if step % group["k"] == 0:
            torch._foreach_lerp_(slow, params, group["alpha"])
            torch._foreach_copy_(params, slow)


def _centralised(gradient: Tensor) -> Tensor:
    """Take from the gradient of each output channel its mean; vectors (biases, scales) stay as they are."""
    if gradient.ndim < 2:
        return gradient
    return gradient - gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True)


def _rectification(step: int, beta2: float, threshold: float) -> float | None:
    """RAdam's r_t sqrt(1 - beta2^t), or `None` while the second moment is not to be trusted."""
    n_sma_max = 2 / (1 - beta2) - 1
    beta2_t = beta2**step
    n_sma = n_sma_max - 2 * step * beta2_t / (1 - beta2_t)
    if n_sma <= threshold:
        return None
    r = (n_sma - 4) * (n_sma - 2) * n_sma_max / ((n_sma_max - 4) * (n_sma_max - 2) * n_sma)
    return math.sqrt(r * (1 - beta2_t))
