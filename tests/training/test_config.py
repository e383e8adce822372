"""What a run is told: the command line and a YAML file."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from stylegan_inversion.training.config import (
    E4EOptions,
    EncoderOptions,
    EncoderRunConfig,
    GANConfig,
    LossOptions,
    OptimizerOptions,
    RunConfig,
    TaskOptions,
    config_dict,
    load_config,
)
from stylegan_inversion.training.objective import loss_weights
from stylegan_inversion.training.tasks import TASKS, make_task


def test_yaml_and_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "method: e4e\ndata: 010\nsteps: 1000\nloss: {identity: 0.5}\noptimizer: {name: adam, lr: 1e-3}\n"
        "encoder:\n  widths: [32, 64, 128, 256]\ntask: labels_to_face\ntask_options: {num_labels: 7}\ncpu: True\n"
        "trackers: []\ninit: null\nmodel: -run\n"
    )
    typed = ["--steps=2000", "--optimizer.lr", "2e-4", "--loss.lpips", "0", "--encoder.units", "2", "2", "2", "2"]
    config: Any = load_config(["--config", str(path), *typed, "--output", "010", "--no-cpu"])
    assert (config.method, config.steps, config.init, config.cpu) == ("e4e", 2000, None, False)
    assert (config.data, config.output, config.model) == ("010", "010", "-run")  # as they are typed
    assert config.trackers == ()
    assert config.loss == LossOptions(identity=0.5, lpips=0.0)
    assert config.optimizer == OptimizerOptions(name="adam", lr=2e-4)
    assert config.encoder == EncoderOptions(widths=(32, 64, 128, 256), units=(2, 2, 2, 2))
    assert config.task_options == TaskOptions(num_labels=7) and config.e4e == E4EOptions()
    assert load_config(["--data", "faces"]) == EncoderRunConfig(data="faces")
    path.write_text("ada: {target: -0.5}")
    config = load_config([f"--config={path}", "--method=gan", "--data=x"])
    assert config == GANConfig(data="x", ada=dataclasses.replace(config.ada, target=-0.5))


@pytest.mark.parametrize("config", [EncoderRunConfig(data="x", cpu=True, trackers=()), GANConfig(data="x")])
def test_the_json_of_a_run_reads_back(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_dict(config)))
    assert load_config(["--config", str(tmp_path / "config.json")]) == config


@pytest.mark.parametrize(("method", "config"), [("e4e", EncoderRunConfig), ("gan", GANConfig)])
def test_help_lists_every_field(method: str, config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        load_config(["--method", method, "--help"])
    text = capsys.readouterr().out

    def check(cls: Any, prefix: str) -> None:
        for field in dataclasses.fields(cls):
            if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
                check(field.type, f"{prefix}{field.name}.")
            else:
                assert f"--{prefix}{field.name}".replace("_", "-") in text

    check(config, "")
    words = " ".join(text.replace("│", " ").split())
    assert "share of the run in which the learning rate rises from 0" in words
    assert not re.search(r"--\S+ \S+ \(default:", words)  # each option says what it is


@pytest.mark.parametrize("recipe", ["psp", "e4e"])
def test_the_recipes_leave_each_task_the_weights_of_the_paper(recipe: str) -> None:
    path = Path(__file__).parents[2] / "recipes" / f"{recipe}.yaml"
    for task in TASKS:
        config: Any = load_config(["--config", str(path), "--task", task, "--data", "x"])
        expected = make_task(task).loss | ({"delta": 2e-4, "adversarial": 0.1} if recipe == "e4e" else {})
        assert loss_weights(make_task(task), config) == expected
        assert config.optimizer.name == "ranger" and config.optimizer.lr == 1e-4 and config.batch_size == 8
