"""Runs that go to their end, and what goes wrong on the way."""

import copy
import json
import logging
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from stylegan_inversion import Domain, E4EPipeline, PSPPipeline, PTIPipeline
from stylegan_inversion.errors import DivergedError
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.training import trainer
from stylegan_inversion.training.config import AdversarialOptions, GeneratorOptions, LossOptions, OptimizerOptions
from stylegan_inversion.training.encoder import EncoderLearner
from stylegan_inversion.training.gan import GANLearner
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.conftest import (
    EVERYTHING,
    MakeConfig,
    MakeGAN,
    batches_of,
    elsewhere,
    read_log,
    same,
    same_runs,
    save_pictures,
    saved,
)


def test_a_run(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        steps=30,
        optimizer=OptimizerOptions("adam", 3e-3),
        batch_size=8,
        validation_data=str(save_pictures(tmp_path / "held out", 9, seed=1)),
        validate_every=10,
        image_every=4,
        checkpoint_every=7,
        log_every=3,
        trackers=("tensorboard",),
    )
    seen: list[tuple[int, dict[str, float]]] = []
    random_state = torch.get_rng_state()
    result = train(config, callback=lambda step, terms: seen.append((step, terms)))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (result.step, result.interrupted) == (30, False)
    assert [step for step, _ in seen] == list(range(1, 31)) and seen[0][1].keys() == {"l2", "loss"}
    losses = [terms["loss"] for _, terms in seen]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])

    output, log, scores = Path(config.output), read_log(config), read_log(config, "validation")
    assert [line["step"] for line in log] == list(range(3, 31, 3))
    assert log[1] == {"step": 6, "kind": "train", **seen[5][1], "lr": 3e-3}
    assert [line["step"] for line in scores] == [10, 20, 30]
    assert result.best == min(line["loss"] for line in scores)
    drawn = sorted(path.name for path in (output / "images").iterdir())
    assert drawn == [f"step-{step:08d}.png" for step in (4, 8, 10, 12, 16, 20, 24, 28, 30)]
    assert load_image(output / "images" / drawn[0]).size == (2 * (3 * 16 + 4), 4 * 16)
    kept = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert kept == ["step-00000028.safetensors", "step-00000030.safetensors"]
    assert list((output / "stylegan_inversion").rglob("events.out.tfevents.*"))

    # Every picture counts, and the best model is the one that scored best
    for folder, score in (("best", result.best), ("last", scores[-1]["loss"])):
        pipeline = PSPPipeline.from_pretrained(output / folder, device="cpu")
        faces = sorted(Path(str(config.validation_data)).iterdir())
        errors = [pipeline(path, align=False).reports[0]["l2"] for path in faces]
        assert len(errors) == 9 and sum(errors) / 9 == pytest.approx(score, rel=0.02)  # reports compare 8-bit pictures

    # A finished run has nothing left to do
    before = (output / "log.jsonl").read_text()
    assert train(config) == result
    assert (output / "log.jsonl").read_text() == before

    # nor has one that an older version began, which did not have all options
    written = json.loads((output / "config.json").read_text())
    del written["restyle"], written["train_decoder"]
    (output / "config.json").write_text(json.dumps(written | {"moco": None}))
    assert train(config) == result


def test_a_run_of_a_generator_starts_from_another(make_gan: MakeGAN, tmp_path: Path) -> None:
    config = make_gan(steps=2, adversarial=AdversarialOptions(path_length=0.0, reuse_samples=True))
    train(config)
    init, state = str(Path(config.output, "last")), saved(config)["learner"]
    second = elsewhere(make_gan(init=init, generator=GeneratorOptions(), crop_scale=0.7), "second")
    learner = GANLearner(second, Accelerator(cpu=True))
    assert same(dict(learner.generator.state_dict()), dict(state["average"]))
    assert same(dict(learner.discriminator.state_dict()), dict(state["discriminator"]))
    learner.export(tmp_path / "export")
    assert PTIPipeline.from_pretrained(tmp_path / "export").crop_scale == 0.7


def test_a_domain_of_wide_pictures(make_gan: MakeGAN, make_config: Any, tmp_path: Path) -> None:
    """A generator learns the black bars, its encoder reads and compares what is between them."""
    save_pictures(tmp_path / "wide", 3, side=40)
    config = make_gan(data=str(tmp_path / "wide"), steps=1, whole_photos=True, height=0.5)
    learner = GANLearner(config, Accelerator(cpu=True))
    (batch,) = batches_of(learner, 1)
    assert batch["y"].shape == (4, 3, 16, 16) and batch["y"][:, :, 4:12].abs().mean() < 0.9
    assert (batch["y"][:, :, :4] == -1).all() and (batch["y"][:, :, 12:] == -1).all()
    train(config)
    loss = LossOptions(lpips=0.0, w_distance=1.0)  # the identity of faces is left out by itself
    second = make_config(
        model=str(Path(config.output, "last")), output=str(tmp_path / "encoder"), loss=loss, synthetic_batch_size=2
    )
    encoder = EncoderLearner(second, Accelerator(cpu=True))
    assert encoder.weights == {"l2": 1.0, "w_distance": 1.0}
    (batch,) = batches_of(encoder, 1)
    assert batch["x"].shape == (4, 3, 16, 32) and batch["y"].shape == (4, 3, 8, 16)
    train(second)
    pipe = PSPPipeline.from_pretrained(tmp_path / "encoder/last")
    assert pipe.domain == Domain(has_faces=False, height=0.5)
    out = pipe(tmp_path / "wide/00.png")
    assert out.images[0].size == (16, 8) and pipe.paste_back(out)[0].tobytes() == out.crops[0].photo.tobytes()


class BadSteps:
    """Puts NaN into the loss of some steps, and notes what a bad step changes."""

    def __init__(self, patch: pytest.MonkeyPatch, *, bad: set[int]) -> None:
        self.bad, self.now = bad, 0
        self.skipped: list[int] = []
        step, losses = EncoderLearner.step, EncoderLearner._losses

        def spoil(learner: EncoderLearner, *arguments: Any) -> Any:
            loss, *others = losses(learner, *arguments)
            return loss * float("nan") if self.now in self.bad else loss, *others

        def watch(learner: EncoderLearner, batches: Any, number: int) -> Any:
            self.now = number
            before = copy.deepcopy(learner.state())
            terms, finite = step(learner, batches, number)
            assert finite == (number not in self.bad)
            after = learner.state()
            if not finite:
                for state in (before, after):  # the rate follows from the step alone
                    state["optimizer"]["param_groups"][0].pop("lr")
            assert same(after, before) is not finite
            self.skipped += [] if finite else [number]
            return terms, finite

        patch.setattr(EncoderLearner, "_losses", spoil)
        patch.setattr(EncoderLearner, "step", watch)


def test_a_bad_step_is_skipped(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = BadSteps(monkeypatch, bad={2, 3, 5, 6, 7, 8})
    config = make_config(**EVERYTHING | {"steps": 10, "checkpoint_every": 4})
    with caplog.at_level(logging.WARNING):
        assert train(config).step == 10
    assert watched.skipped == [2, 3, 5, 6, 7, 8]
    assert "Step 2: a loss or gradient is not finite." in caplog.text
    assert [line["step"] for line in read_log(config) if line["loss"] is None] == [3, 4, 6, 7, 8, 9]
    # The count of bad steps is saved too: a resumed run ends as one that was never stopped
    other = elsewhere(config, "stopped")
    train(other, callback=lambda step, _: signal.raise_signal(signal.SIGTERM) if step == 8 else None)
    assert saved(other)["bad_steps"] == 3
    train(other)
    same_runs(config, other)


def test_five_bad_steps_end_the_run(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = BadSteps(monkeypatch, bad=set(range(4, 20)))
    config = make_config(**EVERYTHING | {"steps": 16, "checkpoint_every": 100})
    good = elsewhere(config, "good")
    with pytest.raises(DivergedError, match=r"5 steps in a row were not finite, up to step 8\. The last good state is"):
        train(config)
    assert watched.skipped == [4, 5, 6, 7, 8]
    train(good, callback=lambda step, _: signal.raise_signal(signal.SIGTERM) if step == 4 else None)
    for name in ("encoder", "ema", "adversary"):
        assert same(saved(config)["learner"][name], saved(good)["learner"][name])
    E4EPipeline.from_pretrained(Path(config.output, "last"))
    # Started again it tries five more, and goes on once the cause is gone
    with pytest.raises(DivergedError, match="up to step 12"):
        train(config)
    watched.bad = set()
    assert train(config).step == 16


def test_mixed_precision(make_config: MakeConfig) -> None:
    full = make_config(**EVERYTHING | {"steps": 5})
    half = elsewhere(full, "half", mixed_precision="bf16")
    train(full)
    AcceleratorState._reset_state()
    train(half)
    for a, b in zip(read_log(full), read_log(half)):
        assert a["loss"] != b["loss"] and b["loss"] == pytest.approx(a["loss"], rel=0.1)
    assert all(tensor.dtype != torch.bfloat16 for tensor in saved(half)["learner"]["encoder"].values())


def test_nothing_is_left_open(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error too the trackers are closed."""
    closed = []
    monkeypatch.setattr(trainer.Accelerator, "end_training", lambda self: closed.append(self))

    def power_cut(step: int, terms: dict[str, float]) -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(make_config(), callback=power_cut)
    assert len(closed) == 1 and "wandb" not in sys.modules


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's, when it loads its compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler on this machine")
@pytest.mark.slow
def test_compiled_runs_are_the_same_to_rounding(make_config: MakeConfig, make_gan: MakeGAN) -> None:
    lazy = AdversarialOptions(path_length_every=2, r1_every=2)
    for name, config in (("encoder", make_config()), ("gan", make_gan(adversarial=lazy))):
        plain: Any = elsewhere(config, f"{name}-plain")
        fused: Any = elsewhere(config, f"{name}-fused", compile=True)
        for one in (plain, fused):  # without the checks of shapes, which are not to be compiled
            assert children.run(children.train, one, timeout=600) == 0
        losses = [[line["loss"] for line in read_log(one)] for one in (fused, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
