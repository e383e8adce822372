import copy
import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from stylegan_inversion.models.feature_discriminator import FeatureDiscriminator
from stylegan_inversion.training.generator_config import (
    AdaptiveOptions,
    AdversarialOptions,
    DiscriminatorOptions,
    GeneratorOptions,
    ReconstructionOptions,
)
from torch import Tensor

from stylegan_inversion.training import gan
from tests.training.conftest import MakeGANLearner, save_warm_model, tiny_generator
from tests.training.gan_parts import AGAIN, Phases, batches_of
from tests.training.test_checkpoint import same


@pytest.mark.parametrize("p", [0.0, 0.8])
def test_what_the_discriminator_sees(
    make_gan_learner: MakeGANLearner, monkeypatch: pytest.MonkeyPatch, p: float
) -> None:
    learner = make_gan_learner(ada=AdaptiveOptions(p=p, kimg=0))
    seen: list[Tensor] = []
    learner.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    calls: list[tuple[Tensor, Tensor]] = []
    real = gan.augment

    def note(images: Tensor, *args: Any, **options: Any) -> Tensor:
        out = real(images, *args, **options)
        calls.append((images.detach().clone(), out.detach().clone()))
        return out

    monkeypatch.setattr(gan, "augment", note)
    batch = batches_of(learner, 1)
    learner.step(batch, 0)
    of_generator, fake, of_real, of_r1 = seen
    if p == 0:
        assert not calls and torch.equal(of_real, batch[0]["y"]) and torch.equal(of_r1, of_real)
        return
    assert len(calls) == 4
    for shown, (before, after) in zip(seen, calls):
        assert torch.equal(shown, after) and not torch.equal(before, after)
    assert torch.equal(calls[2][0], batch[0]["y"]) and torch.equal(of_r1, of_real)
    assert not torch.equal(of_generator, fake)
    # The same places of the run, other draws for each purpose
    flips = learner.draws.sources("augment fake", 0, 4)[0], learner.draws.sources("augment real", 0, 4)[0]
    assert torch.rand((), generator=flips[0]) != torch.rand((), generator=flips[1])


def test_samples_can_be_judged_twice(make_gan_learner: MakeGANLearner) -> None:
    for reuse in (True, False):
        learner = make_gan_learner(adversarial=AdversarialOptions(reuse_samples=reuse), accumulation=2)
        seen: list[Tensor] = []
        learner.discriminator.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        learner.step(batches_of(learner, 2), 1)
        first, second, fake, _, other_fake, _ = seen
        assert torch.equal(first, fake) == torch.equal(second, other_fake) == reuse


def test_reconstructions(make_gan_learner: MakeGANLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_gan_learner(
        init=str(save_warm_model(tmp_path / "warm32", resolution=32)),
        generator=GeneratorOptions(),
        batch_size=4,
        reconstruction=ReconstructionOptions(batch_size=1, weight=0.5, lpips=2.0, w_noise=0.0),
    )
    assert learner.reconstruction is not None
    for conv in learner.generator.synthesis.convs:
        conv.noise_strength.data.zero_()
    batch = batches_of(learner, 1)
    images, drawn_again, w = learner._fakes(batch[0], 0, "generator")
    assert images.shape == (4, 3, 32, 32) and drawn_again.shape == (1, 3, 32, 32) and w.shape == (3, 16)
    assert torch.equal(images[3:], drawn_again)
    w = copy.deepcopy(learner.reconstruction.encoder)(batch[0]["y"][:1])
    expected = learner.generator.synthesis(w[:, None].expand(-1, 8, -1), noise_mode="none")
    torch.testing.assert_close(drawn_again, expected, rtol=1e-4, atol=1e-4)

    y = batch[0]["y"][:1]
    terms, _ = learner.step(batch, 1)
    assert {"l1", "l2", "lpips", "generator", "loss"} < set(terms)
    total = terms["generator"] + 0.5 * (terms["l1"] + terms["l2"] + 2.0 * terms["lpips"])
    torch.testing.assert_close(terms["loss"], total)
    torch.testing.assert_close(terms["l1"], (drawn_again - y).abs().mean().detach(), rtol=1e-3, atol=1e-4)
    # The next samples come from the generator's own w, and the statistics of the encoder move once a step
    batches = int(learner.reconstruction.encoder.get_buffer("convs.1.num_batches_tracked"))
    learner.step(batch, 2)
    assert int(learner.reconstruction.encoder.get_buffer("convs.1.num_batches_tracked")) == batches + 1


def test_noise_on_the_w_of_reconstructions(make_gan_learner: MakeGANLearner, warm: Path) -> None:
    pictures = []
    for w_noise in (0.0, 0.5):
        options = dataclasses.replace(AGAIN, w_noise=w_noise)
        learner = make_gan_learner(init=str(warm), reconstruction=options)
        batch = batches_of(learner, 1)[0]
        pictures.append([learner._fakes(batch, serial, "generator")[1].detach() for serial in (0, 0, 1)])
    for plain, noisy in zip(*pictures):
        assert not torch.equal(plain, noisy)
    assert torch.equal(pictures[1][0], pictures[1][1]) and not torch.equal(pictures[1][0], pictures[1][2])


@pytest.mark.parametrize(("of_samples", "of_reconstructions"), [(True, True), (True, False), (False, False)])
def test_noise_inputs(make_gan_learner: MakeGANLearner, warm: Path, of_samples: bool, of_reconstructions: bool) -> None:
    """Off, they move no picture and learn nothing, also by the path lengths; on, they do."""
    learner = make_gan_learner(
        init=str(warm),
        reconstruction=dataclasses.replace(AGAIN, w_noise=0.0, noise=of_reconstructions),
        adversarial=AdversarialOptions(noise=of_samples, path_length_every=1),
    )
    batch = batches_of(learner, 1)
    count = learner.config.reconstruction.batch_size
    drawn, plain = [], []
    for strength in (0.5, 0.0):
        for conv in learner.generator.synthesis.convs:
            conv.noise_strength.data.fill_(strength)
        with torch.no_grad():
            (drawn if strength else plain).append(learner._fakes(batch[0], 0, "generator")[0])
    moved = (drawn[0] - plain[0]).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert moved.tolist() == [of_samples] * (len(moved) - count) + [of_reconstructions] * count
    before = [conv.noise_strength.clone() for conv in learner.generator.synthesis.convs]
    learner.step(batch, 0)
    changed = [
        not torch.equal(conv.noise_strength, old) for conv, old in zip(learner.generator.synthesis.convs, before)
    ]
    assert all(changed) if of_samples else not any(changed)


def test_style_mixing(make_gan_learner: MakeGANLearner) -> None:
    learner = make_gan_learner()
    num_ws = learner.generator.num_ws
    with torch.no_grad():
        w_plus, first = learner.draws.styles("generator", 3, 1200, mixing=0.9)
        same_w, w = learner.draws.styles("generator", 3, 100, mixing=0.0)
        all_mixed, _ = learner.draws.styles("generator", 3, 100, mixing=1.0)
    assert torch.equal(w_plus[:, 0], first)
    assert torch.equal(same_w, w[:, None].expand(-1, num_ws, -1))
    own = (w_plus == first[:, None]).all(dim=2)  # (samples, num_ws): layers with the first w
    cutoffs = own.sum(dim=1)
    assert bool((own == (torch.arange(num_ws) < cutoffs[:, None])).all())  # one change, none back
    for sample, cutoff in zip(w_plus, cutoffs.tolist()):
        if cutoff < num_ws:
            assert torch.equal(sample[cutoff:], sample[cutoff].expand(num_ws - cutoff, -1))
    counts = torch.bincount(cutoffs, minlength=num_ws + 1)
    assert counts[0] == 0 and counts[num_ws].item() == pytest.approx(120, abs=35)  # 3 sigma and a bit
    for cutoff in range(1, num_ws):
        assert counts[cutoff].item() == pytest.approx(1080 / (num_ws - 1), abs=50)
    assert bool((all_mixed[:, -1] != all_mixed[:, 0]).any(dim=1).all())
    assert len({tuple(row) for row in first.tolist()}) == 1200
    other, _ = learner.draws.styles("discriminator", 3, 4, mixing=0.9)
    assert not torch.equal(other[:, 0], learner.draws.styles("generator", 3, 4, mixing=0.9)[1])


def test_gradients_of_both_styles_reach_the_mapping_network(make_gan_learner: MakeGANLearner) -> None:
    learner = make_gan_learner()
    w_plus, w = learner.draws.styles("generator", 0, 8, mixing=1.0)
    assert w.requires_grad
    w_plus[:, -1].square().sum().backward()  # the second w alone
    assert learner.generator.mapping.layers[0].get_parameter("weight").grad is not None


@pytest.mark.parametrize("networks", [["perceptual"], ["face"], ["perceptual", "face"]])
def test_the_discriminator_on_features(
    make_gan_learner: MakeGANLearner, monkeypatch: pytest.MonkeyPatch, networks: list[str]
) -> None:
    learner = make_gan_learner(
        generator=tiny_generator(32),
        discriminator=DiscriminatorOptions(kind="features", width=4, networks=networks),
        batch_size=2,
    )
    assert isinstance(learner.discriminator, FeatureDiscriminator)
    assert all(cast(Any, norm).mean.abs().max() > 0 for norm in learner.discriminator.norms)  # fitted to the pictures
    before = copy.deepcopy(learner.progress.perceptual.state_dict())
    phases = Phases(learner, monkeypatch)
    terms, finite = learner.step(batches_of(learner, 1), 0)
    assert finite and len(phases.names) == 4 and {"r1", "discriminator"} < set(terms)
    for name, gradient in phases.gradients[2]["discriminator"].items():
        assert gradient is not None and torch.isfinite(gradient).all(), name
    assert all(gradient is None for of in phases.gradients for gradient in of["perceptual"].values())
    assert same(dict(learner.progress.perceptual.state_dict()), dict(before))
    assert not any(name.startswith("features") for name in learner.discriminator.state_dict())
