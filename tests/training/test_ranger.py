import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stylegan_inversion.training.ranger import Ranger

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
        w = w * (1 - lr * settings.get("weight_decay", 0.0))
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


@pytest.mark.parametrize("steps", [1, 5, 6, 7, 12, 25])  # 1-5 unrectified, 6 rectified and the first Lookahead
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_against_the_papers(steps: int, weight_decay: float) -> None:
    settings = {"lr": 0.03, "alpha": 0.5, "k": 6, "betas": (0.95, 0.999), "eps": 1e-5, "weight_decay": weight_decay}
    params = parameters()
    start = [p.detach().numpy().copy() for p in params]
    run(Ranger(params, lr=0.03, weight_decay=weight_decay), params, range(1, steps + 1))
    for i, p in enumerate(params):
        expected = reference(start[i], lambda t, w, i=i: 0.3 * w + draw(100 + t)[i].numpy(), steps, **settings)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_defaults_are_those_of_psp() -> None:
    defaults = Ranger(parameters()).defaults
    assert {key: defaults[key] for key in ("alpha", "k", "n_sma_threshold", "betas", "eps", "weight_decay")} == {
        "alpha": 0.5,
        "k": 6,
        "n_sma_threshold": 5.0,
        "betas": (0.95, 0.999),
        "eps": 1e-5,
        "weight_decay": 0.0,
    }


def test_the_first_steps_by_hand() -> None:
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = Ranger([p], lr=0.5)
    p.grad = torch.tensor([0.2, 4.0], dtype=torch.float64)
    optimizer.step()
    # m_hat of the first step is the gradient itself, and the second moment has no say yet
    torch.testing.assert_close(p.detach(), torch.tensor([0.9, -4.0], dtype=torch.float64))


def test_lookahead_goes_half_way_back() -> None:
    fast, params = parameters(), parameters()
    start = [p.detach().clone() for p in params]
    run(Ranger(fast, lr=0.1, alpha=1.0), fast, range(1, 7))
    run(Ranger(params, lr=0.1), params, range(1, 7))
    for p, q, before in zip(params, fast, start):
        torch.testing.assert_close(p.detach(), (q.detach() + before) / 2)


def test_without_lookahead_and_on_vectors_it_is_radam() -> None:
    shapes = ((7,), (), (3,))
    ours, theirs = parameters(1, shapes), parameters(1, shapes)
    run(Ranger(ours, lr=0.02, alpha=1.0, betas=(0.9, 0.99), eps=1e-8), ours, range(1, 41))
    run(torch.optim.RAdam(theirs, lr=0.02, betas=(0.9, 0.99), eps=1e-8), theirs, range(1, 41))
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-11, atol=1e-12)


def test_centralisation_takes_the_mean_from_each_output_channel_and_leaves_the_gradient_alone() -> None:
    ours, theirs = parameters(1, ((3, 4),)), parameters(1, ((12,),))
    gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ours[0].grad = gradient.clone()
    theirs[0].data = ours[0].detach().clone().flatten()
    theirs[0].grad = (gradient - gradient.mean(dim=1, keepdim=True)).flatten()
    for params in (ours, theirs):
        Ranger(params, lr=0.1).step()
    torch.testing.assert_close(ours[0].detach().flatten(), theirs[0].detach())
    assert torch.equal(ours[0].grad, gradient)


@pytest.mark.parametrize("saved", [1, 5, 6, 10])
def test_resume_is_exact(saved: int, tmp_path: Path) -> None:
    whole, halves = parameters(), parameters()
    run(Ranger(whole, lr=0.01), whole, range(1, 21))
    optimizer = Ranger(halves, lr=0.01)
    run(optimizer, halves, range(1, saved + 1))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")

    again = [nn.Parameter(p.detach().clone()) for p in halves]
    fresh = Ranger(again, lr=0.5, k=3)  # the saved settings win
    fresh.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    run(fresh, again, range(saved + 1, 21))
    assert all(torch.equal(p, q) for p, q in zip(again, whole))


def test_the_state_is_tensors() -> None:
    params = parameters()
    optimizer = Ranger(params)
    run(optimizer, params, range(1, 3))
    for state in optimizer.state_dict()["state"].values():
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq", "slow"}
        assert all(isinstance(value, Tensor) for value in state.values()) and state["step"].item() == 2


def test_copies_are_independent() -> None:
    params = parameters()
    optimizer = Ranger(params)
    run(optimizer, params, range(1, 3))
    twin = copy.deepcopy(optimizer)
    assert twin.state_dict()["state"][0]["step"] == 2
    run(optimizer, params, range(3, 5))
    assert twin.state_dict()["state"][0]["step"] == 2


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


def test_groups_have_their_own_settings() -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    run(Ranger([{"params": params[:2]}, {"params": params[2:], "lr": 1e-6}], lr=0.1), params, range(1, 4))
    moved = [(p.detach() - b).abs().max().item() for p, b in zip(params, before)]
    assert min(moved[:2]) > 1e-2 and max(moved[2:]) < 1e-4


def test_closure() -> None:
    p = nn.Parameter(torch.tensor([3.0]))
    optimizer = Ranger([p], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(200)]
    assert losses[0] == 9.0 and losses[-1] is not None and losses[-1] < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, r"`lr` must be > 0, got 0\.0\."),
        ({"alpha": 1.1}, r"`alpha` must be in \[0, 1\], got 1\.1\."),
        ({"k": 0}, r"`k` must be >= 1, got 0\."),
        ({"n_sma_threshold": 3.0}, r"`n_sma_threshold` must be >= 4, got 3\.0\."),
        ({"betas": (0.9, 1.0)}, r"`betas` must be in \[0, 1\), got \(0\.9, 1\.0\)\."),
        ({"eps": 0.0}, r"`eps` must be > 0, got 0\.0\."),
        ({"weight_decay": -0.1}, r"`weight_decay` must be >= 0, got -0\.1\."),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ranger(parameters(), **settings)


def test_a_sparse_gradient_is_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="Gradients must be dense"):
        Ranger(embedding.parameters()).step()
