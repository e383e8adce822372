import copy
import dataclasses
import json
import logging
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from stylegan_inversion import E4EPipeline, PSPPipeline, hub
from stylegan_inversion.errors import CheckpointError, DivergedError, InvalidImageError, MissingDependencyError
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.training import checkpoint, run_log
from stylegan_inversion.training.checkpoint import read_latest, write_checkpoint
from stylegan_inversion.training.config import E4EOptions, EncoderOptions, OptimizerOptions, RunConfig, TrainConfig
from stylegan_inversion.training.encoder import EncoderLearner
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.conftest import MakeConfig, save_pictures
from tests.training.test_checkpoint import same

Config = TypeVar("Config", bound=RunConfig)


def read_log(config: RunConfig, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(config.output) / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def saved(config: RunConfig) -> dict[str, Any]:
    state = read_latest(Path(config.output) / "checkpoints")
    assert state is not None
    return state


def same_runs(a: RunConfig, b: RunConfig) -> None:
    """Two runs have ended with the same bits everywhere."""
    one, other = saved(a), saved(b)
    assert one.keys() == other.keys()
    for name, part in one["learner"].items():
        assert same(part, other["learner"][name]), name
    assert same(one, other)
    assert read_log(a) == read_log(b) and read_log(a, "validation") == read_log(b, "validation")
    for model in ("last", "best"):
        files = [path.relative_to(a.output) for path in Path(a.output, model).rglob("*.safetensors")]
        assert Path(a.output, model).exists() == Path(b.output, model).exists()
        assert all(Path(a.output, file).read_bytes() == Path(b.output, file).read_bytes() for file in files)


def elsewhere(config: Config, tmp_path: Path, name: str, **changes: Any) -> Config:
    return dataclasses.replace(config, output=str(tmp_path / name), **changes)


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
        trackers=["tensorboard"],
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


def test_as_many_validation_images_as_wanted(make_config: MakeConfig, pictures: Path) -> None:
    seen: list[int] = []
    config = make_config(validation_data=str(pictures), validation_images=3, batch_size=2, steps=1)
    real = EncoderLearner.evaluate

    def evaluate(self: EncoderLearner, batches: Any, *, score: bool) -> Any:
        kept = list(batches)
        seen.extend(index for batch in kept for index in batch["index"].tolist())
        return real(self, iter(kept), score=score)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncoderLearner, "evaluate", evaluate)
        train(config)
    assert seen == [0, 1, 2]


def everything(make_config: MakeConfig, pictures: Path, tmp_path: Path, **overrides: Any) -> TrainConfig:
    """A run of e4e with all there is: its pools overflow in the first step, its stages open from step 7 to 28."""
    options: dict[str, Any] = {
        "method": "e4e",
        "steps": 36,
        "batch_size": 2,
        "synthetic_batch_size": 1,
        "accumulation": 2,
        "ema_decay": 0.9,
        "loss": {"lpips": 0.0, "identity": 0.0, "w_distance": 0.5},
        "e4e": E4EOptions(open_from=0.2, open_until=0.8, pool_size=5, r1_every=4, discriminator_lr=1e-3),
        "optimizer": OptimizerOptions(lr=1e-3, warmup=0.1, schedule="cosine", max_grad_norm=1.0),
        "validation_data": str(pictures),
        "validate_every": 5,
        "checkpoint_every": 3,
    }
    return make_config(**(options | overrides))


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


def test_killed_in_the_last_moment(make_config: MakeConfig) -> None:
    config = make_config(steps=2)
    assert children.run(children.train_and_crash, config, "half exported") == children.CRASHED
    with pytest.raises(CheckpointError):
        PSPPipeline.from_pretrained(Path(config.output, "last"))
    assert train(config).step == 2
    PSPPipeline.from_pretrained(Path(config.output, "last"))


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


def test_a_folder_that_has_moved(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    config = make_config(steps=4, checkpoint_every=2)
    whole = elsewhere(config, tmp_path, "whole")
    train(whole)
    train(dataclasses.replace(config, steps=2))
    moved = pictures.rename(tmp_path / "moved")
    train(dataclasses.replace(config, data=str(moved)))
    assert same(saved(config)["learner"], saved(whole)["learner"])


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
        ({"loss": {"lpips": 0.0, "identity": 0.0, "l2": 2.0}}, "loss.l2=None, and this one has 2.0"),
        ({"optimizer": OptimizerOptions(name="adam", lr=1e-3)}, "optimizer.name='ranger', and this one has 'adam'"),
    ):
        with pytest.raises(ValueError, match=f"holds a run with {key}.*Give this one another `output`"):
            train(dataclasses.replace(config, **changes))
    free = dataclasses.replace(
        config, steps=3, log_every=2, image_every=2, validate_every=2, checkpoint_every=2, num_workers=1, cpu=False
    )
    assert train(free).step == 3
    sizes = dataclasses.replace(config.encoder, widths=tuple(config.encoder.widths))  # type: ignore[arg-type]
    assert train(dataclasses.replace(free, encoder=sizes, steps=4)).step == 4


def test_a_folder_with_something_else(make_config: MakeConfig, model: Path) -> None:
    before = (model / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds something else than a training run\. Give another `output`"):
        train(make_config(output=str(model)))
    assert (model / "config.json").read_bytes() == before


def test_what_is_not_checkpointed_starts_anew(make_config: MakeConfig) -> None:
    config = make_config(steps=2)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callback=_power_cut)
    assert train(dataclasses.replace(config, seed=1)).step == 2
    assert [line["step"] for line in read_log(config)] == [1, 2]


def _power_cut(step: int, terms: dict[str, float]) -> None:
    raise RuntimeError("power cut")


@pytest.mark.parametrize("method", ["psp", "e4e"])
def test_two_processes_train_as_one(make_config: MakeConfig, pictures: Path, tmp_path: Path, method: str) -> None:
    extra = (
        {"synthetic_batch_size": 2}
        if method == "e4e"
        else {"synthetic_batch_size": 0, "loss": {"lpips": 0, "identity": 0}}
    )
    one = everything(make_config, pictures, tmp_path, method=method, steps=6, batch_size=4, checkpoint_every=3, **extra)
    one = dataclasses.replace(one, trackers=["tensorboard"], validate_every=3)
    two = elsewhere(one, tmp_path, "two", batch_size=2, synthetic_batch_size=one.synthetic_batch_size // 2)
    train(one)
    assert children.run(children.train_twofold, two) == 0
    for kind in ("train", "validation"):
        ours, theirs = read_log(one, kind), read_log(two, kind)
        assert len(ours) == len(theirs) == (6 if kind == "train" else 2)
        for a, b in zip(ours, theirs):
            assert b == {key: value if key == "kind" else pytest.approx(value, rel=1e-4) for key, value in a.items()}
    a, b = saved(one)["learner"], saved(two)["learner"]
    for part in (("encoder",), ("ema",)) + ((("adversary", "network"),) if method == "e4e" else ()):
        x, y = a, b
        for key in part:
            x, y = x[key], y[key]
        for name in x:
            torch.testing.assert_close(y[name], x[name], rtol=1e-4, atol=1e-5)
    if method == "e4e":  # the same codes went into the pools, in the same order
        for pool in ("real_pool", "fake_pool"):
            torch.testing.assert_close(b["adversary"][pool], a["adversary"][pool], rtol=1e-3, atol=1e-4)


def test_two_processes_with_one_picture_to_validate(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    """The second process has none, and must not wait for the first in vain."""
    config = make_config(steps=2, validation_data=str(pictures), validation_images=1, batch_size=2)
    assert children.run(children.train_twofold, config, timeout=60) == 0
    assert len(read_log(config, "validation")) == 1


def test_two_processes_go_on(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    whole = everything(make_config, pictures, tmp_path, steps=6, batch_size=1, checkpoint_every=3)
    part = elsewhere(whole, tmp_path, "part")
    assert children.run(children.train_twofold, whole) == 0
    shutil.copytree(whole.output, part.output)
    max(Path(part.output, "checkpoints").iterdir()).unlink()
    assert saved(part)["step"] == 3
    assert children.run(children.train_twofold, part) == 0
    same_runs(whole, part)


def test_trackers(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="`trackers` may hold tensorboard, wandb, got 'mlflow'"):
        train(make_config(trackers=["mlflow"]))
    monkeypatch.setitem(run_log.TRACKERS, "wandb", lambda: False)
    with pytest.raises(
        MissingDependencyError, match=r"`trackers` holds 'wandb': pip install wandb, or set trackers=\[\]"
    ):
        train(make_config(trackers=["tensorboard", "wandb"]))


def test_mixed_precision(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    full = everything(make_config, pictures, tmp_path, steps=5)
    half = elsewhere(full, tmp_path, "half", mixed_precision="bf16")
    train(full)
    train(half)
    for a, b in zip(read_log(full), read_log(half)):
        assert a["loss"] != b["loss"] and b["loss"] == pytest.approx(a["loss"], rel=0.1)
    encoder = saved(half)["learner"]["encoder"]
    assert all(tensor.dtype != torch.bfloat16 for tensor in encoder.values())
    # And back again in the same process
    train(elsewhere(full, tmp_path, "again"))
    with pytest.raises(ValueError, match="`mixed_precision` is fp16, which needs a GPU"):
        train(elsewhere(full, tmp_path, "fp16", mixed_precision="fp16"))


def test_workers_change_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    alone = make_config(steps=5, accumulation=2)
    helped = elsewhere(alone, tmp_path, "helped", num_workers=2)
    assert children.run(children.train, alone) == children.run(children.train, helped) == 0
    same_runs(alone, helped)


def test_a_broken_picture(make_config: MakeConfig, pictures: Path) -> None:
    (pictures / "03.png").write_bytes(b"no picture")
    with pytest.raises(InvalidImageError, match=r"03\.png: .*Replace the file, then resume"):
        train(make_config())


def test_an_encoder_of_other_sizes_is_not_loaded(make_config: MakeConfig) -> None:
    config = make_config(steps=1)
    train(config)
    path = Path(config.output, "config.json")
    sizes = EncoderOptions(32, [8, 8, 8, 8], [1, 1, 1, 1], 4, 4, coarse_end=2, middle_end=4)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder": dataclasses.asdict(sizes)}))
    with pytest.raises((RuntimeError, CheckpointError), match=r"size mismatch|does not fit"):
        train(dataclasses.replace(config, encoder=sizes, steps=2))


def test_nothing_is_left_open(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error too the trackers are closed."""
    closed = []
    monkeypatch.setattr(run_log.RunLog, "close", lambda self: closed.append(self))
    with pytest.raises(RuntimeError, match="power cut"):
        train(make_config(), callback=_power_cut)
    assert len(closed) == 1 and "wandb" not in sys.modules
