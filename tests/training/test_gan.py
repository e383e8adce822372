"""An adversarial run: what a step does to each network, its score, what it begins with, and whole runs."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stylegan_inversion import latents, ops, storage
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.training import gan
from stylegan_inversion.training.config import AdaptiveOptions, AdversarialOptions, DiscriminatorOptions
from stylegan_inversion.training.data import SeededDraws
from stylegan_inversion.training.gan import GANLearner, grow_generator
from tests.training.conftest import MakeGANLearner, batches_of, same

UNMOVED = {"conv.bias", "fc.bias", "out.bias"}  # the gradient by the pictures does not know of them


def test_gradients_of_each_part(make_gan_learner: MakeGANLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the generator, its path length, the discriminator, its R1; each reaches its own network and no other."""
    learner = make_gan_learner(adversarial=AdversarialOptions(style_mixing=0.5), ada=AdaptiveOptions(p=0.5))
    networks: dict[str, nn.Module] = {"generator": learner.generator, "discriminator": learner.discriminator}
    networks |= {"average": learner.average, "perceptual": learner.perceptual}
    phases: list[dict[tuple[str, str], Tensor | None]] = []
    apply = gan.apply_gradients

    def note(*args: Any, **options: Any) -> bool:
        named = [(name, key, p) for name, network in networks.items() for key, p in network.named_parameters()]
        phases.append({(name, key): None if p.grad is None else p.grad.clone() for name, key, p in named})
        return apply(*args, **options)

    monkeypatch.setattr(gan, "apply_gradients", note)
    assert learner.step(batches_of(learner, 1), 0)[1]
    trained = ["generator", "generator", "discriminator", "discriminator"]
    for number, (expected, gradients) in enumerate(zip(trained, phases, strict=True)):
        for (network, key), gradient in gradients.items():
            left_out = (number == 1 and key.endswith("to_rgb.bias")) or (number == 3 and key in UNMOVED)
            if network == expected and not left_out:
                assert gradient is not None and gradient.isfinite().all() and gradient.any(), (number, network, key)
            else:
                assert gradient is None or (network == expected and not gradient.any()), (number, network, key)
    assert all(p.grad is None for network in networks.values() for p in network.parameters())
    assert not any(p.requires_grad for p in learner.discriminator.parameters())


@pytest.mark.parametrize(
    ("function", "bad", "good"),
    [("generator_loss", "generator", "discriminator"), ("discriminator_loss", "discriminator", "generator")],
)
def test_a_bad_part_changes_nothing_of_its_network(
    make_gan_learner: MakeGANLearner, monkeypatch: pytest.MonkeyPatch, function: str, bad: str, good: str
) -> None:
    learner = make_gan_learner(ada=AdaptiveOptions(p=0.5))
    batch = batches_of(learner, 1)
    assert learner.step(batch, 0)[1]
    before, real = copy.deepcopy(learner.state()), getattr(gan, function)
    monkeypatch.setattr(gan, function, lambda *args: real(*args) * torch.nan)
    assert not learner.step(batch, 1)[1]
    after = learner.state()
    assert same(dict(after[bad]), dict(before[bad])) and not same(dict(after[good]), dict(before[good]))
    if bad == "generator":
        assert same(dict(after["average"]), dict(before["average"]))
    else:
        assert after["ada"] == before["ada"]
    monkeypatch.undo()
    assert learner.step(batch, 2)[1]


class Reference:
    """StyleGAN2's step again, from the papers' formulas."""

    def __init__(self, learner: GANLearner) -> None:
        self.learner, self.options = learner, learner.config.adversarial
        self.generator = copy.deepcopy(learner.generator)
        self.discriminator = copy.deepcopy(learner.discriminator).requires_grad_(True)
        self.average = copy.deepcopy(learner.generator)
        self.draws = SeededDraws(self.generator, learner.accelerator, seed=learner.config.seed)
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


def test_against_the_formulas_of_the_papers(make_gan_learner: MakeGANLearner) -> None:
    learner = make_gan_learner(
        batch_size=4,
        accumulation=2,
        discriminator=DiscriminatorOptions(lr=1e-3),
        adversarial=AdversarialOptions(r1=8.0, r1_every=3, path_length_every=2, ema_kimg=0.0005),
    )
    for conv in learner.generator.synthesis.convs:
        conv.noise_strength.data.fill_(0.1)
    reference = Reference(learner)
    for step in range(5):
        batches = batches_of(learner, 2, start=2 * step)
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


def test_what_the_discriminator_sees(make_gan_learner: MakeGANLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_gan_learner(ada=AdaptiveOptions(p=0.8, kimg=0))
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
    assert len(calls) == 4
    for shown, (before, after) in zip(seen, calls):
        assert torch.equal(shown, after) and not torch.equal(before, after)
    assert torch.equal(calls[2][0], batch[0]["y"]) and torch.equal(of_r1, of_real)
    assert not torch.equal(of_generator, fake)


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


def real_pictures(count: int = 9) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def batches(y: Tensor, size: int) -> Iterator[dict[str, Any]]:
    for first in range(0, len(y), size):
        part = y[first : first + size]
        yield {"y": part, "x": part, "index": torch.arange(first, first + len(part))}


def test_the_score(make_gan_learner: MakeGANLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Frechet distance of two Gaussians, of pictures and of samples of the same z whatever the batches."""
    monkeypatch.setattr(gan, "load_perceptual", lambda *args, **options: Colours())  # a distance that takes no time
    learner, y, state = make_gan_learner(), real_pictures(), torch.get_rng_state()
    values, columns = learner.evaluate(batches(y, 4), score=True)
    assert values == {"fd (colours)": values["loss"], "loss": values["loss"]} and values["loss"] > 0.01
    assert learner.evaluate(batches(y, 3), score=True)[0]["loss"] == pytest.approx(values["loss"], rel=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert [column.shape for column in columns] == [(4, 3, 16, 16)] * 3 and torch.equal(columns[0], y[:4])
    draws = SeededDraws(learner.average, learner.accelerator, seed=0)
    z = draws.numbered("progress", list(range(9)), 8)
    with torch.no_grad():
        samples, truncated = (learner.average(z, truncation_psi=psi).clamp(-1, 1) for psi in (1.0, 0.7))
    torch.testing.assert_close(columns[1], samples[:4])
    torch.testing.assert_close(columns[2], truncated[:4])
    assert learner.evaluate(batches(samples, 4), score=True)[0]["loss"] < 1e-3 * values["loss"]
    assert learner.evaluate(batches(y, 4), score=False)[0] == {}


@torch.no_grad()
@pytest.mark.parametrize("resolution", [32, 64])
def test_a_grown_generator_draws_the_old_pictures_enlarged(model: Path, resolution: int) -> None:
    old = storage.load_module(Generator, GeneratorConfig, model / "generator")
    before = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    for side in (4, 8, 16):
        old.synthesis.get_parameter(f"blocks.{side}.to_rgb.bias").uniform_(-0.5, 0.5)
    new = grow_generator(old, resolution)
    assert new.config.resolution == resolution and new.num_ws == latents.num_ws(resolution)
    w = old.mapping(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(new.mapping(torch.ones(1, 8)), old.mapping(torch.ones(1, 8)))
    assert torch.equal(new.w_avg, old.w_avg)
    expected = old.synthesis(latents.broadcast(w, old.num_ws))
    for _ in range(resolution // 32):
        expected = ops.upsample_2x(expected)
    assert torch.equal(new.synthesis(latents.broadcast(w, new.num_ws)), expected)
    changed = {name for name, tensor in old.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"synthesis.blocks.{side}.to_rgb.bias" for side in (4, 8, 16)}  # by this test alone
