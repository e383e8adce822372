"""Runs that end too early, and go on."""

import dataclasses
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from stylegan_inversion import E4EPipeline, hub
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.training import checkpoint
from stylegan_inversion.training.checkpoint import read_latest, write_checkpoint
from stylegan_inversion.training.config import LossOptions, OptimizerOptions
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.conftest import MakeConfig
from tests.training.runs import elsewhere, everything, read_log, same_runs, saved


def test_killed_ten_times_and_still_the_same(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    config = everything(make_config, pictures, tmp_path)
    other = elsewhere(config, tmp_path, "killed")
    assert children.run(children.train, config) == 0
    assert len({line["adversarial"] for line in read_log(config)}) == 36
    assert len(saved(config)["learner"]["adversary"]["fake_pool"]) == 5

    log, output = Path(other.output, "log.jsonl"), Path(other.output)
    delays = random.Random(0)
    kills: list[str | int] = ["half written", 4, "written", 9, 12, "half exported", 17, 22, "in place", 27]
    for kill in kills:
        if isinstance(kill, str):
            assert children.run(children.train_and_crash, other, kill) == children.CRASHED
        else:
            child = children.start(children.train, other)
            children.kill_at(child, log, kill, delays.uniform(0, 0.04))
            assert child.exitcode == -signal.SIGKILL
        for path in output.glob("checkpoints/step-*"):  # whole, or not there
            checkpoint.read_checkpoint(path)
    assert children.last_step(log) < 36
    assert children.run(children.train, other) == 0
    same_runs(config, other)
    assert not [path for path in output.rglob(".*") if path.is_file()]
    E4EPipeline.from_pretrained(output / "last")


def test_the_log_survives_a_cut_off_line(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(steps=6, checkpoint_every=2)
    whole = elsewhere(config, tmp_path, "whole")
    train(whole)
    train(dataclasses.replace(config, steps=4))
    log = Path(config.output, "log.jsonl")
    log.write_text(log.read_text() + '{"step": 5, "kind": "train", "loss": 1.0}\n{"step": 6, "ki')
    train(config)
    assert read_log(config) == read_log(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_saves(
    make_config: MakeConfig, pictures: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config = everything(make_config, pictures, tmp_path, steps=9, checkpoint_every=100)
    whole = elsewhere(config, tmp_path, "whole")
    train(whole)
    before = signal.getsignal(number)

    def stop(step: int, terms: dict[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), number)

    result = train(config, callback=stop)
    assert (result.step, result.interrupted) == (5, True) and saved(config)["step"] == 5
    assert signal.getsignal(number) is before
    assert train(config).interrupted is False
    same_runs(config, whole)


def test_a_signal_to_the_whole_group(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    """As `timeout` or a batch system sends it: to the processes that load pictures, too. With Adam and bfloat16."""
    config = everything(
        make_config,
        pictures,
        tmp_path,
        num_workers=2,
        mixed_precision="bf16",
        optimizer=OptimizerOptions("adam", 1e-3, warmup=0.1),
        checkpoint_every=100,
    )
    whole = elsewhere(config, tmp_path, "whole")
    assert children.run(children.train, whole) == 0
    child = children.start(children.train_in_a_group, config)
    log = Path(config.output, "log.jsonl")
    children.wait_for(child, log, 5)
    os.killpg(child.pid, signal.SIGTERM)
    child.join(60)
    assert child.exitcode == 0 and 5 <= saved(config)["step"] < 36
    assert children.run(children.train, config) == 0
    same_runs(config, whole)


def test_a_second_interrupt_stops_at_once(make_config: MakeConfig) -> None:
    def stop(step: int, terms: dict[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    config = make_config()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(config, callback=stop)
    assert signal.getsignal(signal.SIGINT) is before and read_latest(Path(config.output, "checkpoints")) is None


def test_full_disk(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(steps=6, checkpoint_every=2)
    whole = elsewhere(config, tmp_path, "whole")
    train(whole)
    save_file, room = hub.save_file, [3]

    def full(tensors: Any, path: Path, **options: Any) -> None:
        save_file(tensors, path, **options)
        room[0] -= 1
        if room[0] == 0:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "save_file", full)
    with pytest.raises(CheckpointError, match=r"could not be written: .*No space left on device.*make room"):
        train(config)
    assert saved(config)["step"] == 2
    assert train(config).step == 6
    same_runs(config, whole)


def test_another_number_of_processes_is_said(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(steps=2)
    train(config)
    folder = Path(config.output) / "checkpoints"
    state = read_latest(folder)
    assert state is not None and state["processes"] == 1
    write_checkpoint({**state, "processes": 2}, folder, step=state["step"])
    train(dataclasses.replace(config, steps=3))
    assert "The run had 2 processes and now has 1" in caplog.text


def test_the_ways_out_of_a_divergence_are_open(make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(steps=2)
    train(config)
    milder = OptimizerOptions(lr=config.optimizer.lr / 2, max_grad_norm=1.0)
    AcceleratorState._reset_state()
    assert train(dataclasses.replace(config, steps=3, optimizer=milder, mixed_precision="bf16")).step == 3
    for name in ("optimizer.lr=0.0005 instead of 0.001", "max_grad_norm=1.0 instead of None", "mixed_precision='bf16'"):
        assert name in caplog.text


def test_other_pictures_are_another_run(make_config: MakeConfig) -> None:
    config = make_config(steps=2)
    train(config)
    pictures = sorted(Path(str(config.data)).glob("*"))
    pictures[0].rename(pictures[0].with_name("zz.png"))
    with pytest.raises(ValueError, match=r"are not those that the run .* began with.*Put them back"):
        train(dataclasses.replace(config, steps=3))


def test_the_length_of_a_run_with_a_schedule_is_fixed(make_config: MakeConfig, tmp_path: Path) -> None:
    for changes in ({"method": "e4e"}, {"optimizer": OptimizerOptions(lr=1e-3, schedule="cosine")}):
        config = make_config(steps=2, output=str(tmp_path / "-".join(changes)), **changes)
        train(config)
        with pytest.raises(ValueError, match="holds a run with steps=2, and this one has 3"):
            train(dataclasses.replace(config, steps=3))


def test_another_config_in_the_same_folder(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(steps=2)
    train(config)
    for changes, key in (
        ({"seed": 1}, "seed=0, and this one has 1"),
        ({"loss": LossOptions(l2=2.0, lpips=0.0, identity=0.0)}, "loss.l2=None, and this one has 2.0"),
        ({"optimizer": OptimizerOptions(name="adam", lr=1e-3)}, "optimizer.name='ranger', and this one has 'adam'"),
    ):
        with pytest.raises(ValueError, match=f"holds a run with {key}.*Give this one another `output`"):
            train(dataclasses.replace(config, **changes))
    free = dataclasses.replace(
        config, steps=3, log_every=2, image_every=2, validate_every=2, checkpoint_every=2, num_workers=1, cpu=False
    )
    assert train(free).step == 3


def test_a_folder_with_something_else(make_config: MakeConfig, model: Path) -> None:
    before = (model / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds something other than a training run\. Give another `output`"):
        train(make_config(output=str(model)))
    assert (model / "config.json").read_bytes() == before
