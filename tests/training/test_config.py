"""What a run is told: the command line, a YAML file, and what both refuse."""

import builtins
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from stylegan_inversion.errors import MissingDependencyError
from stylegan_inversion.training.config import (
    AugmentOptions,
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
        "encoder:\n  widths: [32, 64, 128, 256]\ntask: labels_to_face\ntask_options: {num_labels: 7}\ncpu: true\n"
        "trackers: []\ninit: null\n"
    )
    typed = ["--steps=2000", "--optimizer.lr", "2e-4", "--loss.lpips", "0", "--encoder.units", "2", "2", "2", "2"]
    config: Any = load_config(["--config", str(path), *typed, "--output", "010", "--no-cpu"])
    assert (config.method, config.steps, config.init, config.cpu) == ("e4e", 2000, None, False)
    assert (config.data, config.output, config.trackers) == ("010", "010", ())  # as they are typed
    assert config.loss == LossOptions(identity=0.5, lpips=0.0)
    assert config.optimizer == OptimizerOptions(name="adam", lr=2e-4)
    assert config.encoder == EncoderOptions(widths=(32, 64, 128, 256), units=(2, 2, 2, 2))
    assert config.task_options == TaskOptions(num_labels=7) and config.e4e == E4EOptions()
    assert load_config(["--data", "faces"]) == EncoderRunConfig(data="faces")
    (tmp_path / "empty.yaml").write_text("")
    assert load_config([f"--config={tmp_path / 'empty.yaml'}", "--method=gan", "--data=x"]) == GANConfig(data="x")


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
    assert "share of the run in which the learning rate rises from 0" in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("stesp: 3", "has no field 'stesp'. Did you mean 'steps'?"),
        ("optimizer: {learning_rate: 3}", r"has no field 'optimizer\.learning_rate'\. It has name, lr"),
        ("optimizer: 3", "`optimizer` must hold NAME: VALUE lines, got '3'"),
        ("cpu: maybe", "`cpu` must be true or false, got 'maybe'"),
        ("method: hyperstyle", "`method` must be one of psp, e4e, gan, got 'hyperstyle'"),
        ("steps: [1", "is not YAML"),
        ("- 1\n- 2", "must hold NAME: VALUE lines"),
        ("3", "must hold NAME: VALUE lines"),
    ],
)
def test_bad_files(tmp_path: Path, yaml: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=message):
        load_config(["--config", str(tmp_path / "run.yaml"), "--data", "faces"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ValueError, match=r"The config cannot be read: .*"):
            load_config(["--config", str(path)])
    (tmp_path / "latin.yaml").write_bytes(b"data: \xe9\xff")
    with pytest.raises(ValueError, match=r"latin\.yaml is not YAML"):
        load_config(["--config", str(tmp_path / "latin.yaml")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stesp", "3"], "--steps"),  # meant
        (["--e4e.pool", "3"], "--e4e.pool-size"),
        (["--steps", "many"], "--steps: invalid literal"),
        (["steps=3"], "Unrecognized options: steps=3"),
        (["--steps", "0"], "`steps` must be a whole number in"),
        (["--optimizer.name", "sgd"], "Expected one of ('ranger', 'adam')"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        load_config(["--data", "faces", *arguments])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_tyro_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tyro":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stylegan-inversion\[train\]'"):
        load_config(["--data", "faces"])


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (EncoderRunConfig, {"method": "gan"}, "`method` must be one of psp, e4e, got 'gan'"),
        (EncoderRunConfig, {"optimizer": OptimizerOptions("sgd")}, r"`optimizer\.name` must be one of ranger, adam, g"),
        (EncoderRunConfig, {"mixed_precision": "fp8"}, "`mixed_precision` must be one of no, bf16, fp16, got 'fp8'"),
        (EncoderRunConfig, {"steps": 0}, r"`steps` must be a whole number in \[1, 1000000000\], got 0"),
        (EncoderRunConfig, {"seed": -1}, r"`seed` must be a whole number in \[0, .*, got -1"),
        (EncoderRunConfig, {"batch_size": 0}, "are both 0: there is nothing to train on"),
        (EncoderRunConfig, {"data": None}, "`data` must be a folder of pictures, got none. Add --data FOLDER"),
        (EncoderRunConfig, {"ema_decay": 1.0}, r"`ema_decay` must be a number in \[0\.0, 0\.9+\], got 1\.0"),
        (EncoderRunConfig, {"e4e": E4EOptions(0.5, 0.4)}, "must be at most `e4e.open_until`, got 0.5 and 0.4"),
        (EncoderRunConfig, {"e4e": E4EOptions(r1_every=0)}, r"`e4e\.r1_every` must be a whole number in \[1, .* got 0"),
        (EncoderRunConfig, {"optimizer": OptimizerOptions(lr=float("nan"))}, r"`optimizer\.lr` must be .*, got nan"),
        (EncoderRunConfig, {"optimizer": OptimizerOptions(betas=(0.9, 1.0))}, r"`optimizer\.betas` must be 2 numbers"),
        (EncoderRunConfig, {"loss": LossOptions(l2=-1.0)}, r"`loss\.l2` must be a number in \[0\.0, .*, got -1\.0"),
        (
            EncoderRunConfig,
            {"task_options": TaskOptions(factors=(0,))},
            r"`task_options\.factors` must be .*, got \(0,",
        ),
        (GANConfig, {"batch_size": 0}, r"`batch_size` must be a whole number in \[1, "),
        (
            GANConfig,
            {"augment": AugmentOptions(shift=0.6)},
            r"`augment\.shift` must be a number in \[0\.0, 0\.5\], got",
        ),
    ],
)
def test_ranges(cls: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**({"data": "faces"} | values))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": LossOptions(adversarial=0.1)}, r"`loss\.adversarial` is 0\.1, but only --method e4e"),
        ({"loss": LossOptions(w_distance=1.0)}, r"`loss\.w_distance` is 1, but pictures have no known w: set `synth"),
        ({"loss": LossOptions(0.0, 0.0, 0.0)}, "`loss` weighs nothing that tells the encoder"),
        ({"batch_size": 0, "synthetic_batch_size": 2}, "`loss` weighs nothing .* it needs l2.* w_distance"),
        ({"loss": LossOptions(moco=0.5)}, r"cannot be used together, got 0\.1 and 0\.5"),
        ({"loss": LossOptions(moco=0.5, identity=0.0)}, r"`loss\.moco` is 0\.5, but there is no network for it"),
        ({"moco": "moco"}, r"`moco` is 'moco', but `loss\.moco` is 0: weigh it, such as --loss\.moco 0\.5"),
    ],
)
def test_bad_weights(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_weights(make_task("inversion"), EncoderRunConfig(data="faces", **options))


@pytest.mark.parametrize("recipe", ["psp", "e4e"])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_recipes_leave_each_task_the_weights_of_the_paper(recipe: str, task: str) -> None:
    path = Path(__file__).parents[2] / "recipes" / f"{recipe}.yaml"
    config: Any = load_config(["--config", str(path), "--task", task, "--data", "x"])
    expected = make_task(task).loss | ({"delta": 2e-4, "adversarial": 0.1} if recipe == "e4e" else {})
    assert loss_weights(make_task(task), config) == expected
    assert config.optimizer.name == "ranger" and config.optimizer.lr == 1e-4 and config.batch_size == 8
