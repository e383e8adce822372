import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from stylegan_inversion.training.optimize import apply_gradients, lazy_options, make_optimizer
from torch import nn

from stylegan_inversion.training.config import OptimizerOptions
from stylegan_inversion.training.ranger import Ranger


def rates(options: OptimizerOptions, steps: int) -> list[float]:
    optimizer, schedule = make_optimizer(options, [nn.Parameter(torch.ones(1))], steps=steps)
    seen = [optimizer.param_groups[0]["lr"]]
    for step in range(1, steps + 1):
        schedule.step(step)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_constant() -> None:
    assert set(rates(OptimizerOptions(lr=3e-4), 20)) == {3e-4}


def test_warmup() -> None:
    seen = rates(OptimizerOptions(lr=1.0, warmup=0.2), 20)
    assert seen[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8]) and set(seen[4:]) == {1.0}


def test_cosine() -> None:
    seen = rates(OptimizerOptions(lr=1.0, warmup=0.2, schedule="cosine"), 20)
    assert seen[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert seen[12] == pytest.approx(0.5) and seen[8] == pytest.approx(0.5 + math.sqrt(0.125))
    assert seen[20] == pytest.approx(0.0, abs=1e-12) and seen[4:] == sorted(seen[4:], reverse=True)
    assert rates(OptimizerOptions(lr=1.0, warmup=1.0, schedule="cosine"), 4)[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_optimizers() -> None:
    weights = [nn.Parameter(torch.ones(2))]
    ranger, _ = make_optimizer(OptimizerOptions(), weights, steps=10)
    assert isinstance(ranger, Ranger) and ranger.defaults["betas"] == (0.95, 0.999) and ranger.defaults["lr"] == 1e-4
    assert type(make_optimizer(OptimizerOptions(name="adam"), weights, steps=10)[0]) is torch.optim.Adam


def test_whole_numbers_are_betas_too() -> None:
    adam, _ = make_optimizer(OptimizerOptions("adam", betas=[0, 0.99]), [nn.Parameter(torch.ones(2))], steps=10)
    assert adam.param_groups[0]["betas"] == (0.0, 0.99)


def test_lazy_options() -> None:
    options = OptimizerOptions("adam", 2e-3, warmup=0.1, betas=[0.5, 0.99], max_grad_norm=3.0)
    lazy = lazy_options(options, 16)
    assert lazy.lr == pytest.approx(2e-3 * 16 / 17)
    assert lazy.betas == pytest.approx([0.5 ** (16 / 17), 0.99 ** (16 / 17)])
    assert (lazy.name, lazy.warmup, lazy.max_grad_norm) == ("adam", 0.1, 3.0)
    assert options.lr == 2e-3 and options.betas == [0.5, 0.99]
    assert lazy_options(options, 0) is options
    assert lazy_options(OptimizerOptions(lr=1.0), 4) == OptimizerOptions(lr=0.8)


@pytest.fixture
def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(1))]


def test_a_step(weights: list[nn.Parameter]) -> None:
    accelerator = Accelerator(cpu=True)
    sgd = torch.optim.SGD(weights, lr=1.0)
    weights[0].grad, weights[1].grad = torch.full((3,), 0.5), torch.full((2, 2), -0.5)  # the last one is not used
    assert apply_gradients(accelerator, sgd, weights, torch.tensor(1.0))
    assert [float(p.detach().mean()) for p in weights] == [0.5, 1.5, 1.0]
    assert weights[2].grad is None


def test_long_gradients_are_clipped(weights: list[nn.Parameter]) -> None:
    accelerator = Accelerator(cpu=True)
    for gradient, moved in ((30.0, 0.6), (0.003, 0.003)):
        for weight in weights:
            weight.data.fill_(1.0)
            weight.grad = None
        weights[0].grad, weights[2].grad = torch.tensor([gradient, 0.0, 0.0]), torch.tensor([gradient / 0.75])
        sgd = torch.optim.SGD(weights, lr=1.0)
        assert apply_gradients(accelerator, sgd, weights, torch.tensor(1.0), max_norm=1.0)
        assert float(1 - weights[0].detach()[0]) == pytest.approx(moved, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
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
    assert not apply_gradients(Accelerator(cpu=True), adam, weights, loss)
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
        return apply_gradients(process, sgd, weights, torch.tensor(loss), max_norm=100.0)

    assert step(0.5) and all(bool((weight == 0.5).all()) for weight in weights)
    overflows = [step(math.inf) for _ in range(20)]
    assert overflows == [True] * 13 + [False] * 7  # the scale falls from 8 to 2**-10, and below
    assert not step(0.5, math.nan)
    assert all(bool((weight == 0.5).all()) for weight in weights)
    assert step(0.25) and all(bool((weight == 0.25).all()) for weight in weights)
