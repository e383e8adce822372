import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_inversion import Direction, PTIPipeline, __version__, cli
from stylegan_inversion.demo import run_demo, sample_photos
from stylegan_inversion.preprocessing.image import load_image


@pytest.fixture
def tiny_model(pti: PTIPipeline, tmp_path: Path) -> str:
    return str(pti.save_pretrained(tmp_path / "model"))


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in cli.COMMANDS)
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
    result = subprocess.run(
        [sys.executable, "-m", "stylegan_inversion", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == __version__


def test_threads_and_memory_are_set_unless_the_user_has() -> None:
    script = "import os; from stylegan_inversion.cli import prepare_process; prepare_process(); print(os.environ)"
    unset = {name: text for name, text in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "THP_"))}
    for chosen, spins, pages in ({}, True, 1), ({"OMP_WAIT_POLICY": "ACTIVE", "THP_MEM_ALLOC_ENABLE": "0"}, False, 0):
        command = [sys.executable, "-c", script]
        out = subprocess.run(command, env=unset | chosen, capture_output=True, text=True, check=True).stdout
        assert ("GOMP_SPINCOUNT" in out) == spins and f"'THP_MEM_ALLOC_ENABLE': '{pages}'" in out


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize("thread", [False, True])
def test_freed_memory_is_kept_unless_the_user_chose(thread: bool) -> None:
    """Memory that is taken again costs no page faults, in any thread."""
    script = (
        "import concurrent.futures, resource; from stylegan_inversion.cli import prepare_process; prepare_process()\n"
        "def faults():\n"
        "    start = bytearray(2**27) and resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    return bytearray(2**27) and resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start\n"
        "pool = concurrent.futures.ThreadPoolExecutor(1)\n"
        f"print(pool.submit(faults).result() if {thread} else faults())"
    )
    unset = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    for chosen, kept in ({}, True), ({"MALLOC_ARENA_MAX": "8"}, False):
        command = [sys.executable, "-c", script]
        out = subprocess.run(command, env=unset | chosen, capture_output=True, text=True, check=True).stdout
        assert (int(out) < 100) == kept, out


def test_invert(tiny_model: str, photo: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo.resize((64, 64)).save(tmp_path / "a.png")
    arguments = ["invert", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", tiny_model, "--no-align"]
    arguments += ["--edit", "smile=2", "age=-1", "--output", str(tmp_path / "out"), "--device", "cpu", "--seed", "1"]
    arguments += ["--preset", "fast", "--perceptual", "alex", "--num-tuning-steps", "2"]
    assert cli.main(arguments) == 1  # b.png does not exist
    out = capsys.readouterr().out
    assert f"{tmp_path / 'a.png'}: {tmp_path / 'out' / 'a'}, mean squared error 0." in out
    assert f"{tmp_path / 'b.png'}: failed: " in out and "1 of 2 photos done." in out
    again = ["redraw", str(tmp_path / "out" / "a" / "photo.png"), str(tmp_path / "a.png"), "--model", tiny_model]
    again += ["--output", str(tmp_path / "again.png")]
    assert cli.main(again) == 0 and "It is the same picture, pixel for pixel." in capsys.readouterr().out
    assert load_image(tmp_path / "again.png").tobytes() == load_image(tmp_path / "out" / "a" / "photo.png").tobytes()
    assert b"compositeWithTrainedAlgorithmicMedia" in (tmp_path / "again.png").read_bytes()
    assert cli.main([*again[:-1], "again"]) == 2  # before the work
    assert "--output must be a .png, .jpg or .webp, got 'again'" in capsys.readouterr().err
    capsys.readouterr()
    assert cli.main([*again, "--max-steps", "99"]) == 2 and "allow them: `max_steps=100`" in capsys.readouterr().err
    assert cli.main([*again[:3], *again[5:]]) == 2  # others do not know the folder
    report = json.loads((tmp_path / "out" / "report.json").read_text())["photos"][0]["report"]
    found = [report[name] for name in ("pivot", "w_steps", "tuning_steps", "perceptual")]
    assert found == ["w", 100, 2, "alex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--perceptual", "alex", "--method", "e4e"], "`perceptual` is for PTI; E4EPipeline optimises nothing"),
        (["--edit", "smle=2"], "There is no direction 'smle'. Did you mean 'smile'\\? Known directions: age, smile"),
        (["--model", "faces46"], "No model 'faces46'.*faces64"),
        (["--method", "e4e"], "holds no Encoder4Editing"),
        (["--device", "gpu"], "`device` must be auto, cuda, mps, cpu or such as cuda:1, got 'gpu'"),
        (["--edit", "smile=nan"], "nan"),
        (["--together"], "--together tunes one generator for several photos: give two or more"),
    ],
)
def test_wrong_arguments(
    tiny_model: str, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["invert", "a.png", "--model", tiny_model, "--output", str(tmp_path / "out")]
    assert cli.main(base + arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["invert", "a.png", "--edit", "smile"], "'smile' is not NAME=STRENGTH, such as smile=2"),
        (["invert", "a.png", "--edit", "=2"], "'=2' is not NAME=STRENGTH"),
        (["invert", "a.png", "--edit", "smile=much"], "'smile=much' is not NAME=STRENGTH"),
        (["invert", "a.png", "--num-w-steps", "0"], "argument --num-w-steps: must be a whole number >= 1, got '0'"),
        (["invert", "a.png", "--seed", "x"], "argument --seed: must be a whole number >= 0, got 'x'"),
        (["evaluate", "data", "--limit-for", "pti=0"], "'pti=0' is not METHOD=N, such as pti=50"),
        (["evaluate-generator", "--data", "x", "--num-samples", "7"], "must be a whole number >= 8, got '7'"),
    ],
)
def test_values_that_cannot_be_read(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_directions(pti: PTIPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["directions"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert sorted(names) == ["age", "gender", "mouth_open", "pitch", "smile", "yaw"]
    up = Direction.from_vector("up", torch.ones(pti.generator.config.w_dim))
    for found, line in (({}, " has no directions: "), ({"up": up}, "up         range unknown\n")):
        pti.directions = dict(found)
        folder = pti.save_pretrained(tmp_path / f"with {len(found)}")
        assert cli.main(["directions", "--model", str(folder)]) == 0 and line in capsys.readouterr().out


def test_demo_writes_a_sheet(tiny_model: str, tmp_path: Path) -> None:
    assert len(sample_photos()) == 6
    records = run_demo(tmp_path / "demo", photos=sample_photos()[:1], model=tiny_model)
    assert records[0].error is None
    assert load_image(tmp_path / "demo" / "sheet.png").width > 5 * 160
    assert b"compositeWithTrainedAlgorithmicMedia" in (tmp_path / "demo" / "sheet.png").read_bytes()
    folder = tmp_path / "demo" / "sample1"
    assert {p.name for p in folder.glob("photo_*.jpg")} == {
        "photo_smile-5.jpg",
        "photo_smile+5.jpg",
        "photo_age-3.jpg",
        "photo_age+3.jpg",
    }


@pytest.fixture
def recipe(tiny_model: str, photo: Image.Image, tmp_path: Path) -> Path:
    faces = tmp_path / "faces"
    faces.mkdir()
    for i in range(3):
        photo.crop((20 * i, 0, 20 * i + 100, 100)).resize((32, 32)).save(faces / f"{i}.png")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {tiny_model}\ndata: {faces}\noutput: {tmp_path / 'run'}\ncpu: true\nnum_workers: 0\nbatch_size: 2\n"
        "encoder: {input_resolution: 32, widths: [8, 8, 8, 8], units: [1, 1, 1, 1], reduction: 4, style_channels: 8}\n"
        "loss: {lpips: 0, identity: 0}\ntrackers: []\nlog_every: 1\n"
    )
    return path


def test_train(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["train", "--config", str(recipe), "--optimizer.lr", "1e-3"]
    assert cli.main([*arguments, "--steps", "2"]) == 0
    assert capsys.readouterr().out == f"2 steps done. Look at last/ in {tmp_path / 'run'}.\n"
    log = tmp_path / "run" / "log.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]
    first = log.read_text()
    other = [*arguments[:-1], "1e-4", "--steps=3", f"--validation-data={tmp_path / 'faces'}"]
    assert cli.main(other) == 2
    assert "holds a run with validation_data=None" in capsys.readouterr().err and "goes on" not in caplog.text
    assert cli.main([*arguments, "--steps=3"]) == 0
    assert log.read_text().startswith(first) and len(log.read_text().splitlines()) == 3
    photo, model = str(tmp_path / "faces" / "0.png"), str(tmp_path / "run" / "last")
    options = ["--method", "psp", "--no-align", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert cli.main(["invert", photo, "--model", model, *options]) == 0


def test_train_interrupted(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from stylegan_inversion.training import trainer

    real = trainer.train

    def interrupted(config: Any, **options: Any) -> Any:
        return real(config, callback=lambda step, _: os.kill(os.getpid(), signal.SIGTERM) if step == 1 else None)

    monkeypatch.setattr(trainer, "train", interrupted)
    assert cli.main(["train", "--config", str(recipe), "--steps=5"]) == 130
    assert capsys.readouterr().out == "Stopped after step 1; the same command goes on from there.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stpes", "3"], "Unrecognized options: --stpes"),
        (["--steps", "many"], "Error parsing --steps: invalid literal"),
        (["--steps", "0"], "`steps` must be a whole number in"),
        (["--task", "cartoon"], "`task` must be one of inversion, "),
        (["--model", "faces46"], "No model 'faces46'"),
        (["--data", "nowhere"], "nowhere is not a folder"),
        (["--config", "none.yaml"], "The config cannot be read: .*none.yaml"),
    ],
)
def test_train_with_wrong_arguments(
    recipe: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert cli.main(["train", "--config", str(recipe), *arguments]) == 2
    except SystemExit as stop:
        assert stop.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error, error
