import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from stylegan_inversion.training.config import OptimizerOptions
from stylegan_inversion.training.optimizer import Ranger, apply_gradients, make_optimizer

Array = NDArray[np.float64]
SHAPES = ((4, 3, 3, 3), (5, 4), (6,), ())


def draw(seed: int, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def parameters(seed: int = 0, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[nn.Parameter]:
    return [nn.Parameter(tensor) for tensor in draw(seed, shapes)]


def run(optimizer: Ranger | torch.optim.RAdam, params: list[nn.Parameter], steps: range) -> None:
    """Steps whose gradients depend on the weights, so that an error anywhere is carried on."""
    for step in steps:
        for p, noise in zip(params, draw(100 + step, tuple(tuple(p.shape) for p in params))):
            p.grad = (0.3 * p.detach() + noise).to(p.dtype)
        optimizer.step()


def reference(w: Array, gradients: Any, steps: int, **settings: Any) -> Array:
    """The three papers, one formula a line, on one tensor. `gradients(t, w)` gives the gradient of step t."""
    lr, alpha, k, (beta1, beta2), eps = (settings[name] for name in ("lr", "alpha", "k", "betas", "eps"))
    phi, m, v = w.copy(), np.zeros_like(w), np.zeros_like(w)
    rho_inf = 2 / (1 - beta2) - 1
    for t in range(1, steps + 1):
        g = gradients(t, w)
        if g.ndim > 1:  # gradient centralisation: each output channel's gradient has mean 0
            g = np.stack([channel - channel.mean() for channel in g])
        v = beta2 * v + (1 - beta2) * g**2
        m = beta1 * m + (1 - beta1) * g
        m_hat = m / (1 - beta1**t)
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 5:
            l = math.sqrt(1 - beta2**t) / (np.sqrt(v) + eps)  # noqa: E741  the paper's name
            r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            w = w - lr * m_hat * r * l
        else:
            w = w - lr * m_hat
        if t % k == 0:
            phi = phi + alpha * (w - phi)
            w = phi.copy()
    return w


@pytest.mark.parametrize("steps", [1, 6, 7, 25])  # 1-5 unrectified, 6 rectified and the first Lookahead
def test_against_the_papers(steps: int) -> None:
    settings = {"lr": 0.03, "alpha": 0.5, "k": 6, "betas": (0.95, 0.999), "eps": 1e-5}
    params = parameters()
    start = [p.detach().numpy().copy() for p in params]
    run(Ranger(params, lr=0.03), params, range(1, steps + 1))
    for i, p in enumerate(params):
        expected = reference(start[i], lambda t, w, i=i: 0.3 * w + draw(100 + t)[i].numpy(), steps, **settings)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_a_parameter_without_a_gradient_is_skipped_and_counts_its_own_steps() -> None:
    late, early = parameters(1, ((3, 2),)), parameters(2, ((3, 2),))
    before = late[0].detach().clone()
    optimizer = Ranger([*late, *early], lr=0.1)
    run(optimizer, early, range(1, 5))
    assert torch.equal(late[0], before) and len(optimizer.state_dict()["state"]) == 1
    run(optimizer, [*late, *early], range(5, 13))
    alone = parameters(1, ((3, 2),))
    run(Ranger(alone, lr=0.1), alone, range(5, 13))
    torch.testing.assert_close(late[0].detach(), alone[0].detach(), rtol=0, atol=1e-15)


def rates(options: OptimizerOptions, steps: int) -> list[float]:
    optimizer, schedule = make_optimizer(options, [nn.Parameter(torch.ones(1))], steps=steps)
    seen = [optimizer.param_groups[0]["lr"]]
    for step in range(1, steps + 1):
        schedule.step(step)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_cosine() -> None:
    seen = rates(OptimizerOptions(lr=1.0, warmup=0.2, schedule="cosine"), 20)
    assert seen[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert seen[12] == pytest.approx(0.5) and seen[8] == pytest.approx(0.5 + math.sqrt(0.125))
    assert seen[20] == pytest.approx(0.0, abs=1e-12) and seen[4:] == sorted(seen[4:], reverse=True)
    assert rates(OptimizerOptions(lr=1.0, warmup=1.0, schedule="cosine"), 4)[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.fixture
def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(1))]


def test_long_gradients_are_clipped(weights: list[nn.Parameter]) -> None:
    accelerator = Accelerator(cpu=True)
    for gradient, moved in ((30.0, 0.6), (0.003, 0.003)):
        for weight in weights:
            weight.data.fill_(1.0)
            weight.grad = None
        weights[0].grad, weights[2].grad = torch.tensor([gradient, 0.0, 0.0]), torch.tensor([gradient / 0.75])
        sgd = torch.optim.SGD(weights, lr=1.0)
        assert apply_gradients(accelerator, sgd, torch.tensor(1.0), max_norm=1.0)
        assert float(1 - weights[0].detach()[0]) == pytest.approx(moved, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["gradient", "loss"])
def test_a_bad_step_changes_nothing(weights: list[nn.Parameter], bad: float, place: str) -> None:
    adam = torch.optim.Adam(weights, lr=1.0)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    loss = torch.tensor(1.0)
    if place == "gradient":
        weights[1].grad = torch.tensor([[1.0, bad], [1.0, 1.0]])
    else:
        loss = torch.tensor(bad)
    assert not apply_gradients(Accelerator(cpu=True), adam, loss)
    assert all(bool((weight == 1).all()) and weight.grad is None for weight in weights)
    assert not adam.state


def test_float16_scales_until_there_is_no_hope(weights: list[nn.Parameter]) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    process: Any = SimpleNamespace(num_processes=1, scaler=scaler)
    sgd = torch.optim.SGD(weights, lr=1.0)

    def step(gradient: float, loss: float = 1.0) -> bool:
        scale = float(scaler.scale(torch.ones(())))
        for weight in weights:
            weight.grad = torch.full_like(weight, gradient * scale)
        return apply_gradients(process, sgd, torch.tensor(loss), max_norm=100.0)

    assert step(0.5) and all(bool((weight == 0.5).all()) for weight in weights)
    overflows = [step(math.inf) for _ in range(20)]
    assert overflows == [True] * 13 + [False] * 7  # the scale falls from 8 to 2**-10, and below
    assert not step(0.5, math.nan)
    assert all(bool((weight == 0.5).all()) for weight in weights)
    assert step(0.25) and all(bool((weight == 0.25).all()) for weight in weights)
