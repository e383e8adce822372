import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.webapp import uploads
from stylegan_inversion.webapp.uploads import rebuild_folder

PARTS = {
    "e4e_encoder": ({"_class_name": "Encoder4Editing"}, {"pyramid.a": 1.0, "w_avg": 0.0}),
    "generator": ({"_class_name": "Generator"}, {"synthesis.const": 2.0, "w_avg": 0.0}),
    "psp_encoder": ({"_class_name": "GradualStyleEncoder"}, {"pyramid.a": 3.0, "w_avg": 0.0}),
    "restyle_encoder": ({"_class_name": "ReStyleEncoder"}, {"backbone.a": 6.0, "w_avg": 0.0}),
    "directions": ({"directions": {"smile": {}, "age": {}}}, {"smile": 4.0, "age": 5.0}),
}
Lose = Callable[[Path], list[Path]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for part, (config, weights) in PARTS.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        save_file({name: torch.tensor(value) for name, value in weights.items()}, folder / part / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "E4EPipeline", "crop_scale": 1.0}))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture
def lose(tmp_path: Path) -> Lose:
    """The files as Gradio keeps them: each in a folder of its own."""

    def flatten(folder: Path) -> list[Path]:
        flat = []
        for k, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
            target = tmp_path / "flat" / f"{k:03d}" / path.name
            target.parent.mkdir(parents=True)
            shutil.copyfile(path, target)
            flat.append(target)
        return flat

    return flatten


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("order", [1, -1])
def test_files_find_their_folders_again(model: Path, lose: Lose, order: int, tmp_path: Path) -> None:
    rebuilt = rebuild_folder(lose(model)[::order], tmp_path / "rebuilt")
    assert contents(rebuilt) == contents(model)


def test_folders_count_where_they_are_there(model: Path, tmp_path: Path) -> None:
    (model / "generator" / "README.md").write_text("another card")
    (model / "index.json").write_text("[]")
    files = sorted((path for path in model.rglob("*") if path.is_file()), key=lambda path: path.read_bytes())
    encoders = [path for path in files if path.parent.name == "psp_encoder"]
    rebuilt = rebuild_folder([*encoders, *(path for path in files if path not in encoders)], tmp_path / "rebuilt")
    (model / "generator" / "README.md").unlink()
    (model / "index.json").unlink()
    assert contents(rebuilt) == contents(model)


def test_what_is_no_model_is_refused_by_name(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [path for path in model.rglob("*") if path.is_file()]
    for name in ("model.pt", "code.py", "model.fp16.safetensors", "LICENSE"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=f"'{name}' does not belong to a model: .* Leave it out"):
            rebuild_folder([*files, tmp_path / name], tmp_path / "rebuilt")
    (tmp_path / "link.json").symlink_to(model / "config.json")
    for name in ("link.json", "absent.json"):
        with pytest.raises(ValueError, match=f"'{name}' is no file"):
            rebuild_folder([*files, tmp_path / name], tmp_path / "rebuilt")
    for count in ([], files * 4):
        with pytest.raises(ValueError, match=rf"A model has 1 to 32 files, got {len(count)}:"):
            rebuild_folder(count, tmp_path / "rebuilt")
    monkeypatch.setattr(uploads, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"A model may have 0\.0 GB, got 0\.0 GB\. Save it in float16"):
        rebuild_folder(files, tmp_path / "rebuilt")
    assert not (tmp_path / "rebuilt").exists()


def test_parts_that_are_missing_or_there_twice(model: Path, lose: Lose, tmp_path: Path) -> None:
    files = lose(model)

    def refused(chosen: list[Path], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            rebuild_folder(chosen, tmp_path / "rebuilt")
        assert not (tmp_path / "rebuilt").exists()

    def config_of(part: str) -> Path:
        wanted = (model / part / "config.json").read_bytes()
        return next(path for path in files if path.read_bytes() == wanted)

    def without(*gone: Path) -> list[Path]:
        return [path for path in files if path not in gone]

    weights = [path for path in files if path.name == "model.safetensors"]  # directions, e4e, generator, psp
    refused(without(config_of("")), r"no config\.json of the pipeline, at its root: upload .* `save_pretrained`")
    refused(without(config_of("generator")), r"no config\.json of its generator")
    refused([*files, config_of("generator")], r"holds two files config\.json of its generator: upload one model")
    refused([*files, config_of("")], r"holds two files config\.json of its root")
    refused(without(weights[2]), r"The model\.safetensors of 'generator' is missing: upload the whole folder")
    refused(without(weights[1]), r"The model\.safetensors of 'psp_encoder' is missing")
    refused(without(config_of("psp_encoder")), r"A model\.safetensors belongs to no config\.json")
    other = tmp_path / "other" / "config.json"
    other.parent.mkdir()
    other.write_text('{"_class_name": "FaceDetector"}')
    refused([*files, other], r"A config\.json describes a 'FaceDetector', which no pipeline has: leave it out")
    other.write_text('{"_class_name": ["Generator"]}')
    refused([*files, other], r"A config\.json describes a \['Generator'\]")


@pytest.mark.parametrize("damage", [b"", b"\xff" * 20, b"\x04\0\0\0\0\0\0\0null", b"\x08\0\0\0\0\0\0\0[[]]    "])
def test_damaged_weights(damage: bytes, model: Path, tmp_path: Path) -> None:
    (model / "generator" / "model.safetensors").write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"A model\.safetensors cannot be read as safetensors"):
        rebuild_folder([path for path in model.rglob("*") if path.is_file()], tmp_path / "rebuilt")


def test_a_damaged_config(model: Path, tmp_path: Path) -> None:
    (model / "generator" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        rebuild_folder([path for path in model.rglob("*") if path.is_file()], tmp_path / "rebuilt")
