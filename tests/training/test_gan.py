import copy
import dataclasses
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from stylegan_inversion import PTIPipeline, hub
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from stylegan_inversion.models.discriminator import Discriminator
from stylegan_inversion.training import checkpoint, gan
from stylegan_inversion.training.config import OptimizerOptions
from stylegan_inversion.training.data import PositionSampler, load_batches
from stylegan_inversion.training.draws import Draws
from stylegan_inversion.training.gan import GANLearner
from stylegan_inversion.training.generator_config import (
    AdaptiveOptions,
    AdversarialOptions,
    DiscriminatorOptions,
    GANConfig,
    GeneratorOptions,
    ReconstructionOptions,
)
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.conftest import MakeGAN, MakeGANLearner, save_pictures, save_warm_model, tiny_generator
from tests.training.test_checkpoint import same
from tests.training.test_progress import Colours
from tests.training.test_trainer import elsewhere, read_log, same_runs, saved

AGAIN = ReconstructionOptions(batch_size=2, lpips=0)
UNMOVED = {"conv.bias", "fc.bias", "out.bias"}  # the gradient by the pictures does not know of them


def batches_of(learner: GANLearner, count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """The first micro-batches of the run."""
    folder = learner.open_data()
    assert folder is not None
    sampler = PositionSampler(learner.config.batch_size, start=start, end=start + count)
    return list(load_batches(folder, sampler, num_workers=0))


def networks(learner: GANLearner) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {
        "generator": learner.generator,
        "discriminator": learner.discriminator,
        "average": learner.average,
        "perceptual": learner.progress.perceptual,
    }
    return parts if learner.reconstruction is None else parts | {"encoder": learner.reconstruction.encoder}


def part_of(learner: GANLearner, name: str) -> Any:
    """All that belongs to a network: its weights and statistics, and its optimizer."""
    state = learner.state()
    if name == "encoder":
        return state["reconstruction"]
    optimizer = copy.deepcopy(state["optimizer" if name == "generator" else "discriminator_optimizer"])
    for group in optimizer["param_groups"]:
        group.pop("lr")  # follows from the step alone
    w_avg = {key: value for key, value in state[name].items() if key != "w_avg"}
    return [w_avg, optimizer]


class Phases:
    """Watches the parts of a step: what each has gradients for, and what it changes."""

    def __init__(self, learner: GANLearner, patch: pytest.MonkeyPatch) -> None:
        self.learner, self.names = learner, list[str]()
        self.gradients: list[dict[str, dict[str, Tensor | None]]] = []
        self.before: list[dict[str, Any]] = []
        self.after: list[dict[str, Any]] = []
        apply = gan.apply_gradients

        def note(accelerator: Any, optimizer: Any, *args: Any, **options: Any) -> bool:
            self.gradients.append(
                {
                    name: {key: None if p.grad is None else p.grad.clone() for key, p in network.named_parameters()}
                    for name, network in networks(learner).items()
                }
            )
            return apply(accelerator, optimizer, *args, **options)

        patch.setattr(gan, "apply_gradients", note)
        for phase in ("generator", "path_length", "discriminator", "r1"):
            self._watch(phase, patch)

    def _watch(self, phase: str, patch: pytest.MonkeyPatch) -> None:
        real = getattr(self.learner, f"_{phase}_step")

        def watched(*args: Any) -> Any:
            self.names.append(phase)
            self.before.append(copy.deepcopy(self._state()))
            result = real(*args)
            self.after.append(copy.deepcopy(self._state()))
            return result

        patch.setattr(self.learner, f"_{phase}_step", watched)

    def _state(self) -> dict[str, Any]:
        parts = {name: part_of(self.learner, name) for name in ("generator", "discriminator")}
        if self.learner.reconstruction is not None:
            parts["encoder"] = part_of(self.learner, "encoder")
        state = self.learner.state()
        more = {name: state[name] for name in ("average", "mean_length", "ada")}
        return parts | more | {"w_avg": self.learner.generator.w_avg}

    def changed(self, index: int) -> set[str]:
        before, after = self.before[index], self.after[index]
        return {name for name in before if not same(before[name], after[name])}


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


def test_the_discriminator_on_features(make_gan_learner: MakeGANLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_gan_learner(
        generator=tiny_generator(32), discriminator=DiscriminatorOptions(kind="features", width=4), batch_size=2
    )
    before = copy.deepcopy(learner.progress.perceptual.state_dict())
    phases = Phases(learner, monkeypatch)
    terms, finite = learner.step(batches_of(learner, 1), 0)
    assert finite and len(phases.names) == 4 and {"r1", "discriminator"} < set(terms)
    for name, gradient in phases.gradients[2]["discriminator"].items():
        assert gradient is not None and torch.isfinite(gradient).all(), name
    assert all(gradient is None for of in phases.gradients for gradient in of["perceptual"].values())
    assert same(dict(learner.progress.perceptual.state_dict()), dict(before))
    assert not any(name.startswith("features") for name in learner.discriminator.state_dict())


def test_bad_beginnings(make_gan_learner: MakeGANLearner, model: Path, warm: Path, tmp_path: Path) -> None:
    for init in (None, str(model)):
        with pytest.raises(ValueError, match=r"`reconstruction\.batch_size` needs the encoder of an autoencoder run"):
            make_gan_learner(init=init, reconstruction=AGAIN)
    with pytest.raises(ValueError, match=r"does not take pictures of 16 px: .* or set reconstruction\.lpips=0"):
        make_gan_learner(init=str(warm), reconstruction=ReconstructionOptions(batch_size=2))
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of the discriminator's group size, 4"):
        make_gan_learner(batch_size=6)
    make_gan_learner(batch_size=6, discriminator=DiscriminatorOptions(group_size=3))
    with pytest.raises(ValueError, match=r"does not take pictures of 16 px: .* or set no validation_data"):
        make_gan_learner(validation_data=str(save_pictures(tmp_path / "held out", 3))).open_validation_data()
    with pytest.raises(ValueError, match=r"`generator\.resolution` is 8, but `init` brings a generator of 16 px"):
        make_gan_learner(init=str(model), generator=GeneratorOptions(8))


def test_weights_follow_from_the_seed_alone(make_gan_learner: MakeGANLearner) -> None:
    state = torch.get_rng_state()
    first = make_gan_learner().state()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert same(make_gan_learner().state(), first)
    other = make_gan_learner(seed=1).state()
    assert not any(same(dict(other[name]), dict(first[name])) for name in ("generator", "discriminator"))
    assert same(dict(first["average"]), dict(first["generator"]))


def test_a_run_goes_on_from_another(make_gan: MakeGAN, tmp_path: Path) -> None:
    first = make_gan(steps=3)
    train(first)
    init = Path(first.output, "last")
    second = make_gan(init=str(init), output=str(tmp_path / "second"), generator=GeneratorOptions(), crop_scale=0.7)
    learner = GANLearner(second, Accelerator(cpu=True))
    state = saved(first)["learner"]
    assert same(dict(learner.generator.state_dict()), dict(state["average"]))
    assert same(dict(learner.discriminator.state_dict()), dict(state["discriminator"]))
    assert all(p.requires_grad for p in learner.generator.parameters())
    learner.export(tmp_path / "export")
    assert PTIPipeline.from_pretrained(tmp_path / "export").crop_scale == 0.7


def everything(make_gan: MakeGAN, pictures: Path, init: Path, **overrides: Any) -> GANConfig:
    """A run with all there is."""
    options: dict[str, Any] = {
        "init": str(init),
        "generator": GeneratorOptions(),
        "steps": 6,
        "checkpoint_every": 2,
        "adversarial": AdversarialOptions(r1_every=3, path_length_every=2),
        "ada": AdaptiveOptions(p=0.3, kimg=1.0),
        "optimizer": OptimizerOptions(
            "adam", 2e-3, betas=[0.0, 0.99], warmup=0.2, schedule="cosine", max_grad_norm=5.0
        ),
        "reconstruction": AGAIN,
    }
    return make_gan(**(options | overrides))


def test_killed_and_still_the_same(make_gan: MakeGAN, pictures: Path, warm: Path, tmp_path: Path) -> None:
    config = everything(make_gan, pictures, warm)
    other = elsewhere(config, tmp_path, "killed")
    assert children.run(children.train, config) == 0
    state, log = saved(config)["learner"], Path(other.output, "log.jsonl")
    assert state["ada"]["images"] == 24 and float(state["mean_length"]) > 0 and state["reconstruction"] is not None
    delays = random.Random(0)
    for kill in ("half written", 3, "half exported"):
        if isinstance(kill, str):
            assert children.run(children.train_and_crash, other, kill) == children.CRASHED
        else:
            child = children.start(children.train, other)
            children.kill_at(child, log, kill, delays.uniform(0, 0.05))
            assert child.exitcode == -signal.SIGKILL
    assert children.last_step(log) < 6
    assert children.run(children.train, other) == 0
    same_runs(config, other)
    assert not [path for path in Path(other.output).rglob(".*") if path.is_file()]
    PTIPipeline.from_pretrained(Path(other.output, "last"))
    hub.load_module(ImageEncoder, ImageEncoderConfig, Path(other.output, "last", "autoencoder"))


def test_interrupted_with_validation(
    make_gan: MakeGAN, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gan, "load_perceptual", lambda *args, **options: Colours())  # a distance that takes no time
    whole = make_gan(steps=3, validation_data=str(pictures), validate_every=2, image_every=1)
    part = elsewhere(whole, tmp_path, "part")
    result = train(whole)
    assert [line["step"] for line in read_log(whole, "validation")] == [2, 3]
    scores = [line["loss"] for line in read_log(whole, "validation")]
    assert result.best == min(scores) and read_log(whole, "validation")[0]["fd (colours)"] == scores[0]
    with Image.open(Path(whole.output, "images", "step-00000001.png")) as grid:
        assert grid.size == (2 * (3 * 16 + 4), 4 * 16)  # the first batch, eight pictures
    for step in (1, 2):
        assert train(part, callback=lambda *_: signal.raise_signal(signal.SIGINT)).step == step
    train(part)
    same_runs(whole, part)


def test_more_steps(make_gan: MakeGAN, tmp_path: Path) -> None:
    whole = make_gan(steps=4, batch_size=2)
    part = elsewhere(whole, tmp_path, "part", steps=2)
    train(whole)
    train(part)
    train(dataclasses.replace(part, steps=4))
    same_runs(whole, part)
    with pytest.raises(ValueError, match="has done 4 steps; `steps` must be at least as many, got 3"):
        train(dataclasses.replace(part, steps=3))
    with pytest.raises(ValueError, match=r"adversarial\.r1=10\.0, and this one has 5\.0"):
        train(dataclasses.replace(part, adversarial=AdversarialOptions(r1=5.0)))


def test_two_processes_train_as_one(make_gan: MakeGAN, model: Path, tmp_path: Path) -> None:
    """The groups of the minibatch standard deviation are those of a micro-batch: what is compared are two of them."""
    one = make_gan(
        init=str(model),
        generator=GeneratorOptions(),
        steps=5,
        accumulation=2,
        adversarial=AdversarialOptions(r1_every=2, path_length_every=2),
        ada=AdaptiveOptions(p=0.5, kimg=1.0),
    )
    two = elsewhere(one, tmp_path, "two", accumulation=1)
    train(one)
    assert children.run(children.train_twofold, two) == 0
    ours, theirs = read_log(one), read_log(two)
    assert len(ours) == 5
    for a, b in zip(ours, theirs, strict=True):
        assert b == {k: v if k == "kind" else pytest.approx(v, rel=1e-4, abs=1e-5) for k, v in a.items()}
    a, b = saved(one)["learner"], saved(two)["learner"]
    for part in ("generator", "average", "discriminator"):
        for name in a[part]:
            torch.testing.assert_close(b[part][name], a[part][name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b["mean_length"], a["mean_length"], rtol=1e-4, atol=0)
    assert b["ada"] == a["ada"] and a["ada"]["images"] == 40


def test_two_processes_go_on(make_gan: MakeGAN, pictures: Path, warm: Path, tmp_path: Path) -> None:
    whole = everything(make_gan, pictures, warm, steps=2, batch_size=3, checkpoint_every=1)
    part = elsewhere(whole, tmp_path, "part")
    assert children.run(children.train_twofold, whole) == 0
    assert children.run(children.train_and_crash_twofold, part, 2) != 0
    assert children.run(children.train_twofold, part) == 0
    same_runs(whole, part)


def test_mixed_precision(make_gan: MakeGAN, warm: Path, tmp_path: Path) -> None:
    full = make_gan(
        init=str(warm), steps=2, generator=GeneratorOptions(), reconstruction=AGAIN, ada=AdaptiveOptions(p=0.5)
    )
    half = elsewhere(full, tmp_path, "half", mixed_precision="bf16")
    train(full)
    train(half)
    for a, b in zip(read_log(full), read_log(half), strict=True):
        assert a["loss"] != b["loss"]  # batch norm of two pictures of 1 px each makes much of rounding
        assert b["generator"] == pytest.approx(a["generator"], rel=0.1)
        assert b["discriminator"] == pytest.approx(a["discriminator"], rel=0.1)
    state = saved(half)["learner"]
    for part in ("generator", "average", "discriminator"):
        assert all(tensor.dtype == torch.float32 for tensor in state[part].values())


def test_constant_colours_are_learnt(make_gan: MakeGAN, tmp_path: Path) -> None:
    """The whole of it: all pictures are of one of two colours, and samples come to be so."""
    folder, colours = tmp_path / "colours", [(230, 60, 40), (40, 90, 220)]
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (16, 16), colours[i % 2]).save(folder / f"{i}.png")
    options = {"r1": 0.5, "r1_every": 8, "path_length": 0.0, "ema_kimg": 0.03, "style_mixing": 0.0}
    config = make_gan(
        data=str(folder),
        steps=45,
        optimizer=OptimizerOptions("adam", 1e-2, betas=[0.0, 0.99]),
        adversarial=AdversarialOptions(**options, ema_rampup=None, reuse_samples=True),  # type: ignore[arg-type]
    )
    targets = torch.tensor(colours) / 127.5 - 1

    def error(learner: GANLearner) -> float:
        z = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            images = learner.average(z)
        return float((images[:, None] - targets[None, :, :, None, None]).square().mean(dim=(2, 3, 4)).amin(1).mean())

    learner = GANLearner(config, Accelerator(cpu=True))
    before = error(learner)
    train(config)
    learner.load_state(saved(config)["learner"])
    assert error(learner) < 0.3 * before


def test_an_encoder_of_larger_pictures(make_gan_learner: MakeGANLearner, warm: Path) -> None:
    hub.save_module(ImageEncoder(ImageEncoderConfig(32, 16, (4, 4, 4, 4))), warm / "autoencoder")
    with pytest.raises(ValueError, match=r"encoder of pictures of 32 px; the generator draws 16 px"):
        make_gan_learner(init=str(warm), reconstruction=AGAIN)
