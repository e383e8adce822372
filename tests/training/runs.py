"""Runs of the trainer, and what they leave."""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from stylegan_inversion.training.checkpoint import read_latest
from stylegan_inversion.training.config import E4EOptions, EncoderRunConfig, LossOptions, OptimizerOptions, RunConfig
from tests.training.conftest import MakeConfig
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


def everything(make_config: MakeConfig, pictures: Path, tmp_path: Path, **overrides: Any) -> EncoderRunConfig:
    """A run of e4e with all there is: its pools overflow in the first step, its stages open from step 7 to 28."""
    options: dict[str, Any] = {
        "method": "e4e",
        "steps": 36,
        "batch_size": 2,
        "synthetic_batch_size": 1,
        "accumulation": 2,
        "ema_decay": 0.9,
        "loss": LossOptions(lpips=0.0, identity=0.0, w_distance=0.5),
        "e4e": E4EOptions(open_from=0.2, open_until=0.8, pool_size=5, r1_every=4, discriminator_lr=1e-3),
        "optimizer": OptimizerOptions(lr=1e-3, warmup=0.1, schedule="cosine", max_grad_norm=1.0),
        "validation_data": str(pictures),
        "validate_every": 5,
        "checkpoint_every": 3,
    }
    return make_config(**(options | overrides))


def power_cut(step: int, terms: dict[str, float]) -> None:
    raise RuntimeError("power cut")
