"""Runs that end too early, and go on."""

import dataclasses
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from stylegan_inversion import E4EPipeline, PTIPipeline, storage
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.training import checkpoint, gan
from stylegan_inversion.training.checkpoint import read_latest, write_checkpoint
from stylegan_inversion.training.config import (
    AdaptiveOptions,
    AdversarialOptions,
    GeneratorOptions,
    OptimizerOptions,
    RunConfig,
)
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.conftest import EVERYTHING, MakeConfig, MakeGAN, elsewhere, read_log, same_runs, saved
from tests.training.test_gan import Colours


def kill_and_go_on(config: RunConfig, other: RunConfig, kills: list[str | int]) -> None:
    """Train `other` through crashes at places of a checkpoint and kills at steps: it ends as `config` does."""
    assert children.run(children.train, config) == 0
    log, output, delays = Path(other.output, "log.jsonl"), Path(other.output), random.Random(0)
    for kill in kills:
        if isinstance(kill, str):
            assert children.run(children.train_and_crash, other, kill) == children.CRASHED
        else:
            child = children.start(children.train, other)
            children.kill_at(child, log, kill, delays.uniform(0, 0.04))
            assert child.exitcode == -signal.SIGKILL
        for path in output.glob("checkpoints/step-*"):  # whole, or not there
            checkpoint.read_checkpoint(path)
    assert children.last_step(log) < config.steps
    assert children.run(children.train, other) == 0
    same_runs(config, other)
    assert not [path for path in output.rglob(".*") if path.is_file()]


def test_an_encoder_killed_six_times_is_the_same(make_config: MakeConfig, pictures: Path) -> None:
    config = make_config(**EVERYTHING | {"steps": 24}, validation_data=str(pictures))
    other = elsewhere(config, "killed")
    kill_and_go_on(config, other, ["half written", 4, "half exported", 12, "in place", 20])
    assert len({line["adversarial"] for line in read_log(config)}) == 24
    assert len(saved(config)["learner"]["adversary"]["fake_pool"]) == 5
    E4EPipeline.from_pretrained(Path(other.output, "last"))


def test_a_generator_killed_three_times_is_the_same(make_gan: MakeGAN, model: Path) -> None:
    config = make_gan(
        init=str(model),
        generator=GeneratorOptions(),
        steps=6,
        checkpoint_every=2,
        adversarial=AdversarialOptions(r1_every=3, path_length_every=2),
        ada=AdaptiveOptions(p=0.3, kimg=1.0),
        optimizer=OptimizerOptions("adam", 2e-3, 0.2, "cosine", betas=(0.0, 0.99), max_grad_norm=5.0),
    )
    other = elsewhere(config, "killed")
    kill_and_go_on(config, other, ["half written", 3, "half exported"])
    state = saved(config)["learner"]
    assert state["ada"]["images"] == 24 and float(state["mean_length"]) > 0
    PTIPipeline.from_pretrained(Path(other.output, "last"))


def test_a_generator_interrupted_with_validation(
    make_gan: MakeGAN, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gan, "load_perceptual", lambda *args, **options: Colours())  # a distance that takes no time
    whole = make_gan(steps=3, validation_data=str(pictures), validate_every=2, image_every=1)
    part = elsewhere(whole, "part")
    result = train(whole)
    scores = read_log(whole, "validation")
    assert [line["step"] for line in scores] == [2, 3] and result.best == min(line["loss"] for line in scores)
    assert scores[0]["fd (colours)"] == scores[0]["loss"] and Path(whole.output, "images/step-00000001.png").exists()
    for step in (1, 2):
        assert train(part, callback=lambda *_: signal.raise_signal(signal.SIGINT)).step == step
    train(part)
    same_runs(whole, part)


def test_a_signal_ends_the_step_and_saves(make_config: MakeConfig, pictures: Path) -> None:
    config = make_config(**EVERYTHING | {"steps": 9, "checkpoint_every": 100}, validation_data=str(pictures))
    whole = elsewhere(config, "whole")
    train(whole)
    before = signal.getsignal(signal.SIGTERM)
    result = train(config, callback=lambda step, _: signal.raise_signal(signal.SIGTERM) if step == 5 else None)
    assert (result.step, result.interrupted) == (5, True) and saved(config)["step"] == 5
    assert signal.getsignal(signal.SIGTERM) is before
    assert train(config).interrupted is False
    same_runs(config, whole)


def test_a_signal_to_the_whole_group(make_config: MakeConfig) -> None:
    """As `timeout` or a batch system sends it: to the processes that load pictures, too. With Adam and bfloat16."""
    adam = OptimizerOptions("adam", 1e-3, warmup=0.1)
    options = {"num_workers": 2, "mixed_precision": "bf16", "optimizer": adam, "checkpoint_every": 100}
    config = make_config(**EVERYTHING | options)
    whole = elsewhere(config, "whole")
    assert children.run(children.train, whole) == 0
    child = children.start(children.train, config)
    children.wait_for(child, Path(config.output, "log.jsonl"), 5)
    os.killpg(child.pid, signal.SIGTERM)
    child.join(60)
    assert child.exitcode == 0 and 5 <= saved(config)["step"] < 36
    assert children.run(children.train, config) == 0
    same_runs(config, whole)


def test_a_second_interrupt_stops_at_once(make_config: MakeConfig) -> None:
    def stop(step: int, terms: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    config = make_config()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(config, callback=stop)
    assert signal.getsignal(signal.SIGINT) is before and read_latest(Path(config.output, "checkpoints")) is None


def test_a_full_disk_and_a_cut_off_log(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(steps=6, checkpoint_every=2)
    whole = elsewhere(config, "whole")
    train(whole)
    save_file, room = storage.save_file, [3]

    def full(tensors: Any, path: Path, **options: Any) -> None:
        save_file(tensors, path, **options)
        room[0] -= 1
        if room[0] == 0:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(CheckpointError, match=r"could not be written: .*No space left on device.*make room"):
        train(config)
    assert saved(config)["step"] == 2
    with Path(config.output, "log.jsonl").open("a") as log:
        log.write('{"step": 5, "kind": "train", "loss": 1.0}\n{"step": 6, "ki')
    assert train(config).step == 6
    same_runs(config, whole)


def test_what_may_change_is_said(make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    """The ways out of a divergence are open, and other processes may go on."""
    config = make_config(steps=2)
    train(config)
    state, folder = saved(config), Path(config.output, "checkpoints")
    write_checkpoint({**state, "processes": 2}, folder, step=state["step"])
    milder = OptimizerOptions(lr=config.optimizer.lr / 2, max_grad_norm=1.0)
    AcceleratorState._reset_state()
    quieter = {"log_every": 2, "image_every": 2, "validate_every": 2, "checkpoint_every": 2, "num_workers": 1}
    changed = dataclasses.replace(config, steps=3, optimizer=milder, mixed_precision="bf16", cpu=False, **quieter)
    assert train(changed).step == 3
    for said in (
        "optimizer.lr=0.0005 instead of 0.001",
        "max_grad_norm=1.0 instead of None",
        "mixed_precision='bf16'",
        "The run had 2 processes and now has 1",
    ):
        assert said in caplog.text
