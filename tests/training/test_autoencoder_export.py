"""The networks that a run of an autoencoder leaves: what is drawn with them, and the run that begins with them."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from stylegan_inversion.training.autoencoder import AutoencoderLearner
from stylegan_inversion.training.generator_config import GeneratorOptions, ReconstructionOptions
from stylegan_inversion.training.generator_model import open_pictures
from torch import Tensor

from stylegan_inversion import hub, latents
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.training import autoencoder
from stylegan_inversion.training.data import FaceFolder
from stylegan_inversion.training.trainer import train
from tests.training.autoencoder_parts import batches_of, learner_of
from tests.training.conftest import MakeAutoencoder, MakeGANLearner
from tests.training.runs import saved
from tests.training.test_checkpoint import same


def test_one_resolution_after_another(make_autoencoder: MakeAutoencoder, tmp_path: Path) -> None:
    first = make_autoencoder(steps=3)
    train(first)
    init = Path(first.output, "last")
    grown = make_autoencoder(init=str(init), generator=GeneratorOptions(32), output=str(tmp_path / "second"))
    learner = learner_of(grown)
    before = learner_of(first)
    before.load_state(saved(first)["learner"])
    with torch.no_grad():
        x = batches_of(learner, 1)[0]["y"]
        w = learner.reconstruction.encoder.eval()(x)
        old_w = before.average[1](x)
        torch.testing.assert_close(w @ w.T, old_w @ old_w.T, rtol=1e-4, atol=1e-4)  # turned, as was the generator
        larger = learner.generator.synthesis(latents.broadcast(w, 8), noise_mode="none")
        smaller = before.average[0].synthesis(latents.broadcast(old_w, 6), noise_mode="none")
    assert (F.avg_pool2d(larger, 2) - smaller).abs().mean() < 0.1 * smaller.std()
    learner.reconstruction.encoder.train()
    assert learner.step(batches_of(learner, 1), 0)[1]
    learner.export(tmp_path / "export")
    generator, encoder = load(tmp_path / "export")
    with torch.no_grad():
        samples = generator.mapping(normal(1000, 8))
        torch.testing.assert_close(samples.mean(dim=0), generator.w_avg, rtol=0, atol=0.2)
        torch.testing.assert_close(generator.w_avg, codes(learner, encoder).mean(dim=0), rtol=1e-4, atol=1e-5)


def load(model: Path) -> tuple[Generator, ImageEncoder]:
    generator = hub.load_module(Generator, GeneratorConfig, model / "generator")
    return generator, hub.load_module(ImageEncoder, ImageEncoderConfig, model / "autoencoder")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def codes(learner: AutoencoderLearner, encoder: ImageEncoder, *, numbers: Sequence[int] = range(10)) -> Tensor:
    """The w of training pictures and, if the run wants, of their mirror images."""
    folder = open_pictures(learner.config.data, learner.config, side=learner.side, training=False)
    assert folder is not None
    y = torch.stack([folder[i]["y"] for i in numbers])
    return encoder(torch.cat([y, y.flip(-1)]) if learner.config.mirror else y)


@torch.no_grad()
def test_samples_of_what_is_saved_are_distributed_as_the_codes(
    make_autoencoder: MakeAutoencoder, make_gan_learner: MakeGANLearner, tmp_path: Path
) -> None:
    learner = learner_of(make_autoencoder())
    with torch.enable_grad():
        for step, batch in enumerate(batches_of(learner, 3)):
            learner.step([batch], step)
    before = copy.deepcopy(learner.state())
    learner.export(tmp_path / "one")
    learner.export(tmp_path / "two")
    assert same(learner.state(), before)
    assert all(not network.training for network in learner.average)
    for name in ("generator", "autoencoder"):
        files = [tmp_path / folder / name / hub.WEIGHTS_NAME for folder in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
    generator, encoder = load(tmp_path / "one")
    w = codes(learner, encoder).double()
    assert len(w) == 20
    count = 100_000
    samples = generator.mapping(normal(count, 8)).double()
    torch.testing.assert_close(generator.w_avg.double(), w.mean(dim=0), rtol=1e-4, atol=1e-5)
    # The first 8 of 16 components are drawn; 5 standard errors of 8 means, and of 64 (co)variances
    standard = (samples - w.mean(dim=0))[:, :8] / w.std(dim=0)[:8]
    assert float(standard.mean(dim=0).abs().max()) < 5 / count**0.5
    assert float((standard.T.cov() - torch.eye(8)).abs().max()) < 5 * (2 / count) ** 0.5
    torch.testing.assert_close(samples[:, 8:], generator.w_avg[8:].double().expand(count, -1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(w.T.cov()[:8, :8], torch.diag(w.var(dim=0)[:8]), rtol=0, atol=1e-4)
    # Pictures are drawn again as the averages draw them
    x = batches_of(learner, 1)[0]["y"]
    ours, theirs = (d.synthesis(latents.broadcast(e(x), 6)) for d, e in ((generator, encoder), learner.average))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    # An adversarial run starts from both networks
    options = ReconstructionOptions(batch_size=2, lpips=0)
    run = make_gan_learner(init=str(tmp_path / "one"), reconstruction=options, output=str(tmp_path / "gan"))
    assert torch.equal(run.generator.mapping(normal(3, 8)), generator.mapping(normal(3, 8)))
    with torch.enable_grad():
        assert run.step([{"y": x}], 0)[1]


@pytest.mark.parametrize(
    ("mirror", "prior_images", "numbers"),
    [(True, 4, (0, 2, 5, 7)), (False, 3, (0, 3, 6)), (False, 2, (0, 5)), (True, 1000, range(10))],
)
def test_whose_codes_the_samples_follow(
    make_autoencoder: MakeAutoencoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mirror: bool,
    prior_images: int,
    numbers: Sequence[int],
) -> None:
    learner = learner_of(make_autoencoder(mirror=mirror, prior_images=prior_images, components=0, input_resolution=32))
    learner.step(batches_of(learner, 1), 0)
    expected = codes(learner, learner.average[1], numbers=numbers)
    seen: list[Tensor] = []
    monkeypatch.setattr(autoencoder, "fit_prior", lambda generator, encoder, w: seen.append(w))
    for at_once in (64, 2):
        monkeypatch.setattr(autoencoder, "ENCODED_AT_ONCE", at_once)
        learner.export(tmp_path / "export")
    monkeypatch.setattr(FaceFolder, "__getitem__", None)  # they are read once
    learner.export(tmp_path / "export")
    assert torch.equal(seen[1], seen[2])
    for w in seen:  # in whatever order
        assert w.shape == expected.shape
        nearest = torch.cdist(w.double(), expected.double()).min(dim=1)
        assert sorted(nearest.indices.tolist()) == list(range(len(expected))) and float(nearest.values.max()) < 1e-4


def test_a_mapping_network_can_be_left_as_it_is(make_autoencoder: MakeAutoencoder, model: Path, tmp_path: Path) -> None:
    learner = learner_of(make_autoencoder(init=str(model), generator=GeneratorOptions(), prior_images=0))
    learner.step(batches_of(learner, 1), 0)
    learner.export(tmp_path / "export")
    for network, average in zip(load(tmp_path / "export"), learner.average):
        assert same(dict(network.state_dict()), dict(average.state_dict()))
    before = hub.load_module(Generator, GeneratorConfig, model / "generator")
    generator = load(tmp_path / "export")[0]
    assert same(dict(generator.mapping.state_dict()), dict(before.mapping.state_dict()))
    assert torch.equal(generator.w_avg, before.w_avg)


def test_a_run_that_has_diverged_is_saved_nevertheless(
    make_autoencoder: MakeAutoencoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner = learner_of(make_autoencoder())
    with torch.no_grad():
        learner.average[1].head.bias.fill_(torch.nan)
    learner.export(tmp_path / "export")
    assert "The mapping network is left as it is: the w of training pictures are not finite" in caplog.text
    generator = hub.load_module(Generator, GeneratorConfig, tmp_path / "export" / "generator")
    assert same(dict(generator.state_dict()), dict(learner.average[0].state_dict()))
