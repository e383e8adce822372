import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from stylegan_inversion.checkpoints.papers import edits_of

from stylegan_inversion import PTIPipeline, catalogue, cli, hub
from stylegan_inversion.catalogue import CatalogueEntry, describe_models, fetch, find_entry, list_models
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from tests.fake_hub import FakeHub, hub_client, serve

CONTENT = b"not a pickle, but as large as one" * 1000


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    with serve() as server, hub_client(server, tmp_path / "cache"):
        server.repositories["org/weights"] = {"folder/file.pt": CONTENT}
        yield server


@pytest.fixture
def entry() -> CatalogueEntry:
    return CatalogueEntry(
        name="some-file",
        kind="generator",
        description="",
        licence="",
        source="somewhere",
        repository="org/weights",
        file="folder/file.pt",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


def test_the_table() -> None:
    entries = catalogue.catalogue()
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names) and {"e4e-ffhq-1024", "psp-ffhq-1024", "stylegan2-ffhq-1024"} <= set(names)
    assert {"direction-ffhq-age", "direction-ffhq-smile", "direction-ffhq-pose"} <= set(names)
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+", entry.name) and entry.name not in hub.builtin_models()
        assert entry.licence and entry.source and entry.description and entry.kind
        assert (entry.repository is None) == (entry.file is None)
        assert entry.repository is None or re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repository)
        assert entry.file is None or ".." not in entry.file
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.size is None or entry.sha256 is not None
        assert entry.fetchable == (entry.repository is not None and entry.kind != "unread")
        assert entry.kind in CatalogueEntry.__doc__  # type: ignore[operator]
        assert entry.revision is None or re.fullmatch(r"[0-9a-f]{40}", entry.revision)
        assert (entry.kind in ("direction", "ganspace")) == (entry.host == "github")  # the MIT ones
        assert entry.host == "hub" or entry.licence == "MIT"
        assert len(entry.description) <= 36  # a row of the table
    assert sum(entry.fetchable for entry in entries) == 29 and sum(entry.sha256 is not None for entry in entries) == 12
    assert [entry.name for entry in edits_of("cars-512")] == ["ganspace-cars"]
    assert {entry.edit for entry in entries if entry.domain == "ffhq-1024"} == {
        None,
        "age",
        "smile",
        "pose",
        "ganspace",
    }


def test_find() -> None:
    entry = find_entry("arcface-ir-se50")
    assert entry.size == 175_367_323 and entry.sha256 is not None and entry.sha256.startswith("a035c768")
    with pytest.raises(ModelNotFoundError, match=r"catalogue has no 'e4e-ffhq-102'\. Did you mean 'e4e-ffhq-1024'\?"):
        find_entry("e4e-ffhq-102")
    with pytest.raises(ModelNotFoundError, match=r"catalogue has no 'xyz'\. It has e4e-ffhq-1024, .*ganspace-church\."):
        find_entry("xyz")


def test_a_name_that_begins_others_suggests_them() -> None:
    assert catalogue.suggest("e4e-ffhq") == "Did you mean 'e4e-ffhq-1024'?"
    assert catalogue.suggest("stylegan2-ffhq") == (
        "Did you mean 'stylegan2-ffhq-1024' or 'stylegan2-ffhq-1024-small' or 'stylegan2-ffhq-1024-nvidia'?"
    )
    assert catalogue.suggest("faces") == "Did you mean 'faces64'?"
    assert catalogue.suggest("") is None and catalogue.suggest("my-own-model") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "catalogue.json is damaged: .*Install the package again"),
        ('{"entries": [{"name": "x"}]}', "catalogue.json is damaged: .*missing"),
        ('{"entries": [{"name": "x", "code": 1}]}', "catalogue.json is damaged: .*unexpected"),
        ("{}", "catalogue.json is damaged: 'entries'"),
        (
            '{"entries": [{"name": "x", "kind": "", "description": "", "licence": "", "source": "", "host": "github"}'
            "]}",
            "'x' on GitHub needs a repository, file, revision and sha256",
        ),
    ],
)
def test_a_damaged_table(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catalogue.json").write_text(text)
    monkeypatch.setattr(hub, "builtin_path", lambda name: tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        catalogue.catalogue.__wrapped__()


def test_a_sha256_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: CatalogueEntry) -> None:
    table = {"entries": [dataclasses.asdict(dataclasses.replace(entry, sha256="9d4c6277...c364"))]}
    (tmp_path / "catalogue.json").write_text(json.dumps(table))
    monkeypatch.setattr(hub, "builtin_path", lambda name: tmp_path / name)
    with pytest.raises(CheckpointError, match="the sha256 of 'some-file' is not one"):
        catalogue.catalogue.__wrapped__()


def test_fetch(fake_hub: FakeHub, entry: CatalogueEntry, tmp_path: Path) -> None:
    path = fetch(entry)
    assert path.read_bytes() == CONTENT and (tmp_path / "cache") in path.parents
    assert fetch(entry) == path and fetch(entry, local_files_only=True) == path
    assert fake_hub.gets("folder/file.pt") == 1
    assert fetch(entry, cache_dir=tmp_path / "other").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["same size", "a page", "cut", "hang"])
def test_what_is_not_the_file_is_refused(fake_hub: FakeHub, entry: CatalogueEntry, fault: str, tmp_path: Path) -> None:
    if fault == "same size":
        fake_hub.repositories["org/weights"]["folder/file.pt"] = CONTENT[:-1] + b"!"
    elif fault == "a page":
        fake_hub.repositories["org/weights"]["folder/file.pt"] = b"<html>Quota exceeded</html>"
    else:
        fake_hub.faults["folder/file.pt"] = fault
    error = ModelNotFoundError if fault in ("cut", "hang") else CheckpointError
    message = {"cut": "org/weights", "hang": "did not answer in time"}.get(fault, "is not the file that was asked for")
    with pytest.raises(error, match=message):
        fetch(entry)
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.is_symlink()]
    if error is ModelNotFoundError:  # a file that the Hub has instead stays, for others who use the cache
        assert not [path for path in left if path.suffix in (".pt", ".incomplete") or path.parent.name == "blobs"]
    fake_hub.faults.clear()
    fake_hub.repositories["org/weights"]["folder/file.pt"] = CONTENT
    # the real Hub gives another file another commit, and so another place in the cache
    cache = tmp_path / "other" if error is CheckpointError else None
    assert fetch(entry, cache_dir=cache).read_bytes() == CONTENT


def test_without_a_sha256_the_hubs_own_counts(
    fake_hub: FakeHub, entry: CatalogueEntry, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    loose = dataclasses.replace(entry, sha256=None, size=None)
    assert fetch(loose).read_bytes() == CONTENT
    assert f"against the Hub's own, {entry.sha256}" in caplog.text
    caplog.clear()
    assert fetch(entry).read_bytes() == CONTENT and not caplog.text
    path = fetch(loose, local_files_only=True)
    path.resolve().write_bytes(CONTENT[:-1] + b"!")  # the same size
    with pytest.raises((CheckpointError, ModelNotFoundError)):
        fetch(loose, local_files_only=True)


def test_what_cannot_be_fetched_is_not(fake_hub: FakeHub) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"no copy of it on the Hub is known\. Get it from yuval-alaluf.* holds a StyleGAN3"
    ):
        fetch(find_entry("restyle-e4e-ffhq-1024"))
    with pytest.raises(ModelNotFoundError, match=r"not supported: It draws 1024 x 512 pixels; only square"):
        fetch(find_entry("stylegan2-human-1024"))
    assert not fake_hub.log


def test_list(fake_hub: FakeHub, pti: PTIPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_hub.add("org/mine", pti.save_pretrained(tmp_path / "model"))
    PTIPipeline.from_pretrained("org/mine")
    fake_hub.add("org/other", tmp_path / "model" / "generator")
    hub.find_model("org/other")  # a network, no pipeline
    file = tmp_path / "cache" / "models--public-data--e4e" / "snapshots" / ("1" * 40) / "e4e_ffhq_encode.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    asked = len(fake_hub.log)
    models = {model.name: model for model in list_models()}
    assert len(fake_hub.log) == asked
    assert models["faces64"].where == "built in" and models["faces64"].licence == "non-commercial-research"
    assert models["faces64"].size is not None and 5e7 < models["faces64"].size < 2e8
    assert models["org/mine"].where == "cached" and models["org/mine"].size and "org/other" not in models
    shown = {name: (model.where, model.detail) for name, model in models.items()}
    assert shown["e4e-ffhq-1024"] == ("cached", str(file))
    assert shown["psp-ffhq-1024"] == ("to fetch", "trysem/pixel2style2pixel: psp_ffhq_encode.pt")
    assert shown["curricularface-ir-101"][0] == "not read" and shown["psp-ffhq-toonify"][0] == "by hand"
    converted = catalogue.converted_folder(find_entry("psp-ffhq-1024"))
    converted.mkdir(parents=True)
    (converted / "config.json").touch()
    direction = tmp_path / "cache" / "files--https" / str(find_entry("direction-ffhq-age").sha256) / "age.pt"
    direction.parent.mkdir(parents=True)
    direction.touch()
    shown = {model.name: (model.where, model.detail) for model in list_models()}
    assert shown["psp-ffhq-1024"] == ("cached", str(converted))
    assert shown["direction-ffhq-age"] == ("cached", str(direction)) and shown["direction-ffhq-pose"][0] == "to fetch"

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
    assert {line[column - 1] for line in lines if line[:1].strip() and len(line) > column and "/" not in line} == {" "}
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
