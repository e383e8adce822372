import math

import pytest
import torch
from torch import Tensor

from stylegan_inversion.errors import DivergedError
from stylegan_inversion.inversion.projector import ProjectorConfig, noise_regularization, project_w, w_statistics
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator

SHORT = ProjectorConfig(num_steps=40, learning_rate=0.08)


def test_noise_regularization_prefers_white_noise() -> None:
    white = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(white, 3, 1, 1)
    smooth = (smooth - smooth.mean()) / smooth.std()
    assert noise_regularization([white]) < 0.1 * noise_regularization([smooth])
    small = torch.ones(1, 1, 4, 4)
    assert noise_regularization([small]).item() == pytest.approx(2.0)  # 1 along each axis, no pyramid below 8 px


def test_projection_approaches_the_target(generator: Generator, perceptual: PerceptualDistance, target: Tensor) -> None:
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    with torch.no_grad():  # the caller's mode must not matter
        found = project_w(generator, target, perceptual=perceptual, config=SHORT)
    assert found.stopped_by == "steps" and len(found.losses) == 40
    assert min(found.losses) < 0.5 * found.losses[0]
    assert (found.w_plus == found.w_plus[:, :1]).all() and found.w_plus.shape == (1, 8, 16)
    assert [tuple(t.shape) for t in found.noise] == [(1, 1, r, r) for r in (4, 8, 8, 16, 16, 32, 32)]
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in generator.parameters())


class Poisoned(PerceptualDistance):
    """Gives NaN from the n-th distance on."""

    def __init__(self, inner: PerceptualDistance, good: int) -> None:
        super().__init__()
        self.inner, self.good = inner, good

    def features(self, x: Tensor) -> list[Tensor]:
        return self.inner.features(x)

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        self.good -= 1
        return self.inner.distance(a, b) * (1.0 if self.good >= 0 else math.nan)


def test_nan_keeps_the_best_state_and_a_wrong_size_is_refused(
    generator: Generator, perceptual: PerceptualDistance, target: Tensor
) -> None:
    found = project_w(generator, target, perceptual=Poisoned(perceptual, 4), config=SHORT)
    assert found.stopped_by == "nan" and len(found.losses) == 4
    assert torch.isfinite(found.w_plus).all()
    with pytest.raises(DivergedError, match="loss of the first step is nan"):
        project_w(generator, target, perceptual=Poisoned(perceptual, 0), config=SHORT)
    with pytest.raises(ValueError, match="`target` must be 32 px a side, got 64 x 64"):
        project_w(generator, torch.zeros(1, 3, 64, 64), perceptual=perceptual)


def test_it_is_the_loop_of_the_paper(generator: Generator, perceptual: PerceptualDistance, target: Tensor) -> None:
    """Three steps against a plain loop, written out."""
    config = ProjectorConfig(num_steps=3, learning_rate=0.5, ramp_up=0.3, num_w_samples=50)
    found = project_w(generator, target, perceptual=perceptual, config=config, seed=7)

    w_avg, spread = w_statistics(generator, 50, seed=7)
    rng = torch.Generator().manual_seed(7)
    noise = [torch.randn(1, 1, *c.noise_const.shape, generator=rng).requires_grad_() for c in generator.synthesis.convs]
    w = w_avg[None, None].clone().requires_grad_()
    adam = torch.optim.Adam([w, *noise], betas=(0.9, 0.999))
    states, losses = [], []
    for step in range(3):
        t = step / 3
        rate = 0.5 * min(1, t / 0.3) * (0.5 - 0.5 * math.cos(math.pi * min(1, (1 - t) / 0.25)))
        sigma = 0.05 * spread * max(0, 1 - t / 0.75) ** 2
        noisy = w + torch.randn(w.shape, generator=rng) * sigma
        distance = perceptual(generator.synthesis(noisy.expand(-1, 8, -1), noise=noise), target)
        loss = distance.sum() + 1e5 * noise_regularization(noise)
        losses.append(distance.item())
        states.append((w.detach().clone(), [n.detach().clone() for n in noise]))
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        loss.backward()
        adam.step()
        for n in noise:
            n.data = (n.data - n.data.mean()) / (n.data - n.data.mean()).square().mean().sqrt()
    best = min(range(3), key=lambda i: losses[i])
    assert found.losses == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(found.w_plus[:, :1], states[best][0], rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(found.noise, states[best][1]):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_best_state_of_each_image_is_returned(
    generator: Generator, perceptual: PerceptualDistance, target: Tensor
) -> None:
    """With a learning rate far too high the loss rises; the lowest must come back, for each image its own."""
    for conv in generator.synthesis.convs:
        conv.noise_strength.data.zero_()
    config = ProjectorConfig(num_steps=12, learning_rate=2.0, ramp_down=0.01, w_noise=0.0)
    targets = torch.cat([target, target.flip(3)])
    found = project_w(generator, targets, perceptual=perceptual, config=config)
    assert found.losses[-1] > min(found.losses)
    distances = perceptual(generator.synthesis(found.w_plus), targets)
    assert distances.mean().item() <= min(found.losses) + 1e-6
