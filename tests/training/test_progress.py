from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from stylegan_inversion.training.progress import SampleProgress
from stylegan_inversion.training.seeds import seeded
from torch import Tensor, nn

from stylegan_inversion import hub
from stylegan_inversion.losses.distribution import FeatureStatistics, frechet_distance, pool_features
from stylegan_inversion.losses.identity import IdentityEmbedding
from stylegan_inversion.losses.lpips import PerceptualDistance, load_perceptual
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.training import progress
from tests.training.conftest import MakeGAN, save_pictures


class Colours(PerceptualDistance):
    """Features that take no time: two layers of pooled colours."""

    name = "colours"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def features(self, x: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(x, 4), (x * x * self.weight).mean(dim=(2, 3), keepdim=True)]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        return (a[0] - b[0]).square().mean(dim=(1, 2, 3))


@pytest.fixture
def generator(model: Path) -> Generator:
    generator = hub.load_module(Generator, GeneratorConfig, model / "generator")
    generator.synthesis.get_parameter("blocks.16.to_rgb.bias").data.add_(0.5)
    return generator


def real_pictures(count: int = 9) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def batches(y: Tensor, size: int) -> Iterator[dict[str, Any]]:
    for first in range(0, len(y), size):
        part = y[first : first + size]
        yield {"y": part, "x": part, "index": torch.arange(first, first + len(part))}


def judge(seed: int = 3) -> SampleProgress:
    return SampleProgress(Colours(), Accelerator(cpu=True), seed=seed)


def samples(generator: Generator, count: int, *, psi: float = 1.0, seed: int = 3) -> Tensor:
    z = torch.stack([torch.randn(8, generator=seeded(seed, "progress", i)) for i in range(count)])
    with torch.no_grad():
        return generator(z, truncation_psi=psi).clamp(-1, 1)


def test_the_distance(generator: Generator) -> None:
    y = real_pictures()
    values, _ = judge().evaluate(generator, batches(y, 4), score=True)
    real, fake = FeatureStatistics(), FeatureStatistics()
    for statistics, pictures in ((real, y), (fake, samples(generator, 9))):
        statistics.update(pool_features(Colours().features(pictures)).detach())
    expected = frechet_distance(real.mean, real.cov, fake.mean, fake.cov)
    assert values == {"fd (colours)": values["loss"], "loss": pytest.approx(expected, rel=1e-4)}
    itself, _ = judge().evaluate(generator, batches(samples(generator, 9), 4), score=True)
    assert itself["loss"] < 1e-3 * values["loss"]


class Brightness(IdentityEmbedding):
    """Another network that takes no time."""

    def embed(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x.mean(dim=1), 8).flatten(1)


def test_two_networks(generator: Generator) -> None:
    y, face = real_pictures(), Brightness()
    judges = SampleProgress(Colours(), Accelerator(cpu=True), seed=3, face=face)
    values, _ = judges.evaluate(generator, batches(y, 4), score=True)
    real, fake = FeatureStatistics(), FeatureStatistics()
    for statistics, pictures in ((real, y), (fake, samples(generator, 9))):
        statistics.update(pool_features([face.embed(pictures)]))
    expected = frechet_distance(real.mean, real.cov, fake.mean, fake.cov)
    alone = judge().evaluate(generator, batches(y, 4), score=True)[0]["fd (colours)"]
    assert values.pop("loss") == pytest.approx((alone * expected) ** 0.5, rel=1e-4)
    assert values == {"fd (colours)": alone, "fd (dlib faces)": pytest.approx(expected, rel=1e-4)}


def test_columns(generator: Generator) -> None:
    y = real_pictures()
    for score in (True, False):
        _, columns = judge().evaluate(generator, batches(y, 4), score=score)
        assert [column.shape for column in columns] == [(4, 3, 16, 16)] * 3
        assert torch.equal(columns[0], y[:4])
        torch.testing.assert_close(columns[1], samples(generator, 4))
        torch.testing.assert_close(columns[2], samples(generator, 4, psi=0.7))
        assert columns[1].abs().max() <= 1 and not torch.equal(columns[1], columns[2])


def test_without_a_score_one_batch_is_drawn(generator: Generator) -> None:
    drawn = []
    generator.synthesis.register_forward_hook(lambda *_: drawn.append(1))
    values, columns = judge().evaluate(generator, batches(real_pictures(), 2), score=False)
    assert values == {} and len(columns) == 3 and len(drawn) == 2


def test_the_same_z_each_time(generator: Generator) -> None:
    y, state = real_pictures(), torch.get_rng_state()
    first, columns = judge().evaluate(generator, batches(y, 4), score=True)
    again, others = judge().evaluate(generator, batches(y, 3), score=True)  # whatever the batches
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(others[1], columns[1][:3])
    assert judge(4).evaluate(generator, batches(y, 4), score=True)[0]["loss"] != first["loss"]


def test_large_batches_go_through_in_pieces(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    y = real_pictures(12)
    whole, _ = judge().evaluate(generator, batches(y, 12), score=True)
    monkeypatch.setattr(progress, "AT_ONCE", 5)
    drawn: list[int] = []
    generator.synthesis.register_forward_hook(lambda _, inputs, out: drawn.append(len(out)))
    pieces, columns = judge().evaluate(generator, batches(y, 12), score=True)
    assert drawn == [5, 5, 5, 2] and len(columns[0]) == 5
    assert pieces["loss"] == pytest.approx(whole["loss"], rel=1e-6)


def test_held_out_pictures(make_gan: MakeGAN, tmp_path: Path) -> None:
    held_out = str(save_pictures(tmp_path / "held out", 3))
    judges = SampleProgress(load_perceptual(), Accelerator(cpu=True), seed=0)
    assert list(judges.networks) == ["fd (alex)"]
    assert judges.open_pictures(make_gan(), side=16) is None
    folder = judges.open_pictures(make_gan(validation_data=held_out), side=32)
    assert folder is not None and len(folder) == 3 and not folder.training
    assert folder[0]["y"].shape == (3, 32, 32)
    with pytest.raises(ValueError, match="'alex' does not take pictures of 16 px"):
        judges.open_pictures(make_gan(validation_data=held_out), side=16)
    for count in (0, 1):
        config = make_gan(validation_data=held_out, validation_images=count)
        with pytest.raises(ValueError, match=f"needs at least 2 pictures in `validation_data`.* got {count}"):
            judges.open_pictures(config, side=32)
    one = save_pictures(tmp_path / "one", 1)
    with pytest.raises(ValueError, match=r"at least 2 pictures .* got 1"):
        judges.open_pictures(make_gan(validation_data=str(one)), side=32)
    with pytest.raises(ValueError, match="nowhere"):
        judges.open_pictures(make_gan(validation_data="nowhere"), side=32)
