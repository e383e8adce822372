"""Several processes that train as one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylegan_inversion.training.config import AdaptiveOptions, AdversarialOptions, GeneratorOptions, config_dict
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.conftest import EVERYTHING, MakeConfig, MakeGAN, alike, elsewhere, same_runs, saved


def test_an_encoder_in_two_processes(make_config: MakeConfig, pictures: Path) -> None:
    options = {"steps": 6, "batch_size": 4, "trackers": ["tensorboard"], "validate_every": 3}
    one = make_config(**EVERYTHING | options | {"synthetic_batch_size": 2}, validation_data=str(pictures))
    two = elsewhere(one, "two", batch_size=2, synthetic_batch_size=1)
    train(one)
    assert children.run(children.train_twofold, two) == 0
    alike(one, two, ("encoder", "ema"))
    a, b = saved(one)["learner"]["adversary"], saved(two)["learner"]["adversary"]
    for name, weight in a["network"].items():
        torch.testing.assert_close(b["network"][name], weight, rtol=1e-4, atol=1e-5)
    for pool in ("real_pool", "fake_pool"):  # the same codes went in, in the same order
        torch.testing.assert_close(b[pool], a[pool], rtol=1e-3, atol=1e-4)


def test_a_generator_in_two_processes(make_gan: MakeGAN, model: Path) -> None:
    """The groups of the minibatch standard deviation are those of a micro-batch: what is compared are two of them."""
    one = make_gan(
        init=str(model),
        generator=GeneratorOptions(),
        steps=5,
        accumulation=2,
        adversarial=AdversarialOptions(r1_every=2, path_length_every=2),
        ada=AdaptiveOptions(p=0.5, kimg=1.0),
    )
    two = elsewhere(one, "two", accumulation=1)
    train(one)
    assert children.run(children.train_twofold, two) == 0
    alike(one, two, ("generator", "average", "discriminator"))
    a, b = saved(one)["learner"], saved(two)["learner"]
    assert b["ada"] == a["ada"] and a["ada"]["images"] == 40
    torch.testing.assert_close(b["mean_length"], a["mean_length"], rtol=1e-4, atol=0)


def test_two_processes_go_on(make_config: MakeConfig) -> None:
    whole = make_config(**EVERYTHING | {"steps": 6, "batch_size": 1})
    part = elsewhere(whole, "part")
    assert children.run(children.train_twofold, whole) == 0
    shutil.copytree(whole.output, part.output)
    max(Path(part.output, "checkpoints").iterdir()).unlink()
    assert saved(part)["step"] == 3
    assert children.run(children.train_twofold, part) == 0
    same_runs(whole, part)


@pytest.mark.slow
def test_two_processes_by_torchrun(make_config: MakeConfig, tmp_path: Path) -> None:
    """Whether `cpu` is set or not: without it each would train alone on a machine without a GPU."""
    config = make_config(steps=2, batch_size=2, cpu=torch.accelerator.is_available())
    (tmp_path / "run.yaml").write_text(json.dumps(config_dict(config)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "stylegan_inversion", "train", "--config", str(tmp_path / "run.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run(command, env=environment, check=True, timeout=240)
    assert saved(config)["processes"] == 2
    one = elsewhere(config, "one", batch_size=4)
    train(one)
    alike(one, config, ())
