"""Networks of the losses and measures by their names in the catalogue, from the files of their authors' layout."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stylegan_inversion import cli
from stylegan_inversion.catalogue import catalogue
from stylegan_inversion.checkpoints import find
from stylegan_inversion.hub import file_sha256
from stylegan_inversion.models.resnet import ResNet, ResNetConfig
from tests.checkpoints.official_files import draw, official_arcface, prefixed
from tests.fake_hub import hub_client, serve
from tests.training.conftest import save_model


def test_moco_and_curricular_face(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = draw(ResNet(ResNetConfig((4, 8, 12, 16), (1, 1, 1, 1))))
    trunk = {key: value.abs() + 0.5 if key.endswith("running_var") else value for key, value in trunk.items()}
    face = {key: value for key, value in official_arcface().items() if ".res_layer.5." not in key}
    face = {key: v.abs() + 0.5 if key.endswith("running_var") else v for key, v in face.items()}
    affine = ("output_layer.4.weight", "output_layer.4.bias")
    files = {
        "moco-v2-800ep": {"arch": "resnet50", "state_dict": prefixed(trunk, "module.encoder_q.")},
        "curricularface-ir-101": {key: value for key, value in face.items() if key not in affine},
    }
    known, contents = {entry.name: entry for entry in catalogue()}, dict[str, bytes]()
    for name, checkpoint in files.items():
        path = tmp_path / Path(str(known[name].file)).name
        torch.save(checkpoint, path)
        contents[str(known[name].file)] = path.read_bytes()
        known[name] = replace(known[name], size=path.stat().st_size, sha256=file_sha256(path))
    monkeypatch.setattr(find, "catalogue", lambda: tuple(known.values()))
    model = str(save_model(tmp_path / "64", resolution=64))
    with serve() as hub, hub_client(hub, tmp_path / "cache"):
        hub.repositories["AIRI-Institute/StyleFeatureEditor"] = contents
        command = ["train", "--model", model, "--data", str(pictures), "--output", str(tmp_path / "run"), "--cpu"]
        command += ["--encoder.input-resolution", "32", "--encoder.widths", "8", "8", "8", "8", "--encoder.units"]
        command += ["1", "1", "1", "1", "--encoder.reduction", "4", "--num-workers", "0", "--batch-size", "2"]
        command += ["--loss.identity", "0", "--loss.lpips", "0", "--loss.moco", "0.5", "--steps", "1"]
        assert cli.main([*command, "--log-every", "1", "--trackers"]) == 0
        (line,) = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
        assert 0 < line["moco"] < 2 and line["loss"] == pytest.approx(line["l2"] + 0.5 * line["moco"])
        command = ["evaluate", str(pictures), "--model", model, "--methods", "w", "--num-w-steps", "2", "--edits"]
        command += ["--identity", "curricularface-ir-101", "--limit", "2", "--device", "cpu"]
        assert cli.main([*command, "--output", str(tmp_path / "out")]) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| ID (curricularface-ir-101) |" in table
    for row in map(json.loads, (tmp_path / "out" / "records.jsonl").read_text().splitlines()):
        assert row["error"] is None and -1 <= row["identity"] <= 1
