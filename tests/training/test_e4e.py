import copy

import pytest
import torch

from stylegan_inversion.training.config import E4EOptions
from stylegan_inversion.training.e4e import LatentAdversary, WPool, progressive_stage
from tests.conftest import rng
from tests.training.conftest import same

PAPER = {"open_from": 0.1, "open_until": 0.26}


def test_stages_open_at_the_steps_of_the_paper() -> None:
    stages = [progressive_stage(step / 200_000, num_ws=18, **PAPER) for step in range(0, 60_000)]
    opened = [step for step in range(1, 60_000) if stages[step] != stages[step - 1]]
    assert opened == list(range(20_000, 52_001, 2_000))  # 17 of them
    assert stages[0] == 0 and stages[-1] == 17


def test_pool_fills_and_then_exchanges_half() -> None:
    pool, source = WPool(5), rng()
    first = torch.arange(5.0)[:, None]
    assert torch.equal(pool.query(first, source), first)
    assert pool.w is not None and torch.equal(pool.w, first)
    given, put = set(range(5)), 5
    old = 0
    for _ in range(100):
        codes = torch.arange(put, put + 10.0)[:, None]
        back = pool.query(codes, source)
        given |= set(range(put, put + 10))
        put += 10
        assert back.shape == codes.shape and set(back.flatten().int().tolist()) <= given
        assert pool.w.shape == (5, 1)
        old += int((back != codes).sum())
    assert 430 < old < 570  # of 1000
    # Nothing is lost or doubled: what came back and what is left is what went in
    pool, source, everything = WPool(5), rng(1), torch.arange(40.0)[:, None]
    back = pool.query(everything, source)
    left = [w for w in pool.w.flatten().tolist()] if pool.w is not None else []
    assert set(back.flatten().tolist()) | set(left) == set(range(40))


def make_adversary(*, pool_size: int = 6, r1: float = 10.0, lr: float = 1e-3) -> LatentAdversary:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = E4EOptions(discriminator_lr=lr, r1=r1, r1_every=4, pool_size=pool_size)
        return LatentAdversary(4, options, device=torch.device("cpu"))


def batch(step: int, *, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    source = rng(step)
    return torch.randn(size, 4, generator=source) + 2, torch.randn(size, 3, 4, generator=source) - 2


def test_discriminator_learns_to_tell_codes_apart() -> None:
    adversary = make_adversary(lr=1e-2, r1=0.1)
    losses = []
    for step in range(60):
        real_w, w_plus = batch(step)
        terms, finite = adversary.update(real_w, w_plus, stage=2, step=step, rng=rng(step))
        assert finite and set(terms) == ({"discriminator", "r1"} if step % 4 == 0 else {"discriminator"})
        losses.append(float(terms["discriminator"]))
    assert losses[0] == pytest.approx(1.386, abs=0.1) and sum(losses[-5:]) / 5 < 0.2
    real_w, w_plus = batch(1000)
    assert adversary.network(real_w).mean() > 0 > adversary.network(w_plus[:, 0]).mean()
    # An encoder pays more for codes that are far from W
    assert adversary.encoder_loss(w_plus, 2) > 5 * adversary.encoder_loss(real_w[:, None], 0)


def test_only_open_layers_are_judged() -> None:
    adversary = make_adversary(pool_size=0)
    w_plus = torch.zeros(8, 3, 4, requires_grad=True)
    adversary.encoder_loss(w_plus, 1).backward()
    assert w_plus.grad is not None
    assert w_plus.grad[:, :2].abs().sum() > 0 and w_plus.grad[:, 2].abs().sum() == 0
    assert all(p.grad is None for p in adversary.network.parameters())
    shut = torch.zeros(8, 3, 4)
    shut[:, 2] = float("nan")
    assert adversary.update(batch(0)[0], shut, stage=1, step=1, rng=rng())[1]
    assert adversary.update(batch(0)[0], shut, stage=2, step=1, rng=rng())[1] is False


@pytest.mark.parametrize("step", [3, 4])
def test_a_bad_update_changes_nothing(step: int) -> None:
    adversary = make_adversary()
    for i in range(3):
        adversary.update(*batch(i), stage=2, step=i, rng=rng(i))
    before = copy.deepcopy(adversary.state())
    real_w, w_plus = batch(3)
    for bad_real, bad_fake in ((real_w * float("nan"), w_plus), (real_w, w_plus * float("inf"))):
        terms, finite = adversary.update(bad_real, bad_fake, stage=2, step=step, rng=rng(step))
        assert not finite and not torch.isfinite(terms["discriminator"]) and "r1" not in terms
        assert same(adversary.state(), before)
    assert all(not p.requires_grad and p.grad is None for p in adversary.network.parameters())
