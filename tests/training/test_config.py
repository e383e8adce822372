import builtins
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from stylegan_inversion.training.methods import load_config
from stylegan_inversion.training.start import loss_weights

from stylegan_inversion.errors import MissingDependencyError
from stylegan_inversion.training.config import (
    E4EOptions,
    EncoderOptions,
    OptimizerOptions,
    TrainConfig,
    config_dict,
)
from stylegan_inversion.training.e4e import progressive_stage
from stylegan_inversion.training.objective import LossWeights
from stylegan_inversion.training.tasks import TASKS, make_task


def test_defaults_are_those_of_psp() -> None:
    config = TrainConfig(data="faces")
    assert (config.method, config.task, config.steps, config.batch_size) == ("psp", "inversion", 500_000, 8)
    assert (config.validate_every, config.checkpoint_every, config.accumulation) == (2500, 5000, 1)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.schedule) == ("ranger", 1e-4, "constant")
    assert (config.optimizer.warmup, config.optimizer.max_grad_norm, config.ema_decay) == (0.0, None, 0.0)
    assert config.perceptual == "alex" and config.mixed_precision == "no"
    sizes = config.encoder
    assert (sizes.input_resolution, sizes.widths, sizes.units) == (256, [64, 128, 256, 512], [3, 4, 14, 3])
    assert (sizes.reduction, sizes.style_channels, sizes.coarse_end, sizes.middle_end) == (16, None, 3, 7)
    assert loss_weights(make_task(config.task), config) == LossWeights(l2=1.0, lpips=0.8, identity=0.1)


def test_defaults_are_those_of_e4e() -> None:
    config = TrainConfig(method="e4e", data="faces")
    options = config.e4e
    assert (options.discriminator_lr, options.r1, options.r1_every, options.pool_size) == (2e-5, 10.0, 16, 50)
    weights = loss_weights(make_task("inversion"), config)
    assert weights == LossWeights(l2=1.0, lpips=0.8, identity=0.1, delta=2e-4, adversarial=0.1)
    shares = {"open_from": options.open_from, "open_until": options.open_until}
    assert progressive_stage(19_999 / 200_000, num_ws=18, **shares) == 0
    assert progressive_stage(20_000 / 200_000, num_ws=18, **shares) == 1


@pytest.mark.parametrize(
    ("task", "weights"),
    [
        (
            "frontalization",
            {"l2": 0.001, "lpips": 0.08, "identity": 1, "w_norm": 0.005, "l2_crop": 0.01, "lpips_crop": 0.8},
        ),
        ("sketch_to_face", {"l2": 1, "lpips": 0.8, "w_norm": 0.005}),
        ("labels_to_face", {"l2": 1, "lpips": 0.8, "w_norm": 0.005}),
        ("super_resolution", {"l2": 1, "lpips": 0.8, "identity": 0.1, "w_norm": 0.005}),
        ("toonify", {"l2": 1, "lpips": 0.8, "identity": 1, "w_norm": 0.025}),
    ],
)
def test_weights_of_the_tasks_are_those_of_the_paper(task: str, weights: dict[str, float]) -> None:
    ours = loss_weights(make_task(task), TrainConfig(data="faces", task=task))
    assert {name: value for name, value in dataclasses.asdict(ours).items() if value} == weights


def test_one_weight_leaves_the_others() -> None:
    config = TrainConfig(method="e4e", data="faces", loss={"identity": 0.5})
    assert loss_weights(make_task("toonify"), config) == LossWeights(
        l2=1.0, lpips=0.8, identity=0.5, w_norm=0.025, delta=2e-4, adversarial=0.1
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": {"lips": 1.0}}, "`loss` has no term 'lips'; the terms are l2, lpips, identity, moco"),
        ({"loss": {"l2": -1.0}}, r"`l2` must be a finite weight >= 0, got -1\.0"),
        ({"loss": {"adversarial": 0.1}}, r"`loss\.adversarial` is 0\.1, but only method=e4e"),
        ({"loss": {"w_distance": 1.0}}, r"`loss\.w_distance` is 1, but pictures have no known w: set `synthetic_batch"),
        ({"teacher": "runs/gan"}, r"`teacher` is 'runs/gan', but `loss\.w_distance` is 0 and `batch_size` 8: both"),
        (
            {"teacher": "t", "loss": {"w_distance": 1.0}, "batch_size": 0, "synthetic_batch_size": 1},
            r"`loss\.w_distance` is 1 and `batch_size` 0",
        ),
        ({"loss": {"l2": 0.0, "lpips": 0.0, "identity": 0.0}}, "`loss` weighs nothing that tells the encoder"),
        ({"batch_size": 0, "synthetic_batch_size": 2}, "`loss` weighs nothing .* it needs l2.* w_distance"),
    ],
)
def test_bad_weights(options: dict[str, Any], message: str) -> None:
    config = TrainConfig(data="faces", **options)
    with pytest.raises(ValueError, match=message):
        loss_weights(make_task("inversion"), config)


def test_yaml_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "method: e4e\ndata: faces\nsteps: 1000\nloss: {identity: 0.5}\noptimizer: {name: adam, lr: 1e-3}\n"
        "encoder:\n  widths: [32, 64, 128, 256]\ntask: labels_to_face\ntask_options: {num_labels: 7}\n"
    )
    config = load_config(
        path, ["steps=2000", "optimizer.lr=2e-4", "loss.lpips=0", "encoder.units=[2,2,2,2]", "init=a/b"]
    )
    assert (config.method, config.steps, config.init) == ("e4e", 2000, "a/b")
    assert config.loss == {"identity": 0.5, "lpips": 0.0}
    assert config.optimizer == OptimizerOptions(name="adam", lr=2e-4)
    assert config.encoder == EncoderOptions(widths=[32, 64, 128, 256], units=[2, 2, 2, 2])
    assert config.task_options == {"num_labels": 7} and config.e4e == E4EOptions()
    assert load_config(None, ["data=faces"]) == TrainConfig(data="faces")
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml", ["data=faces"]) == TrainConfig(data="faces")


@pytest.mark.parametrize(
    ("yaml", "overrides", "message"),
    [
        ("stesp: 3", [], "does not fit at stesp: .*'stesp'"),
        ("optimizer: {learning_rate: 3}", [], r"does not fit at optimizer\.learning_rate"),
        ("", ["e4e.pool=3"], r"does not fit at e4e\.pool"),
        ("", ["steps=many"], "does not fit at steps: Value 'many'"),
        ("", ["loss.l2=much"], r"does not fit at loss\.l2"),
        ("", ["encoder.widths=3"], r"does not fit at encoder\.widths"),
        ("steps: [1", [], "is not YAML"),
        ("- 1\n- 2", [], "must hold NAME: VALUE lines"),
        ("3", [], "cannot be read: Invalid loaded object type"),
        ("", ["steps=[1"], "YAML"),
        ("", ["steps"], "'steps' is not NAME=VALUE, such as steps=1000"),
        ("", ["steps=0"], "`steps` must be >= 1, got 0"),
    ],
)
def test_bad_configs(tmp_path: Path, yaml: str, overrides: list[str], message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml)
    with pytest.raises(ValueError, match=message):
        load_config(path, ["data=faces", *overrides])


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read: .*none\.yaml"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="cannot be read: "):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"data: \xe9\xff")
    with pytest.raises(ValueError, match=r"latin\.yaml is not YAML"):
        load_config(tmp_path / "latin.yaml")


def test_omegaconf_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("omegaconf"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stylegan-inversion\[train\]'"):
        load_config(None, ["data=faces"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "hyperstyle"}, "`method` must be one of psp, e4e, got 'hyperstyle'"),
        ({"optimizer": OptimizerOptions("sgd")}, r"`optimizer\.name` must be one of ranger, adam, got 'sgd'"),
        ({"optimizer": OptimizerOptions(schedule="step")}, r"`optimizer\.schedule` must be one of constant, cosine"),
        ({"mixed_precision": "fp8"}, "`mixed_precision` must be one of no, bf16, fp16, got 'fp8'"),
        *(
            ({name: 0}, f"`{name}` must be >= 1, got 0")
            for name in ("steps", "accumulation", "log_every", "image_every", "validate_every", "checkpoint_every")
        ),
        *(
            ({name: -1}, f"`{name}` must be >= 0, got -1")
            for name in ("batch_size", "synthetic_batch_size", "num_workers", "validation_images", "seed")
        ),
        ({"batch_size": 0}, "are both 0: there is nothing to train on"),
        ({"data": None}, "`data` must be a folder of pictures, got none"),
        ({"ema_decay": 1.0}, r"`ema_decay` must be in \[0, 1\), got 1\.0"),
        (
            {"e4e": E4EOptions(open_from=0.5, open_until=0.4)},
            "must be shares of the run, in this order, got 0.5 and 0.4",
        ),
        ({"e4e": E4EOptions(open_until=1.5)}, "must be shares of the run"),
        ({"optimizer": OptimizerOptions(lr=0)}, r"`optimizer\.lr` must be > 0, got 0"),
        ({"optimizer": OptimizerOptions(lr=float("nan"))}, r"`optimizer\.lr` must be > 0, got nan"),
        ({"optimizer": OptimizerOptions(max_grad_norm=0)}, r"`optimizer\.max_grad_norm` must be > 0, got 0"),
        ({"e4e": E4EOptions(discriminator_lr=-1)}, r"`e4e\.discriminator_lr` must be > 0, got -1"),
        ({"optimizer": OptimizerOptions(warmup=2)}, r"`optimizer\.warmup` must be a share of the run, .* got 2"),
        ({"e4e": E4EOptions(r1_every=0)}, r"`e4e\.r1_every` must be >= 1, .* got 0, 50 and 10"),
        ({"e4e": E4EOptions(pool_size=-1)}, r"`e4e\.pool_size` and `e4e\.r1` >= 0, got 16, -1 and 10"),
        ({"e4e": E4EOptions(r1=-1)}, r"got 16, 50 and -1"),
    ],
)
def test_ranges(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**({"data": "faces"} | values))


def test_config_as_json() -> None:
    config = TrainConfig(data="faces", encoder=EncoderOptions(widths=(8, 8, 8, 8)), task_options={"factors": (1, 2)})  # type: ignore[arg-type]
    assert json.loads(json.dumps(config_dict(config))) == config_dict(config)


@pytest.mark.parametrize("recipe", ["psp", "e4e"])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_recipes_leave_each_task_its_weights(recipe: str, task: str) -> None:
    """What the papers weigh, whatever the recipe."""
    path = Path(__file__).parents[2] / "recipes" / f"{recipe}.yaml"
    config = load_config(path, [f"task={task}", "data=x"])
    expected = {**vars(make_task(task).loss)}
    if recipe == "e4e":
        expected |= {"delta": 2e-4, "adversarial": 0.1}
    assert vars(loss_weights(make_task(task), config)) == expected
    assert config.optimizer.name == "ranger" and config.optimizer.lr == 1e-4 and config.batch_size == 8
