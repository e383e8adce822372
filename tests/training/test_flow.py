import copy
import dataclasses

import pytest
import torch
from stylegan_inversion.training.flow import Flow, FlowConfig, fit_flow_prior, train_flow
from stylegan_inversion.training.prior import fit_prior
from torch import Tensor

from stylegan_inversion import latents
from tests.training.test_prior import codes, networks, normal

SMALL = FlowConfig(
    components=2,
    width=32,
    blocks=1,
    flow_steps=2000,
    ode_steps=8,
    pairs=2000,
    mapping_steps=2000,
    flow_batch_size=128,
    mapping_batch_size=128,
    flow_lr=3e-3,
    mapping_lr=3e-3,
)


def crosses(count: int, w_dim: int) -> Tensor:
    """Each w lies far out on one of two axes and near the middle of the other: no normal distribution does that."""
    near, far = normal(count, 2) * 0.15, torch.where(normal(count, 1, seed=1) > 0, 1.0, -1.0)
    on_first = normal(count, 1, seed=2) > 0
    two = near + torch.cat([far * on_first, far * ~on_first], dim=1)
    return torch.cat([two, 0.01 * normal(count, w_dim - 2, seed=3)], dim=1) + normal(w_dim, seed=4)


def in_the_corners(w: Tensor, count: int = 2) -> float:
    """Share of the points that are far from the middle along both axes, in the distance of the arms."""
    w = w[:, :count] - w[:, :count].mean(dim=0)
    angle = torch.atan2(w[:, 1], w[:, 0]) * 4  # four arms, wherever the principal axes lie
    spread = torch.stack([angle.cos(), angle.sin()]).mean(dim=1).norm()
    return 1 - float(spread)  # 0: all on four arms at right angles, 1: evenly around


@torch.no_grad()
def test_samples_have_the_shape_of_the_distribution() -> None:
    w = crosses(2000, 16)
    normal_generator, normal_encoder = networks(layers=4)
    turned = fit_prior(normal_generator, normal_encoder, w).float()
    generator, encoder = networks(layers=4)
    reports: list[tuple[str, int]] = []
    with torch.enable_grad():
        fit_flow_prior(generator, encoder, w, config=SMALL, report=lambda *told: reports.append(told[:2]))
    assert reports == [(stage, step) for stage in ("flow", "mapping") for step in range(250, 2001, 250)]

    z = normal(3000, 16, seed=9)
    truth, plain, learnt = (in_the_corners(v) for v in (turned, normal_generator.mapping(z), generator.mapping(z)))
    assert truth < 0.2 and plain > 0.8, (truth, plain)
    assert learnt < 0.6
    samples = generator.mapping(z)
    torch.testing.assert_close(samples.mean(dim=0), turned.mean(dim=0), rtol=0, atol=0.1)
    torch.testing.assert_close(samples.std(dim=0)[:2], turned.std(dim=0)[:2], rtol=0.1, atol=0)
    assert samples.std(dim=0)[2:].max() < 0.1  # the rest is left at the mean
    torch.testing.assert_close(generator.w_avg, turned.mean(dim=0), rtol=0, atol=0.1)


def test_reconstructions_do_not_change_and_nothing_else_is_touched() -> None:
    generator, encoder = networks()
    old_generator, old_encoder = copy.deepcopy(generator), copy.deepcopy(encoder)
    generator.mapping.requires_grad_(False)
    before, w = torch.get_rng_state(), codes(100, 16)
    kept = w.clone()
    tiny = FlowConfig(3, width=8, blocks=1, flow_steps=3, ode_steps=2, pairs=10, mapping_steps=3, mapping_batch_size=4)
    fit_flow_prior(generator, encoder, w, config=tiny)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(w, kept)
    assert not any(p.requires_grad for p in generator.mapping.parameters())
    assert all(p.grad is None for p in [*generator.parameters(), *encoder.parameters()])
    x = normal(4, 3, 16, 16, seed=3)
    with torch.no_grad():
        new, old = encoder(x), old_encoder(x)
        assert not torch.allclose(new, old)
        torch.testing.assert_close(
            generator.synthesis(latents.broadcast(new, 6)),
            old_generator.synthesis(latents.broadcast(old, 6)),
            rtol=1e-5,
            atol=1e-5,
        )
    again, again_encoder = networks()
    fit_flow_prior(again, again_encoder, w, config=tiny)
    assert all(torch.equal(a, b) for a, b in zip(generator.state_dict().values(), again.state_dict().values()))
    fit_flow_prior(again, again_encoder, w, config=tiny, seed=1)
    assert not torch.equal(generator.mapping.layers[1].weight, again.mapping.layers[1].weight)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_flow_carries_noise_to_a_shifted_normal_distribution(bf16: bool) -> None:
    """Its velocity is known: x moves from z to 3 + z / 2 along straight lines where only one axis counts."""
    torch.manual_seed(0)
    data = 3 + normal(4000, 1) / 2
    flow = train_flow(data, dataclasses.replace(SMALL, bf16=bf16), weight=torch.ones(1))
    z = normal(500, 1, seed=5)
    drawn = flow.follow(z, steps=16)
    assert float((drawn - 3 - z / 2).square().mean()) < 0.01


def test_heuns_method() -> None:
    """Of second order: twice the steps, a quarter of the error, on x' = x."""
    flow = Flow(1, width=4, blocks=1)
    flow.forward = lambda x, time: x  # type: ignore[method-assign]
    errors = [abs(float(flow.follow(torch.ones(1, 1), steps=n)) - torch.e) for n in (8, 16)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_bad_values() -> None:
    generator, encoder = networks()
    with pytest.raises(ValueError, match="`components` must be at most 8, for 100 w and these sizes, got 192"):
        fit_flow_prior(generator, encoder, codes(100, 16))
    with pytest.raises(ValueError, match="`flow_steps` must be >= 1, got 0"):
        FlowConfig(flow_steps=0)
    with pytest.raises(ValueError, match="`mapping_batch_size` must be >= 1, got 0"):
        FlowConfig(mapping_batch_size=0)
    with pytest.raises(ValueError, match=r"`mapping_lr` must be positive, got 0\.0"):
        FlowConfig(mapping_lr=0.0)
