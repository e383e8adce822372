"""Runs that go to their end, and what goes wrong on the way."""

import copy
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from stylegan_inversion import E4EPipeline, PSPPipeline
from stylegan_inversion.errors import CheckpointError, DivergedError, InvalidImageError, MissingDependencyError
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.training import trainer
from stylegan_inversion.training.config import AdversarialOptions, EncoderOptions, OptimizerOptions
from stylegan_inversion.training.encoder import EncoderLearner
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.conftest import MakeConfig, MakeGAN, save_pictures
from tests.training.runs import elsewhere, everything, power_cut, read_log, same_runs, saved
from tests.training.test_checkpoint import same


def test_a_run(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
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

    output = Path(config.output)
    log = read_log(config)
    assert [line["step"] for line in log] == list(range(3, 31, 3))
    assert log[1] == {"step": 6, "kind": "train", **seen[5][1], "lr": 3e-3}
    scores = read_log(config, "validation")
    assert [line["step"] for line in scores] == [10, 20, 30]
    assert result.best == min(line["loss"] for line in scores)
    pictures_drawn = sorted(path.name for path in (output / "images").iterdir())
    assert pictures_drawn == [f"step-{step:08d}.png" for step in (4, 8, 10, 12, 16, 20, 24, 28, 30)]
    assert load_image(output / "images" / "step-00000004.png").size == (2 * (3 * 16 + 4), 4 * 16)
    assert [p.name for p in sorted((output / "checkpoints").iterdir())] == [
        "step-00000028.safetensors",
        "step-00000030.safetensors",
    ]
    assert list((output / "stylegan_inversion").rglob("events.out.tfevents.*"))

    # Every picture counts, and the best model is the one that scored best
    for folder, score in (("best", result.best), ("last", scores[-1]["loss"])):
        pipeline = PSPPipeline.from_pretrained(output / folder, device="cpu")
        errors = []
        for path in sorted(Path(config.validation_data or "").iterdir()):
            out = pipeline(path, align=False)
            errors.append(out.reports[0]["l2"])
        assert len(errors) == 9 and sum(errors) / 9 == pytest.approx(score, rel=0.02)  # reports compare 8-bit pictures

    # A finished run has nothing left to do
    before = (output / "log.jsonl").read_text()
    assert train(config) == result
    assert (output / "log.jsonl").read_text() == before


class BadSteps:
    """Puts NaN into the loss of some steps, and notes what a bad step changes."""

    def __init__(self, patch: pytest.MonkeyPatch, *, bad: set[int]) -> None:
        self.bad, self.now = bad, 0
        self.skipped: list[int] = []
        step, losses = EncoderLearner.step, EncoderLearner._losses

        def spoil(learner: EncoderLearner, batch: Any, serial: int, stage: int) -> Any:
            loss, terms, w_plus = losses(learner, batch, serial, stage)
            return (loss * float("nan") if self.now in self.bad else loss), terms, w_plus

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
    make_config: MakeConfig,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = BadSteps(monkeypatch, bad={2, 3, 5, 6, 7, 8})
    config = everything(make_config, pictures, tmp_path, steps=10, checkpoint_every=4)
    with caplog.at_level(logging.WARNING):
        assert train(config).step == 10
    assert watched.skipped == [2, 3, 5, 6, 7, 8]
    assert "Step 2: a loss or gradient is not finite." in caplog.text
    log = read_log(config)
    assert [line["step"] for line in log if line["loss"] is None] == [3, 4, 6, 7, 8, 9]
    assert "NaN" not in Path(config.output, "log.jsonl").read_text()
    # The count of bad steps is saved too: a resumed run ends as one that was never stopped
    other = elsewhere(config, tmp_path, "stopped")
    train(
        dataclasses.replace(other, steps=10), callback=lambda step, _: os.kill(os.getpid(), 15) if step == 8 else None
    )
    assert saved(other)["bad_steps"] == 3
    train(other)
    same_runs(config, other)


def test_five_bad_steps_end_the_run(
    make_config: MakeConfig, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = BadSteps(monkeypatch, bad=set(range(4, 20)))
    config = everything(make_config, pictures, tmp_path, steps=16, checkpoint_every=100)
    good = elsewhere(config, tmp_path, "good")
    with pytest.raises(DivergedError, match=r"5 steps in a row were not finite, up to step 8\. The last good state is"):
        train(config)
    assert watched.skipped == [4, 5, 6, 7, 8]
    train(good, callback=lambda step, _: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None)
    for name in ("encoder", "ema", "adversary"):
        assert same(saved(config)["learner"][name], saved(good)["learner"][name])
    E4EPipeline.from_pretrained(Path(config.output, "last"))
    # Started again it tries five more, and goes on once the cause is gone
    with pytest.raises(DivergedError, match="up to step 12"):
        train(config)
    watched.bad = set()
    assert train(config).step == 16


def test_trackers(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="`trackers` may hold tensorboard, wandb, got 'mlflow'"):
        train(make_config(trackers=("mlflow",)))
    monkeypatch.setitem(trainer.TRACKERS, "wandb", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"`trackers` holds 'wandb': pip install wandb, or leave it out"):
        train(make_config(trackers=("tensorboard", "wandb")))


def test_mixed_precision(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    full = everything(make_config, pictures, tmp_path, steps=5)
    half = elsewhere(full, tmp_path, "half", mixed_precision="bf16")
    train(full)
    AcceleratorState._reset_state()
    train(half)
    for a, b in zip(read_log(full), read_log(half)):
        assert a["loss"] != b["loss"] and b["loss"] == pytest.approx(a["loss"], rel=0.1)
    encoder = saved(half)["learner"]["encoder"]
    assert all(tensor.dtype != torch.bfloat16 for tensor in encoder.values())
    AcceleratorState._reset_state()
    with pytest.raises(ValueError, match="`mixed_precision` is fp16, which needs a GPU"):
        train(elsewhere(full, tmp_path, "fp16", mixed_precision="fp16"))


def test_a_broken_picture(make_config: MakeConfig, pictures: Path) -> None:
    (pictures / "03.png").write_bytes(b"no picture")
    with pytest.raises(InvalidImageError, match=r"03\.png: .*Replace the file, then resume"):
        train(make_config())


def test_an_encoder_of_other_sizes_is_not_loaded(make_config: MakeConfig) -> None:
    config = make_config(steps=1)
    train(config)
    path = Path(config.output, "config.json")
    sizes = EncoderOptions(32, (8, 8, 8, 8), (1, 1, 1, 1), 4, 4, coarse_end=2, middle_end=4)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder": dataclasses.asdict(sizes)}))
    with pytest.raises((RuntimeError, CheckpointError), match=r"size mismatch|does not fit"):
        train(dataclasses.replace(config, encoder=sizes, steps=2))


def test_nothing_is_left_open(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error too the trackers are closed."""
    closed = []
    monkeypatch.setattr(trainer.Accelerator, "end_training", lambda self: closed.append(self))
    with pytest.raises(RuntimeError, match="power cut"):
        train(make_config(), callback=power_cut)
    assert len(closed) == 1 and "wandb" not in sys.modules


def test_no_compiler(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"`compile` needs a C\+\+ compiler on a CPU.*add --no-compile"):
        train(make_config(compile=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's, when it loads its compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler on this machine")
@pytest.mark.slow
def test_compiled_runs_are_the_same_to_rounding(make_config: MakeConfig, make_gan: MakeGAN, tmp_path: Path) -> None:
    lazy = AdversarialOptions(path_length_every=2, r1_every=2)
    for name, config in (("encoder", make_config()), ("gan", make_gan(adversarial=lazy))):
        plain: Any = elsewhere(config, tmp_path, f"{name}-plain")
        fused: Any = elsewhere(config, tmp_path, f"{name}-fused", compile=True)
        for one in (plain, fused):  # without the checks of shapes, which are not to be compiled
            assert children.run(children.train, one, timeout=600) == 0
        losses = [[line["loss"] for line in read_log(one)] for one in (fused, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
