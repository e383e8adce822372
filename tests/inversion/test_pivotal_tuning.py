from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.errors import DivergedError
from stylegan_inversion.inversion.pivotal_tuning import TuningConfig, tune_generator
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator
from tests.inversion.test_projector import Poisoned


@pytest.fixture
def w_pivot(generator: Generator) -> Tensor:
    return latents.broadcast(generator.mapping(torch.zeros(1, 8)), 8)


@pytest.fixture
def photo() -> Tensor:
    """Something that the generator cannot draw."""
    return torch.linspace(-0.8, 0.8, 32).expand(1, 3, 32, 32).contiguous()


def test_the_defaults_are_ptis() -> None:
    config = TuningConfig()
    assert (config.num_steps, config.learning_rate, config.lpips_threshold) == (350, 3e-4, None)
    assert (config.l2_weight, config.lpips_weight, config.use_locality) == (1.0, 1.0, False)
    assert (config.locality_interval, config.locality_samples, config.locality_alpha) == (1, 1, 30.0)
    assert (config.locality_l2_weight, config.locality_lpips_weight) == (0.1, 0.1)
    assert config.locality_truncation_psi == 0.5


def test_tuning_draws_the_photo_and_leaves_the_generator_alone(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    config = TuningConfig(num_steps=60, learning_rate=3e-3, lpips_threshold=0.0)
    with torch.no_grad():
        tuned = tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=config)
    assert tuned.stopped_by == "steps" and len(tuned.losses) == 61
    assert min(tuned.losses) < 0.2 * tuned.losses[0]
    with torch.no_grad():
        l2 = (tuned.generator.synthesis(w_pivot) - photo).square().mean()
        assert l2 < 0.2 * (generator.synthesis(w_pivot) - photo).square().mean()
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
    changed = {k for k, v in tuned.generator.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and not any(key.startswith(("mapping", "w_avg")) or "noise_const" in key for key in changed)
    assert not any(p.requires_grad for p in tuned.generator.parameters()) and not tuned.generator.training


def test_the_best_state_is_returned(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    """With a learning rate far too high the loss rises; what comes back must be the lowest."""
    config = TuningConfig(num_steps=12, learning_rate=0.3, lpips_threshold=0.0, lpips_weight=0.0)
    tuned = tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=config)
    assert tuned.losses[-1] > min(tuned.losses)
    with torch.no_grad():
        l2 = (tuned.generator.synthesis(w_pivot) - photo).square().mean().item()
    assert l2 == pytest.approx(min(tuned.losses), rel=1e-4)


def test_locality_holds_the_generator_elsewhere(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    base = {"num_steps": 40, "learning_rate": 3e-3, "lpips_threshold": 0.0, "locality_alpha": 2.0 * 8**0.5}
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        old = generator(z)
        drift = []
        for use in (False, True):
            config = TuningConfig(**base, use_locality=use, locality_l2_weight=5.0, locality_samples=4)  # type: ignore[arg-type]
            tuned = tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=config)
            drift.append((tuned.generator(z) - old).square().mean().item())
    assert drift[1] < 0.7 * drift[0]


def test_threshold_stops_but_not_before_one_update(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    config = TuningConfig(num_steps=9, lpips_threshold=1e6)
    tuned = tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=config)
    assert (tuned.stopped_by, len(tuned.losses), tuned.lpips_threshold) == ("threshold", 2, 1e6)
    state = generator.synthesis.state_dict()
    assert any(not torch.equal(v, state[k]) for k, v in tuned.generator.synthesis.state_dict().items())


def test_the_threshold_is_the_networks_own_unless_the_config_has_one(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    perceptual.threshold = 1e6
    tuned = tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=TuningConfig(num_steps=9))
    assert (tuned.stopped_by, len(tuned.losses), tuned.lpips_threshold) == ("threshold", 2, 1e6)
    config = TuningConfig(num_steps=9, lpips_threshold=0.0)
    tuned = tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=config)
    assert (tuned.stopped_by, len(tuned.losses), tuned.lpips_threshold) == ("steps", 10, 0.0)


def test_noise_of_the_projection_is_kept(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    noise = [torch.full((1, 1, *conv.noise_const.shape), 0.5) for conv in generator.synthesis.convs]
    config = TuningConfig(num_steps=1)
    tuned = tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=config, noise=noise)
    assert all((conv.noise_const == 0.5).all() for conv in tuned.generator.synthesis.convs)
    assert not any((conv.noise_const == 0.5).any() for conv in generator.synthesis.convs)
    with pytest.raises(ValueError, match="`noise` must belong to one image"):
        double = [t.repeat(2, 1, 1, 1) for t in noise]
        tune_generator(generator, photo, w_pivot, perceptual=perceptual, noise=double)


def test_callback_reports_stops_and_may_raise(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    seen: list[dict[str, Any]] = []

    def callback(step: int, info: dict[str, Any]) -> bool:
        seen.append(info)
        return step == 2

    config = TuningConfig(num_steps=9, lpips_threshold=0.0)
    tuned = tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=config, callback=callback)
    assert tuned.stopped_by == "callback" and len(seen) == 2
    assert seen[0].keys() == {"stage", "loss", "l2", "lpips", "y_hat"} and seen[0]["stage"] == "tuning"

    def cancel(step: int, info: dict[str, Any]) -> bool:
        raise KeyboardInterrupt

    before = {key: value.clone() for key, value in generator.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        tune_generator(generator, photo, w_pivot, perceptual=perceptual, config=config, callback=cancel)
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())


def test_nan_keeps_the_best_state(
    generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor
) -> None:
    config = TuningConfig(num_steps=9, lpips_threshold=0.0)
    tuned = tune_generator(generator, photo, w_pivot, perceptual=Poisoned(perceptual, 3), config=config)
    assert tuned.stopped_by == "nan" and len(tuned.losses) == 3
    assert all(torch.isfinite(p).all() for p in tuned.generator.parameters())
    with pytest.raises(DivergedError, match="loss of the first step is nan"):
        tune_generator(generator, photo, w_pivot, perceptual=Poisoned(perceptual, 0), config=config)


def test_bad_arguments(generator: Generator, perceptual: PerceptualDistance, photo: Tensor, w_pivot: Tensor) -> None:
    with pytest.raises(ValueError, match="`target` must be 32 px a side, got 64 x 64"):
        tune_generator(generator, torch.zeros(1, 3, 64, 64), w_pivot, perceptual=perceptual)
    with pytest.raises(ValueError, match="`w_pivot` must have one entry an image: got 2 for 1 images"):
        tune_generator(generator, photo, w_pivot.repeat(2, 1, 1), perceptual=perceptual)
