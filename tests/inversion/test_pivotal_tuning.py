import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.errors import DivergedError
from stylegan_inversion.inversion.pivotal_tuning import Tuning, TuningConfig, interpolate_codes, tune_generator
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator
from tests.conftest import same
from tests.inversion.test_projector import Poisoned

NEVER = TuningConfig(num_steps=9, lpips_threshold=0.0)


@pytest.fixture
def w_pivot(generator: Generator) -> Tensor:
    return latents.broadcast(generator.mapping(torch.zeros(1, 8)), 8)


@pytest.fixture
def photo() -> Tensor:
    """Something that the generator cannot draw."""
    return torch.linspace(-0.8, 0.8, 32).expand(1, 3, 32, 32).contiguous()


def test_the_best_state_is_returned(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    """With a learning rate far too high the loss rises; the lowest must come back."""
    config = TuningConfig(num_steps=12, learning_rate=0.3, lpips_threshold=0.0, lpips_weight=0.0)
    tuned = tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=config)
    assert tuned.losses[-1] > min(tuned.losses)
    with torch.no_grad():
        l2 = (tuned.generator.synthesis(w_pivot) - photo).square().mean().item()
    assert l2 == pytest.approx(min(tuned.losses), rel=1e-4)


def test_locality_holds_the_generator_elsewhere(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    base = {"num_steps": 15, "learning_rate": 3e-3, "lpips_threshold": 0.0, "locality_alpha": 2.0 * 8**0.5}
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        old = generator(z)
        drift = []
        for use in (False, True):
            config = TuningConfig(**base, use_locality=use, locality_l2_weight=5.0, locality_samples=4)  # type: ignore[arg-type]
            tuned = tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=config)
            drift.append((tuned.generator(z) - old).square().mean().item())
    assert drift[1] < 0.8 * drift[0]


@given(seed=st.integers(0, 2**31), alpha=st.floats(0.1, 100))
def test_locality_codes_lie_between_the_pivot_and_the_sample_at_most_alpha_away(seed: int, alpha: float) -> None:
    w_pivot, w_sampled = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(seed)).double()
    towards = w_sampled - w_pivot
    step = interpolate_codes(w_pivot, w_sampled, alpha=alpha) - w_pivot
    distance = towards.norm(dim=(1, 2))
    torch.testing.assert_close(step.norm(dim=(1, 2)), distance.clamp(max=alpha))
    torch.testing.assert_close(step, (step.norm(dim=(1, 2)) / distance)[:, None, None] * towards)
    assert torch.equal(interpolate_codes(w_pivot, w_pivot.clone(), alpha=alpha), w_pivot)


def test_the_threshold_stops_but_not_before_one_update(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    def tune(config: TuningConfig) -> Tuning:
        return tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=config)

    tuned = tune(TuningConfig(num_steps=9, lpips_threshold=1e6))
    assert (tuned.stopped_by, len(tuned.losses), tuned.lpips_threshold) == ("threshold", 2, 1e6)
    assert not same(tuned.generator.state_dict(), generator.state_dict())
    perceptual.threshold = 1e6  # the network's own, unless the config has one
    tuned = tune(TuningConfig(num_steps=9))
    assert (tuned.stopped_by, len(tuned.losses), tuned.lpips_threshold) == ("threshold", 2, 1e6)
    tuned = tune(NEVER)
    assert (tuned.stopped_by, len(tuned.losses), tuned.lpips_threshold) == ("steps", 10, 0.0)


def test_nan_keeps_the_best_state(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    tuned = tune_generator(generator, photo, w_pivot, perceptual=Poisoned(perceptual, 3), config=NEVER)
    assert tuned.stopped_by == "nan" and len(tuned.losses) == 3
    assert all(torch.isfinite(p).all() for p in tuned.generator.parameters())
    with pytest.raises(DivergedError, match="loss of the first step is nan"):
        tune_generator(generator, photo, w_pivot, perceptual=Poisoned(perceptual, 0), config=NEVER)


def test_refusals(generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor) -> None:
    with pytest.raises(ValueError, match="`target` must be 32 px a side, got 64 x 64"):
        tune_generator(generator, torch.zeros(1, 3, 64, 64), w_pivot, perceptual=perceptual)
    with pytest.raises(ValueError, match="`w_pivot` must have one entry for each image, got 2 for 1 images"):
        tune_generator(generator, photo, w_pivot.repeat(2, 1, 1), perceptual=perceptual)
    with pytest.raises(ValueError, match="`noise` must belong to one image"):
        noise = [torch.zeros(2, 1, *conv.noise_const.shape) for conv in generator.synthesis.convs]
        tune_generator(generator, photo, w_pivot, perceptual=perceptual, noise=noise)
