"""An adversarial run: what a step does to each network, its score, what it begins with, and whole runs."""

import copy
import dataclasses
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from stylegan_inversion import PTIPipeline, hub, latents, ops
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.training import gan
from stylegan_inversion.training.config import (
    AdaptiveOptions,
    AdversarialOptions,
    DiscriminatorOptions,
    GANConfig,
    GeneratorOptions,
    OptimizerOptions,
)
from stylegan_inversion.training.data import SeededDraws
from stylegan_inversion.training.gan import GANLearner, frechet_distance, grow_generator
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.conftest import MakeGAN, MakeGANLearner, batches_of, save_pictures
from tests.training.runs import elsewhere, read_log, same_runs, saved
from tests.training.test_checkpoint import same

UNMOVED = {"conv.bias", "fc.bias", "out.bias"}  # the gradient by the pictures does not know of them


def networks(learner: GANLearner) -> dict[str, nn.Module]:
    return {
        "generator": learner.generator,
        "discriminator": learner.discriminator,
        "average": learner.average,
        "perceptual": learner.perceptual,
    }


def part_of(learner: GANLearner, name: str) -> Any:
    """All that belongs to a network: its weights and statistics, and its optimizer."""
    state = learner.state()
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
        state = self.learner.state()
        more = {name: state[name] for name in ("average", "mean_length", "ada")}
        return parts | more | {"w_avg": self.learner.generator.w_avg}

    def changed(self, index: int) -> set[str]:
        before, after = self.before[index], self.after[index]
        return {name for name in before if not same(before[name], after[name])}


def test_gradients_of_each_part(make_gan_learner: MakeGANLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_gan_learner(adversarial=AdversarialOptions(style_mixing=0.5))
    phases = Phases(learner, monkeypatch)
    _, finite = learner.step(batches_of(learner, 1), 0)
    assert finite and phases.names == ["generator", "path_length", "discriminator", "r1"]
    trained = [{"generator"}, {"generator"}, {"discriminator"}, {"discriminator"}]
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
        {"generator", "w_avg"},
        {"generator", "mean_length"},
        {"discriminator", "ada"},
        {"discriminator"},
    ]
    assert all(p.grad is None for network in networks(learner).values() for p in network.parameters())
    assert not any(p.requires_grad for p in learner.discriminator.parameters())


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


@pytest.mark.parametrize("accumulation", [2])
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


@pytest.mark.parametrize(
    ("phase", "function", "kept"),
    [
        ("generator", "generator_loss", {"generator", "w_avg", "average"}),
        ("path_length", "path_length_penalty", {"generator", "mean_length", "average"}),
        ("discriminator", "discriminator_loss", {"discriminator", "ada"}),
        ("r1", "r1_penalty", {"discriminator", "ada"}),
    ],
)
def test_a_bad_part_changes_nothing_of_its_network(
    make_gan_learner: MakeGANLearner, monkeypatch: pytest.MonkeyPatch, phase: str, function: str, kept: set[str]
) -> None:
    learner = make_gan_learner(ada=AdaptiveOptions(p=0.5))
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
    monkeypatch.undo()
    assert learner.step(batch, 17)[1]


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


def test_frechet_distance() -> None:
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 3, generator=rng, dtype=torch.float64)
    b = a * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64) + torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 0.25, rel=0.05)  # axis by axis: means, then deviations
    few = frechet_distance(a[:2], b[:2])  # singular covariances
    assert few == pytest.approx(frechet_distance(b[:2], a[:2])) and few > 0


def test_bad_beginnings(make_gan_learner: MakeGANLearner, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of the discriminator's group size, 4"):
        make_gan_learner(batch_size=6)
    make_gan_learner(batch_size=6, discriminator=DiscriminatorOptions(group_size=3))
    held_out = str(save_pictures(tmp_path / "held out", 3))
    with pytest.raises(ValueError, match=r"does not take pictures of 16 px: .* or leave out validation_data"):
        make_gan_learner(validation_data=held_out).open_validation_data()
    with pytest.raises(ValueError, match=r"needs at least 2 pictures in `validation_data`.* got 1"):
        make_gan_learner(validation_data=held_out, validation_images=1).open_validation_data()
    with pytest.raises(ValueError, match=r"`generator\.resolution` is 8, but `init` brings a generator of 16 px"):
        make_gan_learner(init=str(model), generator=GeneratorOptions(8))
    with pytest.raises(ModelNotFoundError, match=r"`init`: .* holds no generator \(folder 'generator'\)"):
        hub.write_config({}, tmp_path / "empty")
        make_gan_learner(init=str(tmp_path / "empty"), generator=GeneratorOptions())
    first = make_gan_learner(init=str(model), generator=GeneratorOptions())
    first.export(tmp_path / "first")
    large: dict[str, Any] = {"init": str(tmp_path / "first"), "generator": GeneratorOptions(32)}
    with pytest.raises(ValueError, match=r"a discriminator of 16 px; the generator draws 32 px.*--discriminator\.new"):
        make_gan_learner(**large)
    grown = make_gan_learner(**large, discriminator=DiscriminatorOptions(new=True))
    assert grown.generator.config.resolution == 32 and grown.generator.config.z_dim == 8


def load(model: Path) -> Generator:
    return hub.load_module(Generator, GeneratorConfig, model / "generator")


@torch.no_grad()
@pytest.mark.parametrize("resolution", [32, 64])
def test_a_grown_generator_draws_the_old_pictures_enlarged(model: Path, resolution: int) -> None:
    old = load(model)
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


def everything(make_gan: MakeGAN, init: Path, **overrides: Any) -> GANConfig:
    """A run with all there is."""
    options: dict[str, Any] = {
        "init": str(init),
        "generator": GeneratorOptions(),
        "steps": 6,
        "checkpoint_every": 2,
        "adversarial": AdversarialOptions(r1_every=3, path_length_every=2),
        "ada": AdaptiveOptions(p=0.3, kimg=1.0),
        "optimizer": OptimizerOptions(
            "adam", 2e-3, betas=(0.0, 0.99), warmup=0.2, schedule="cosine", max_grad_norm=5.0
        ),
    }
    return make_gan(**(options | overrides))


def test_killed_and_still_the_same(make_gan: MakeGAN, model: Path, tmp_path: Path) -> None:
    config = everything(make_gan, model)
    other = elsewhere(config, tmp_path, "killed")
    assert children.run(children.train, config) == 0
    state, log = saved(config)["learner"], Path(other.output, "log.jsonl")
    assert state["ada"]["images"] == 24 and float(state["mean_length"]) > 0
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


def assert_alike(one: GANConfig, two: GANConfig, *, atol: float = 1e-5, rtol: float = 1e-4) -> None:
    """Two runs have logged the same and ended with the same networks, but for rounding."""
    ours, theirs = read_log(one), read_log(two)
    assert len(ours) == one.steps
    for a, b in zip(ours, theirs, strict=True):
        assert b == {k: v if k == "kind" else pytest.approx(v, rel=rtol, abs=1e-5) for k, v in a.items()}
    a, b = saved(one)["learner"], saved(two)["learner"]
    for part in ("generator", "average", "discriminator"):
        for name in a[part]:
            torch.testing.assert_close(b[part][name], a[part][name], rtol=1e-4, atol=atol)
    torch.testing.assert_close(b["mean_length"], a["mean_length"], rtol=1e-4, atol=0)


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
    assert_alike(one, two)
    a, b = saved(one)["learner"], saved(two)["learner"]
    assert b["ada"] == a["ada"] and a["ada"]["images"] == 40


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
        optimizer=OptimizerOptions("adam", 1e-2, betas=(0.0, 0.99)),
        adversarial=AdversarialOptions(**options, ema_rampup=0.0, reuse_samples=True),  # type: ignore[arg-type]
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
