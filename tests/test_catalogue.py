"""The table of known checkpoints, and the list of the models there are."""

import re
from pathlib import Path

import pytest

from stylegan_inversion import PTIPipeline, catalogue, cli, storage
from stylegan_inversion.catalogue import describe_models, list_models
from stylegan_inversion.checkpoints.find import edits_of, find_folder
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.encoders import ENCODERS
from tests.fake_hub import FakeHub


def test_the_table() -> None:
    entries = catalogue.catalogue()
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names) and {"e4e-ffhq-1024", "psp-ffhq-1024", "stylegan2-ffhq-1024"} <= set(names)
    kinds = {*ENCODERS, "generator", "identity", "moco", "direction", "ganspace", "unread"}
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+", entry.name) and entry.name not in storage.builtin_models()
        assert entry.licence and entry.source and entry.description and entry.kind in kinds
        assert (entry.repository is None) == (entry.file is None) and ".." not in (entry.file or "")
        assert entry.size is None or entry.sha256 is not None
        assert (entry.kind in ("direction", "ganspace")) == (entry.host == "github")  # the MIT ones
        assert entry.host == "hub" or entry.licence == "MIT"
        assert entry.host == "hub" or None not in (entry.repository, entry.revision, entry.sha256)
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert len(entry.description) <= 36  # a row of the table
    assert [entry.name for entry in edits_of("cars-512")] == ["ganspace-cars"]
    assert {entry.edit for entry in edits_of("ffhq-1024")} == {"age", "smile", "pose", "ganspace"}


ENTRY = '{"entries": [{"name": "x", "kind": "", "description": "", "licence": "", "source": "", %s}]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "catalogue.json is damaged: .*Install the package again"),
        (ENTRY % '"code": 1', "catalogue.json is damaged: .*unexpected"),
        ("{}", "catalogue.json is damaged: 'entries'"),
    ],
)
def test_a_damaged_table(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catalogue.json").write_text(text)
    monkeypatch.setattr(storage, "builtin_path", lambda name: tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        catalogue.catalogue.__wrapped__()


def test_list(fake_hub: FakeHub, pti: PTIPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_hub.add("org/mine", pti.save_pretrained(tmp_path / "model"))
    PTIPipeline.from_pretrained("org/mine")
    fake_hub.add("org/other", tmp_path / "model" / "generator")
    find_folder("org/other")  # a network, no pipeline
    cache, entries = tmp_path / "cache", {entry.name: entry for entry in catalogue.catalogue()}
    file = cache / "models--public-data--e4e" / "snapshots" / ("1" * 40) / "e4e_ffhq_encode.pt"
    direction = cache / "files--https" / str(entries["direction-ffhq-age"].sha256) / "age.pt"
    converted = catalogue.converted_folder(entries["psp-ffhq-1024"]) / storage.CONFIG_NAME
    for path in (file, direction, converted):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    asked = len(fake_hub.log)
    models = {model.name: model for model in list_models()}
    assert len(fake_hub.log) == asked and "org/other" not in models
    faces = models["faces64"]
    assert (faces.where, faces.licence) == ("built in", "non-commercial-research") and 5e7 < (faces.size or 0) < 2e8
    assert models["org/mine"].where == "cached" and models["org/mine"].size
    places = {"e4e-ffhq-1024": file, "direction-ffhq-age": direction, "psp-ffhq-1024": converted.parent}
    for name, place in places.items():
        assert (models[name].where, models[name].detail) == ("cached", str(place))
    assert models["e4e-cars-512"].where == models["direction-ffhq-pose"].where == "to fetch"
    assert models["curricularface-ir-101"].where == "to fetch" and models["psp-ffhq-toonify"].where == "by hand"

    fake_hub.add(f"{'o' * 40}/{'m' * 50}", tmp_path / "model")
    PTIPipeline.from_pretrained(f"{'o' * 40}/{'m' * 50}")
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == describe_models().splitlines() and max(map(len, lines)) <= 100
    assert lines[0].split() == ["NAME", "SIZE", "WHERE", "LICENCE", "WHAT"]
    rows = {line.split()[0]: line.split() for line in lines if line[:1].strip()}
    assert rows.keys() == {"NAME", f"{'o' * 40}/{'m' * 50}", *models}
    column = lines[0].index("WHAT")
    assert lines[1][column:] == "faces at 64 px" and lines[2].split() == ["-research"]  # of a long licence
    assert rows["e4e-ffhq-1024"][1:5] == ["1.2", "GB", "cached", "non-commercial"]
    assert "    It draws 1024 x 512 pixels; only square generators are supported." in lines
    assert cli.main(["models", "--cache-dir", str(tmp_path / "empty")]) == 0
    assert "org/mine" not in capsys.readouterr().out


def test_licences_of_cards(tmp_path: Path) -> None:
    assert catalogue.read_licence(tmp_path) == "see its page"
    for text, expected in (
        ("no header", "not stated"),
        ("---\nlicense: mit\n---\n", "mit"),
        ('---\nlicense: "cc-by-4.0"\n---\nlicense: other\n', "cc-by-4.0"),
        ("---\nlicense: other\nlicense_name: mine\n---\n", "mine"),
    ):
        (tmp_path / "README.md").write_text(text)
        assert catalogue.read_licence(tmp_path) == expected
