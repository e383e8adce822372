"""Several processes that train as one."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stylegan_inversion.training import trainer
from stylegan_inversion.training.config import config_dict
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.conftest import FAST, MakeConfig
from tests.training.runs import elsewhere, everything, read_log, same_runs, saved


@pytest.mark.parametrize("method", ["psp", "e4e"])
def test_two_processes_train_as_one(make_config: MakeConfig, pictures: Path, tmp_path: Path, method: str) -> None:
    extra = {"synthetic_batch_size": 2} if method == "e4e" else {"synthetic_batch_size": 0, "loss": FAST}
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


def test_two_processes_go_on(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    whole = everything(make_config, pictures, tmp_path, steps=6, batch_size=1, checkpoint_every=3)
    part = elsewhere(whole, tmp_path, "part")
    assert children.run(children.train_twofold, whole) == 0
    shutil.copytree(whole.output, part.output)
    max(Path(part.output, "checkpoints").iterdir()).unlink()
    assert saved(part)["step"] == 3
    assert children.run(children.train_twofold, part) == 0
    same_runs(whole, part)


def test_two_processes_by_torchrun(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    """Whether `cpu` is set or not: without it each would train alone on a machine without a GPU."""
    config = make_config(steps=2, batch_size=2, cpu=torch.accelerator.is_available())
    (tmp_path / "run.yaml").write_text(json.dumps(config_dict(config)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "stylegan_inversion", "train", "--config", str(tmp_path / "run.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run(command, env=environment, check=True, timeout=240)
    assert saved(config)["processes"] == 2 and len(read_log(config)) == 2
    one = elsewhere(config, tmp_path, "one", batch_size=4)
    train(one)
    for a, b in zip(read_log(one), read_log(config), strict=True):
        assert b == {key: value if key == "kind" else pytest.approx(value, rel=1e-4) for key, value in a.items()}


def test_processes_that_do_not_find_each_other(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    alone = SimpleNamespace(num_processes=1, device=torch.device("mps"))
    monkeypatch.setattr(trainer, "Accelerator", lambda **options: alone)  # as on a Mac
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were started, but on 'mps' each .* add --cpu"):
        train(config)
    assert not Path(config.output).exists()
