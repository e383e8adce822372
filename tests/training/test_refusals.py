"""What a run refuses before its first step, and what it says."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_inversion import storage
from stylegan_inversion.errors import CheckpointError, InvalidImageError, MissingDependencyError, ModelNotFoundError
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.training import trainer
from stylegan_inversion.training.config import (
    AugmentOptions,
    DiscriminatorOptions,
    E4EOptions,
    EncoderOptions,
    GeneratorOptions,
    LossOptions,
    OptimizerOptions,
    SFEOptions,
    TaskOptions,
    load_config,
)
from stylegan_inversion.training.data import FaceFolder
from stylegan_inversion.training.tasks import make_task
from stylegan_inversion.training.trainer import train
from tests.training.conftest import (
    SIZES_16,
    MakeConfig,
    MakeGAN,
    MakeGANLearner,
    MakeLearner,
    elsewhere,
    save_model,
    save_pictures,
)


@pytest.fixture
def make(
    make_config: MakeConfig,
    make_gan: MakeGAN,
    make_learner: MakeLearner,
    make_gan_learner: MakeGANLearner,
    pictures: Path,
    model: Path,
    tmp_path: Path,
) -> SimpleNamespace:
    """What the rows below make: configs, learners, a model of each kind, folders."""

    def trained(**overrides: Any) -> str:
        make_learner(**overrides).export(tmp_path / "trained")
        return str(tmp_path / "trained")

    def grown(**overrides: Any) -> Any:
        make_gan_learner(init=str(model), generator=GeneratorOptions()).export(tmp_path / "trained")
        return make_gan_learner(init=str(tmp_path / "trained"), generator=GeneratorOptions(32), **overrides)

    def sources(labels: int = 3, extra: str | None = None, missing: str | None = None) -> str:
        folder = tmp_path / "sources"
        folder.mkdir()
        for path in pictures.iterdir():
            Image.new("L", (16, 16), labels).save(folder / f"{path.stem}.png")
        if extra is not None:
            Image.new("L", (16, 16)).save(folder / extra)
        if missing is not None:
            (folder / missing).unlink()
        return str(folder)

    def pair(task: str = "labels_to_face", sources: str | None = None, targets: Path = pictures) -> Any:
        options = TaskOptions(num_labels=3 if task == "labels_to_face" else None)
        sides = {"input_resolution": 16, "output_resolution": 16}
        return FaceFolder(targets, make_task(task, options), **sides, seed=0, training=False, sources=sources)  # type: ignore[arg-type]

    def arcface(**overrides: Any) -> EncoderOptions:
        sizes: Any = {"in_channels": 3, "widths": (8, 8, 8, 8), "units": (1, 1, 1, 1), "reduction": 4, "resolution": 32}
        storage.save_module(ArcFace(ArcFaceConfig(**sizes | {"embedding_dim": 4} | overrides)), tmp_path / "arcface")
        return dataclasses.replace(SIZES_16, backbone=str(tmp_path / "arcface"))

    def away(*args: Any) -> None:
        raise ConnectionError("the tracker is away")

    def again(config: Any, **changes: Any) -> Any:
        train(config)
        return train(dataclasses.replace(config, **changes))

    return SimpleNamespace(
        config=make_config,
        gan=make_gan,
        learner=make_learner,
        gan_learner=make_gan_learner,
        model=str(model),
        other=lambda **sizes: str(save_model(tmp_path / "other", **sizes)),
        held_out=lambda count: str(save_pictures(tmp_path / "held out", count)),
        **{
            "trained": trained,
            "grown": grown,
            "sources": sources,
            "pair": pair,
            "arcface": arcface,
            "again": again,
            "away": away,
        },
        folder=tmp_path,
    )


NO_IMAGES = LossOptions(0.0, 0.0, 0.0)
Act = Callable[[SimpleNamespace], Any]
REFUSALS: list[tuple[Act, type[Exception], str]] = [
    # values of a config
    (
        lambda m: m.config(method="gan"),
        ValueError,
        "`method` must be one of e4e, psp, restyle, sfe, or gan for a gen",
    ),
    (lambda m: m.config(optimizer=OptimizerOptions("sgd")), ValueError, r"`optimizer\.name` must be one of ranger, ad"),  # type: ignore[arg-type]
    (lambda m: m.config(steps=0), ValueError, r"`steps` must be a whole number in \[1, 1000000000\], got 0"),
    (lambda m: m.config(batch_size=0), ValueError, "are both 0: there is nothing to train on"),
    (lambda m: m.config(data=None), ValueError, "`data` must be a folder of pictures, got none. Add --data FOLDER"),
    (lambda m: m.config(e4e=E4EOptions(0.5, 0.4)), ValueError, "must be at most `e4e.open_until`, got 0.5 and 0.4"),
    (
        lambda m: m.config(optimizer=OptimizerOptions(lr=float("nan"))),
        ValueError,
        r"`optimizer\.lr` must be .* got nan",
    ),
    (lambda m: m.config(optimizer=OptimizerOptions(betas=(0.9, 1.0))), ValueError, r"`optimizer\.betas` must be 2 num"),
    (lambda m: m.config(task_options=TaskOptions((0,))), ValueError, r"`task_options\.factors` must be .*, got \(0,"),
    (lambda m: m.gan(batch_size=0), ValueError, r"`batch_size` must be a whole number in \[1, "),
    (lambda m: m.gan(augment=AugmentOptions(shift=0.6)), ValueError, r"`augment\.shift` must be a number in \[0\.0, 0"),
    # losses and tasks
    (
        lambda m: m.learner(loss=LossOptions(adversarial=0.1)),
        ValueError,
        r"`loss\.adversarial` is 0\.1, but only --met",
    ),
    (
        lambda m: m.learner(loss=LossOptions(features=0.1)),
        ValueError,
        r"`loss\.features` is 0\.1, but only --method sfe",
    ),
    (lambda m: m.learner(loss=LossOptions(w_distance=1.0)), ValueError, r"`loss\.w_distance` is 1, but pictures have"),
    (lambda m: m.learner(loss=NO_IMAGES), ValueError, "`loss` weighs nothing that tells the encoder"),
    (lambda m: m.learner(batch_size=0, synthetic_batch_size=2), ValueError, "`loss` weighs nothing .* l2.* w_distance"),
    (lambda m: m.learner(loss=LossOptions(moco=0.5)), ValueError, r"cannot be used together, got 0\.1 and 0\.5"),
    (lambda m: m.learner(task="colourise"), ValueError, "`task` must be one of inversion, .*toonify, got 'colourise'"),
    (lambda m: m.learner(task_options=TaskOptions((2,))), ValueError, "option of task 'super_resolution', not of 'inv"),
    # what an encoder begins with
    (
        lambda m: m.learner(method="e4e", init=m.model),
        ModelNotFoundError,
        "`init`: .* holds no Encoder4Editing .folder",
    ),
    (lambda m: m.learner(init=m.model), ModelNotFoundError, "`init`: .* holds no GradualStyleEncoder"),
    (lambda m: m.learner(init=m.trained(), model=m.other(resolution=32)), ValueError, "output_resolution=16.* for 32"),
    (lambda m: m.learner(init=m.trained(), model=m.other(w_dim=8)), ValueError, "encoder with w_dim=16, but .* for 8"),
    (lambda m: m.learner(init=m.trained(), task="sketch_to_face"), ValueError, "with in_channels=3, but .* for 1"),
    (
        lambda m: m.learner(init=m.trained(), encoder=dataclasses.replace(SIZES_16, units=(1, 1, 1, 2))),
        ValueError,
        r"with units=\(1, 1, 1, 1\), but `model`, `task` or `encoder` asks for \(1, 1, 1, 2\)",
    ),
    (lambda m: m.learner(task="sketch_to_face", synthetic_batch_size=2), ValueError, "is 2, but `task` sketch_to_face"),
    (
        lambda m: m.learner(task="sketch_to_face", other_cameras=0.5),
        ValueError,
        "`other_cameras` is 0.5, but `task` sketch",
    ),
    (lambda m: m.learner(loss=LossOptions(0.0, 0.0, lpips_crop=1.0)), ValueError, r"does not take pictures of 12 px"),
    (lambda m: m.learner(encoder=m.arcface(widths=(8, 8, 8, 12))), CheckpointError, "does not fit IRSEBackbone"),
    (
        lambda m: train(m.config(method="sfe")),
        ModelNotFoundError,
        "`model`: .* holds no Encoder4Editing .*Train e4e f",
    ),
    (
        lambda m: train(m.config(method="sfe", synthetic_batch_size=2)),
        ValueError,
        "`synthetic_batch_size` is 2, with which --method sfe cannot train: it must be 0",
    ),
    (
        lambda m: train(m.config(method="sfe", sfe=SFEOptions("editor"))),
        ValueError,
        "`sfe.part` is editor, which follows a trained inverter: give its model as `init`",
    ),
    # what a generator begins with
    (lambda m: m.gan_learner(batch_size=6), ValueError, "`batch_size` must be a multiple of the discriminator's group"),
    (
        lambda m: m.gan_learner(validation_data=m.held_out(3)).open_data(held_out=True),
        ValueError,
        "does not take pictures of 16 px: .* or leave out validation_data",
    ),
    (
        lambda m: m.gan_learner(validation_data=m.held_out(1)).open_data(held_out=True),
        ValueError,
        "needs at least 2 pictures in `validation_data`.* got 1",
    ),
    (
        lambda m: m.gan_learner(init=m.model, generator=GeneratorOptions(8)),
        ValueError,
        r"is 8, but `init` brings a gen",
    ),
    (lambda m: m.gan_learner(init="runs"), ModelNotFoundError, "`init`: .* holds no generator .folder 'generator'"),
    (lambda m: m.grown(), ValueError, r"a discriminator of 16 px; the generator draws 32 px.*--discriminator\.new"),
    # pictures
    (lambda m: m.pair(targets=m.folder / "none"), ValueError, "needs a folder of sources"),
    (lambda m: m.pair("inversion", m.sources()), ValueError, "makes its sources from the targets: leave out `sources`"),
    (lambda m: m.pair("inversion", targets=m.folder / "none"), ValueError, "none is not a folder; give a folder of pi"),
    (lambda m: m.pair("inversion", targets=m.folder / "model"), ValueError, "holds no picture .*jpg, .*png"),
    (lambda m: m.pair(sources=m.sources())[2], InvalidImageError, r"02\.png: The label map holds 3.*Replace the file"),
    (lambda m: m.pair(sources=m.sources(extra="00.bmp")), ValueError, "two sources of one name: 00.bmp and 00.png"),
    (lambda m: m.pair(sources=m.sources(missing="04.png")), ValueError, "1 of 10 targets have no source .*: 04.png"),
    # the run and its folder
    (lambda m: train(m.config(trackers=("mlflow",))), ValueError, "may hold tensorboard, wandb, trackio, got 'mlflow'"),
    (lambda m: train(m.config(trackers=("wandb",))), MissingDependencyError, "`trackers` holds 'wandb': pip install w"),
    (lambda m: train(m.config(mixed_precision="fp16")), ValueError, "`mixed_precision` is fp16, which needs a GPU"),
    (lambda m: train(m.config(compile=True)), ValueError, r"`compile` needs a C\+\+ compiler on a CPU.*add --no-comp"),
    (lambda m: train(m.config(output=m.model)), ValueError, "holds something other than a training run. Give another"),
    (lambda m: m.again(m.config(steps=2), seed=1), ValueError, "a run with seed=0, and this one has 1.*Give this one"),
    (
        lambda m: m.again(m.config(steps=2), loss=LossOptions(l2=2.0, lpips=0.0, identity=0.0)),
        ValueError,
        r"holds a run with loss\.l2=None, and this one has 2\.0",
    ),
    (lambda m: m.again(m.config(method="e4e", steps=2), steps=3), ValueError, "with steps=2, and this one has 3"),
    (
        lambda m: m.again(m.config(steps=2, optimizer=OptimizerOptions(schedule="cosine")), steps=3),
        ValueError,
        "with steps=2, and this one has 3",
    ),
    (
        lambda m: m.again(m.config(steps=2), steps=1),
        ValueError,
        "has done 2 steps; `steps` must be at least as many, g",
    ),
    # what ends it
    (lambda m: train(m.config(num_workers=0), callback=m.away), ConnectionError, "^the tracker is away$"),
    (
        lambda m: train(m.config(num_workers=1), callback=m.away),
        ChildProcessError,
        r"killed \(ConnectionError: the tracker is away\), as happens .* Lower `num_workers`",
    ),
    (lambda m: m.again(m.config(steps=2), data=m.held_out(3)), ValueError, "are not those that the run .* Put them b"),
]


@pytest.mark.parametrize(("act", "error", "message"), REFUSALS)
def test_refusals(
    make: SimpleNamespace, act: Act, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trainer.TRACKERS, "wandb", lambda: False)
    monkeypatch.setattr(trainer.shutil, "which", lambda name: None)
    monkeypatch.chdir(make.folder)
    storage.write_config({}, Path("runs"))  # a model without networks
    before = storage.read_config(Path(make.model))
    with pytest.raises(error, match=message):
        act(make)
    assert storage.read_config(Path(make.model)) == before


def test_the_ways_out(make: SimpleNamespace) -> None:
    """The positive control of what the messages above advise."""
    make.gan_learner(batch_size=6, discriminator=DiscriminatorOptions(group_size=3))
    assert make.grown(discriminator=DiscriminatorOptions(new=True)).generator.config.resolution == 32
    assert make.pair(sources=make.sources(labels=2))[2]["x"].argmax(0).eq(2).all()
    make.learner(encoder=make.arcface())
    assert make.again(make.config(steps=2), steps=3).step == 3
    assert train(elsewhere(make.config(steps=2), "another")).step == 2


def test_processes_that_do_not_find_each_other(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(num_processes=1, device=torch.device("mps"))
    monkeypatch.setattr(trainer, "Accelerator", lambda **options: alone)  # as on a Mac
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were started, but on 'mps' each .* add --cpu"):
        train(make_config())


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (b"steps: [1", r"The config cannot be read: .*run\.yaml: "),
        (b"data: \xe9\xff", r"The config cannot be read: .*run\.yaml: "),
        (b"- 1\n- 2", "must hold NAME: VALUE lines"),
        (b"stesp: 3", r"run\.yaml: there is no `stesp`; there are data, .*steps"),
        (b"optimizer: {rate: 3}", r"run\.yaml: there is no `optimizer\.rate`; there are name, lr, "),
        (b"optimizer: adam", r"run\.yaml: `optimizer` must hold NAME: VALUE lines, got 'adam'"),
        (b"compile: yes", r"run\.yaml: `compile` must be true or false, got 'yes'"),
        (None, "The config cannot be read: .*No such file"),
    ],
)
def test_bad_files(tmp_path: Path, yaml: bytes | None, message: str) -> None:
    if yaml is not None:
        (tmp_path / "run.yaml").write_bytes(yaml)
    with pytest.raises(ValueError, match=message):
        load_config(["--config", str(tmp_path / "run.yaml"), "--data", "faces"])


@pytest.mark.parametrize(
    ("yaml", "arguments", "message"),
    [
        ("", ["--stesp", "3"], "Perhaps you meant: --steps INT"),
        ("", ["--e4e.pool", "3"], "--e4e.pool-size"),
        ("steps: many", [], "--steps: invalid literal"),
        ("method: hyperstyle", [], "`method` must be one of e4e, psp, restyle, sfe, or gan for"),
        ("", ["--steps", "0"], "`steps` must be a whole number in"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, yaml: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(yaml)
    with pytest.raises(SystemExit, match="2"):
        load_config(["--config", str(tmp_path / "run.yaml"), "--data", "faces", *arguments])
    said = capsys.readouterr().err.translate(str.maketrans("│─", "  "))
    assert message in " ".join(said.split())
