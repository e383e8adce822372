"""Whole adversarial runs: killed, interrupted, in two processes, from another run."""

import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from stylegan_inversion import PTIPipeline
from stylegan_inversion.training import gan
from stylegan_inversion.training.config import (
    AdaptiveOptions,
    AdversarialOptions,
    GANConfig,
    GeneratorOptions,
    OptimizerOptions,
)
from stylegan_inversion.training.gan import GANLearner
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.conftest import MakeGAN
from tests.training.runs import elsewhere, read_log, same_runs, saved
from tests.training.test_checkpoint import same
from tests.training.test_gan import Colours


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
