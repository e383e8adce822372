import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from stylegan_inversion.training.draws import Draws
from stylegan_inversion.training.generator_config import (
    AdaptiveOptions,
    AdversarialOptions,
    DiscriminatorOptions,
)
from torch import Tensor, nn

from stylegan_inversion.models.discriminator import Discriminator
from stylegan_inversion.training import checkpoint, gan
from stylegan_inversion.training.config import OptimizerOptions
from stylegan_inversion.training.gan import GANLearner
from tests.training.conftest import MakeGANLearner
from tests.training.gan_parts import AGAIN, Phases, batches_of, networks
from tests.training.test_checkpoint import same

UNMOVED = {"conv.bias", "fc.bias", "out.bias"}  # the gradient by the pictures does not know of them


def test_gradients_of_each_part(make_gan_learner: MakeGANLearner, warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_gan_learner(init=str(warm), reconstruction=AGAIN, adversarial=AdversarialOptions(style_mixing=0.5))
    phases = Phases(learner, monkeypatch)
    _, finite = learner.step(batches_of(learner, 1), 0)
    assert finite and phases.names == ["generator", "path_length", "discriminator", "r1"]
    trained = [{"generator", "encoder"}, {"generator"}, {"discriminator"}, {"discriminator"}]
    for name, expected, gradients in zip(phases.names, trained, phases.gradients, strict=True):
        for network, by_name in gradients.items():
            for key, gradient in by_name.items():
                left_out = (name == "path_length" and key.endswith("to_rgb.bias")) or (name == "r1" and key in UNMOVED)
                if network in expected and not left_out:
                    assert gradient is not None and torch.isfinite(gradient).all(), (name, network, key)
                    assert gradient.abs().sum() > 0, (name, network, key)
                else:
                    assert gradient is None or not gradient.any(), (name, network, key)
                    assert network in expected or gradient is None, (name, network, key)
    assert [phases.changed(i) for i in range(4)] == [
        {"generator", "encoder", "w_avg"},
        {"generator", "mean_length"},
        {"discriminator", "ada"},
        {"discriminator"},
    ]
    assert all(p.grad is None for network in networks(learner).values() for p in network.parameters())
    assert not any(p.requires_grad for p in learner.discriminator.parameters())


def test_order_and_laziness(make_gan_learner: MakeGANLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_gan_learner(adversarial=AdversarialOptions(r1_every=3, path_length_every=2), batch_size=2)
    seen: list[list[str]] = []
    for phase in ("generator", "path_length", "discriminator", "r1"):
        real = getattr(learner, f"_{phase}_step")

        def watched(*args: Any, phase: str = phase, real: Any = real) -> Any:
            seen[-1].append(phase)
            return real(*args)

        monkeypatch.setattr(learner, f"_{phase}_step", watched)
    batch = batches_of(learner, 1)
    for step in range(5):
        seen.append([])
        terms, _ = learner.step(batch, step)
        assert {"r1", "path length", "path length penalty"} < set(terms)  # those of the last such step
    for step, names in enumerate(seen):
        expected = ["generator"] + ["path_length"] * (step % 2 == 0) + ["discriminator"] + ["r1"] * (step % 3 == 0)
        assert names == expected


@pytest.mark.parametrize("options", [{"r1": 0.0, "path_length": 0.0}, {"r1_every": 0, "path_length_every": 0}])
def test_without_regularisers(
    make_gan_learner: MakeGANLearner, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    learner = make_gan_learner(adversarial=AdversarialOptions(**options))
    for optimizer in (learner.optimizer, learner.discriminator_optimizer):
        group = optimizer.param_groups[0]
        assert (group["lr"], group["betas"]) == (2.5e-3, (0.0, 0.99))
    phases = Phases(learner, monkeypatch)
    terms, _ = learner.step(batches_of(learner, 1), 0)
    assert phases.names == ["generator", "discriminator"]
    assert set(terms) == {"generator", "loss", "discriminator", "real score", "fake score", "augmentation"}


class Reference:
    """StyleGAN2's step again, from the papers' formulas."""

    def __init__(self, learner: GANLearner) -> None:
        self.learner, self.options = learner, learner.config.adversarial
        self.generator = copy.deepcopy(learner.generator)
        self.discriminator = copy.deepcopy(learner.discriminator).requires_grad_(True)
        self.average = copy.deepcopy(learner.generator)
        self.draws = Draws(self.generator, learner.accelerator, seed=learner.config.seed)
        self.mean_length = 0.0
        self.optimizers: dict[nn.Module, torch.optim.Adam] = {}
        networks: list[tuple[nn.Module, int, float]] = [
            (self.generator, self.options.path_length_every, 2.5e-3),
            (self.discriminator, self.options.r1_every, 1e-3),
        ]
        for network, every, lr in networks:
            c = every / (every + 1)
            adam = torch.optim.Adam(network.parameters(), lr=lr * c, betas=(0.0, 0.99**c))
            self.optimizers[network] = adam

    def descend(self, network: nn.Module, loss: Tensor) -> None:
        adam = self.optimizers[network]
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        for p, gradient in zip(network.parameters(), gradients):
            p.grad = gradient
        adam.step()

    def samples(self, purpose: str, serial: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        w_plus, w = self.draws.styles(purpose, serial, count, mixing=self.options.style_mixing)
        noise = self.draws.noise(serial, count, purpose=f"{purpose} noise")
        return self.generator.synthesis(w_plus, noise=noise), w_plus, w

    def step(self, batches: list[dict[str, Any]], step: int) -> dict[str, float]:
        options, k, B = self.options, len(batches), self.learner.config.batch_size
        serials = range(step * k, step * k + k)
        terms: dict[str, float] = {}

        losses, w_avg = [], []
        for serial in serials:
            images, _, w = self.samples("generator", serial, B)
            losses.append(-torch.sigmoid(self.discriminator(images)).log().mean())
            w_avg.append(w.detach().mean(dim=0))
        loss = torch.stack(losses).mean()
        self.descend(self.generator, loss)
        self.generator.w_avg.mul_(0.998).add_(torch.stack(w_avg).mean(dim=0), alpha=0.002)
        terms["generator"] = terms["loss"] = loss.item()

        if step % options.path_length_every == 0:
            lengths = []
            for serial in serials:
                images, w_plus, _ = self.samples("path length", serial, B // options.path_length_shrink)
                y = self.draws.normal("direction", serial, tuple(images.shape)) / 16
                (jacobian,) = torch.autograd.grad((images * y).sum(), w_plus, create_graph=True)
                lengths.append(jacobian.square().sum(dim=2).mean(dim=1).sqrt())
            length = torch.cat(lengths)
            penalty = (length - self.mean_length).square().mean()
            self.descend(self.generator, options.path_length * options.path_length_every * penalty)
            self.mean_length += 0.01 * (length.mean().item() - self.mean_length)
            terms["path length"], terms["path length penalty"] = length.mean().item(), penalty.item()

        seen = (step + 1) * k * B
        half_life = min(options.ema_kimg * 1000, seen * 0.05)
        decay = 0.5 ** (k * B / half_life)
        for average, p in zip(self.average.parameters(), self.generator.parameters()):
            average.data = decay * average.data + (1 - decay) * p.data

        real = [batch["y"] for batch in batches]
        fakes = [self.samples("discriminator", serial, B)[0].detach() for serial in serials]
        fake_scores = torch.cat([self.discriminator(images) for images in fakes])
        real_scores = torch.cat([self.discriminator(y) for y in real])
        loss = -torch.sigmoid(real_scores).log().mean() - (1 - torch.sigmoid(fake_scores)).log().mean()
        self.descend(self.discriminator, loss)
        terms["discriminator"], terms["real score"] = loss.item(), real_scores.mean().item()
        terms["fake score"] = fake_scores.mean().item()

        if step % options.r1_every == 0:
            squares = []
            for y in real:
                x = y.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(self.discriminator(x).sum(), x, create_graph=True)
                squares.append(gradient.square().sum(dim=(1, 2, 3)))
            penalty = torch.cat(squares).mean()
            self.descend(self.discriminator, options.r1 / 2 * options.r1_every * penalty)
            terms["r1"] = penalty.item()
        return terms


@pytest.mark.parametrize("accumulation", [1, 2])
def test_against_the_formulas_of_the_papers(make_gan_learner: MakeGANLearner, accumulation: int) -> None:
    learner = make_gan_learner(
        batch_size=4,
        accumulation=accumulation,
        discriminator=DiscriminatorOptions(lr=1e-3),
        adversarial=AdversarialOptions(r1=8.0, r1_every=3, path_length_every=2, ema_kimg=0.0005),
    )
    for conv in learner.generator.synthesis.convs:
        conv.noise_strength.data.fill_(0.1)
    reference = Reference(learner)
    for step in range(5):
        batches = batches_of(learner, accumulation, start=step * accumulation)
        terms, finite = learner.step(batches, step)
        expected = reference.step(batches, step)
        assert finite and float(terms.pop("augmentation")) == 0
        for name, value in expected.items():
            assert float(terms[name]) == pytest.approx(value, rel=1e-4, abs=1e-5), (step, name)
        for name in expected.keys() ^ terms.keys():  # of an earlier step
            assert name in ("r1", "path length", "path length penalty") and name in terms
    for ours, theirs in (
        (learner.generator, reference.generator),
        (learner.average, reference.average),
        (learner.discriminator, reference.discriminator),
    ):
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-4), name
    torch.testing.assert_close(learner.generator.w_avg, reference.generator.w_avg)
    assert float(learner.mean_length) == pytest.approx(reference.mean_length, rel=1e-4)
    assert torch.equal(learner.average.w_avg, learner.generator.w_avg)


def test_lazy_optimizers(make_gan_learner: MakeGANLearner) -> None:
    learner = make_gan_learner(optimizer=OptimizerOptions("adam", 1e-2, betas=[0.5, 0.9]))
    for optimizer, every in ((learner.optimizer, 4), (learner.discriminator_optimizer, 16)):
        c = every / (every + 1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * c)
        assert optimizer.param_groups[0]["betas"] == pytest.approx((0.5**c, 0.9**c))
    two = make_gan_learner(discriminator=DiscriminatorOptions(lr=3e-3))
    assert two.optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-3 * 0.8)
    assert two.discriminator_optimizer.param_groups[0]["lr"] == pytest.approx(3e-3 * 16 / 17)


def test_schedules_of_all_optimizers(make_gan_learner: MakeGANLearner, warm: Path) -> None:
    learner = make_gan_learner(
        init=str(warm),
        steps=10,
        reconstruction=dataclasses.replace(AGAIN, encoder_lr=1e-2),
        optimizer=OptimizerOptions("adam", 1e-3, schedule="cosine"),
        discriminator=DiscriminatorOptions(lr=2e-3),
    )
    learner.step(batches_of(learner, 1), 5)
    assert learner.reconstruction is not None
    for optimizer, rate in (
        (learner.optimizer, 1e-3 * 4 / 5),
        (learner.discriminator_optimizer, 2e-3 * 16 / 17),
        (learner.reconstruction.optimizer, 1e-2),
    ):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate / 2)


def test_half_life_of_the_average(make_gan_learner: MakeGANLearner) -> None:
    learner = make_gan_learner(adversarial=AdversarialOptions(ema_kimg=10.0, ema_rampup=0.05))
    # After 200,000 pictures the average forgets half in 10,000
    assert learner._decay(200_000, 32) ** (10_000 / 32) == pytest.approx(0.5)
    assert learner._decay(10**9, 32) == learner._decay(200_000, 32)
    # Before, in a twentieth of what has been seen
    assert learner._decay(40_000, 32) ** (2_000 / 32) == pytest.approx(0.5)
    assert learner._decay(32, 32) < 1e-5
    without = make_gan_learner(adversarial=AdversarialOptions(ema_kimg=10.0, ema_rampup=None))
    assert without._decay(32, 32) == learner._decay(10**9, 32)


@pytest.mark.parametrize(
    ("phase", "function", "kept"),
    [
        ("generator", "generator_loss", {"generator", "encoder", "w_avg", "average"}),
        ("path_length", "path_length_penalty", {"generator", "encoder", "mean_length", "average"}),
        ("discriminator", "discriminator_loss", {"discriminator", "ada"}),
        ("r1", "r1_penalty", {"discriminator", "ada"}),
    ],
)
def test_a_bad_part_changes_nothing_of_its_network(
    make_gan_learner: MakeGANLearner,
    warm: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    function: str,
    kept: set[str],
) -> None:
    learner = make_gan_learner(init=str(warm), reconstruction=AGAIN, ada=AdaptiveOptions(p=0.5))
    batch = batches_of(learner, 1)
    assert learner.step(batch, 0)[1]
    lazy = {name: term.clone() for name, term in learner.lazy.items()}
    average = copy.deepcopy(learner.average.state_dict())
    phases, real = Phases(learner, monkeypatch), getattr(gan, function)

    def bad(*args: Any) -> Any:
        result = real(*args)
        return (result[0] * torch.nan, result[1] * torch.nan) if isinstance(result, tuple) else result * torch.nan

    monkeypatch.setattr(gan, function, bad)
    _, finite = learner.step(batch, 16)  # with path length and R1
    assert not finite
    assert phases.names == ["generator", "path_length", "discriminator", "r1"]
    index = phases.names.index(phase)
    assert not phases.changed(index) & kept and not phases.changed(index)
    for other in set(range(4)) - {index}:  # and the others go on
        assert phases.changed(other)
    assert ("average" in kept) == same(dict(learner.average.state_dict()), dict(average))
    for name, term in learner.lazy.items():
        assert torch.isfinite(term)
        assert bool(term == lazy[name]) == ((phase, name.split()[0]) in {("path_length", "path"), ("r1", "r1")})
    tensors: dict[str, Tensor] = {}
    checkpoint._flatten(learner.state(), "", tensors)
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())
    monkeypatch.undo()
    assert learner.step(batch, 17)[1]


def test_a_bad_gradient_in_the_encoder_alone(
    make_gan_learner: MakeGANLearner, warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_gan_learner(init=str(warm), reconstruction=AGAIN)
    assert learner.reconstruction is not None
    learner.reconstruction.encoder.head.bias.register_hook(lambda gradient: gradient * torch.nan)
    before = copy.deepcopy(learner.reconstruction.state()["encoder"])
    _, finite = learner.step(batches_of(learner, 1), 1)
    assert not finite and same(dict(learner.reconstruction.state()["encoder"]), dict(before))


def test_the_probability_of_augmentation_follows_the_discriminator(make_gan_learner: MakeGANLearner) -> None:
    learner = make_gan_learner(ada=AdaptiveOptions(p=0.5, kimg=1.0), accumulation=2)
    learner.ada.every = 8
    assert isinstance(learner.discriminator, Discriminator)
    p = 0.5
    for step, (bias, sign) in enumerate([(50.0, 1), (50.0, 1), (-50.0, -1), (50.0, 1)]):
        learner.discriminator.out.bias.data.fill_(bias)
        terms, _ = learner.step(batches_of(learner, 2, start=2 * step), step)
        p += sign * 8 / 1000
        assert learner.ada.p == pytest.approx(p) and float(terms["augmentation"]) == pytest.approx(p)
        assert learner.ada.r_t == sign
    still = make_gan_learner(ada=AdaptiveOptions(p=0.25, kimg=0))
    still.ada.every = 4
    still.step(batches_of(still, 1), 0)
    assert still.ada.p == 0.25
