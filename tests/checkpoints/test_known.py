"""Names of the catalogue, wherever a model is named. The files are small ones of ours in the official layouts."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout

from stylegan_inversion import E4EPipeline, InversionOutput, PTIPipeline, cli, hub
from stylegan_inversion import catalogue as catalogue_module
from stylegan_inversion.catalogue import CatalogueEntry, catalogue
from stylegan_inversion.checkpoints import known, papers
from stylegan_inversion.checkpoints.export import checkpoint_to_rosinality, write_official
from stylegan_inversion.checkpoints.known import find_known_model, is_known, known_entry
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.evaluation.generators import find_generators
from stylegan_inversion.hub import builtin_path
from stylegan_inversion.losses.identity import load_identity
from stylegan_inversion.pipelines import official
from stylegan_inversion.remote import integrity
from stylegan_inversion.remote.integrity import file_sha256, storage_folder
from stylegan_inversion.training.config import load_config
from stylegan_inversion.training.encoder import make_encoder
from stylegan_inversion.training.tasks import make_task
from tests.checkpoints.official_files import generator
from tests.checkpoints.test_encoder import official_arcface


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("field")
    torch.save(official_arcface(), folder / "arcface.pth")
    torch.save(torch.eye(1, 512), folder / "age.pt")
    files = {
        layout: write_official(builtin_path("faces64"), folder / f"{layout}.pt", layout=layout)
        for layout in ("e4e", "psp")
    }
    return files | {"identity": folder / "arcface.pth", "direction": folder / "age.pt"}


@pytest.fixture
def fetched(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A catalogue of test-e4e, test-psp, test-identity and test-direction; what was fetched, with its arguments."""
    log: list[dict[str, Any]] = []

    def fetch(entry: CatalogueEntry, **options: Any) -> Path:
        if entry.kind == "unread":
            return catalogue_module.fetch(entry, **options)
        log.append({"name": entry.name, **options})
        where = storage_folder(str(entry.repository), options.get("cache_dir")) / "snapshots" / "1" / str(entry.file)
        where.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(files[entry.kind], where))

    entries = tuple(
        CatalogueEntry(
            *(f"test-{kind}", kind, f"a test of {kind}", "", "", "hub", "org/repo", path.name),
            sha256=file_sha256(path),
        )
        for kind, path in files.items()
    )
    unread = CatalogueEntry("test-unread", "unread", "", "", "", note="An IR network.")
    entries += (CatalogueEntry("e4e-ffhq-1024", "e4e", "", "", ""),)
    for module in (known, catalogue_module, papers):
        monkeypatch.setattr(module, "catalogue", lambda: (*entries, unread))
    monkeypatch.setattr(known, "fetch", fetch)
    monkeypatch.setattr(official, "fetch", fetch)
    for module in (catalogue_module, integrity):
        monkeypatch.setattr(module, "cache_root", lambda cache_dir=None: Path(cache_dir or tmp_path / "cache"))
    return log


def test_converted_once(fetched: list[dict[str, Any]], tmp_path: Path) -> None:
    assert is_known("test-e4e") and not is_known("e4e") and known_entry("e4e") is None
    folder = find_known_model("test-e4e", cache_dir=tmp_path / "other")
    assert folder is not None and folder.parent.parent == tmp_path / "other"
    stamp = (folder / hub.CONFIG_NAME).stat().st_mtime_ns
    assert find_known_model("test-e4e", cache_dir=tmp_path / "other") == folder
    assert (folder / hub.CONFIG_NAME).stat().st_mtime_ns == stamp
    assert [path.name for path in folder.parent.iterdir()] == [folder.name] and len(fetched) == 1


def test_not_kept_twice(fetched: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    folder = find_known_model("test-e4e")
    assert folder is not None and not list(cache.rglob("e4e.pt"))  # the checkpoint is not beside its conversion
    assert find_known_model("test-e4e", local_files_only=True) == folder and len(fetched) == 1
    stamp = (folder / hub.CONFIG_NAME).stat().st_mtime_ns
    assert find_known_model("test-e4e", force_download=True) == folder and len(fetched) == 2
    assert (folder / hub.CONFIG_NAME).stat().st_mtime_ns != stamp and len(list(folder.parent.iterdir())) == 1
    monkeypatch.setattr(catalogue_module, "CONVERTED", 99)  # another format of ours
    other = find_known_model("test-e4e")
    assert other not in (None, folder) and len(fetched) == 3
    official.find_file("test-psp")  # fetched for its own sake, as by `from_single_file`: it stays
    find_known_model("test-psp")
    assert len(list(cache.rglob("psp.pt"))) == 1


def test_what_another_revision_uses_is_kept(
    fetched: list[dict[str, Any]], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = storage_folder("org/repo")
    (storage / "blobs").mkdir(parents=True)
    blob = Path(shutil.copy(files["e4e"], storage / "blobs" / "0"))

    def link(revision: str, name: str) -> Path:
        path = storage / "snapshots" / revision / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(blob)
        return path

    monkeypatch.setattr(known, "cached_file", lambda entry, cache_dir: None)  # of the revision of the entry
    monkeypatch.setattr(known, "fetch", lambda entry, **_: link("1", "e4e.pt"))
    other = link("2", "renamed/other.pt")
    find_known_model("test-e4e")
    assert other.is_file()
    other.unlink()
    find_known_model("test-e4e", force_download=True)
    assert not blob.exists() and not list(storage.rglob("*.pt"))  # nobody else used it


def test_a_fault_is_not_hidden(fetched: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    read = known.read_single_file
    monkeypatch.setattr(known, "read_single_file", lambda path, **_: read(path.with_name("gone"), **_))
    for _ in range(2):  # what the first left behind holds up nobody
        with pytest.raises(CheckpointError, match="gone"):
            find_known_model("test-psp")


_ONE_OF_SEVERAL = """
import shutil, sys, time
from pathlib import Path
from stylegan_inversion import catalogue, hub
from stylegan_inversion.catalogue import CatalogueEntry
from stylegan_inversion.checkpoints import known, papers
from stylegan_inversion.models.generator import Generator, GeneratorConfig

file, cache = map(Path, sys.argv[1:])

def fetch(entry, **options):
    with (cache / "log").open("a") as log:
        log.write("fetched\\n")
    return Path(shutil.copy(file, cache / "models" / "x.pt"))

def write(file, folder):
    made = write_model(file, folder)
    time.sleep(1)  # the others come meanwhile
    return made

write_model, known.write_model, known.fetch = known.write_model, write, fetch
known.catalogue = catalogue.catalogue = papers.catalogue = lambda: (CatalogueEntry("test", "generator", "", "", ""),)
known.cached_file = lambda entry, cache_dir: None
folder = known.find_known_model("test", cache_dir=cache)
print(folder, float(hub.load_module(Generator, GeneratorConfig, folder / "generator").w_avg.sum()))
"""


def test_several_processes_convert_one_name(tmp_path: Path) -> None:
    torch.save(checkpoint_to_rosinality(*generator()), tmp_path / "x.pt")
    (tmp_path / "models").mkdir()
    command = [sys.executable, "-c", _ONE_OF_SEVERAL, str(tmp_path / "x.pt"), str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(set(answers)) == 1 and "converted--" in answers[0]
    assert (tmp_path / "log").read_text() == "fetched\n"  # one converted, two waited
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize("place", ["converted--stylegan-inversion", ".locks"])
def test_a_cache_that_cannot_be_written(
    place: str, fetched: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / place).touch()  # a file where the folder should be: these tests run as root, too
    known._scratch.cache_clear()
    pipeline = E4EPipeline.from_pretrained("test-e4e")
    assert torch.equal(pipeline.generator.w_avg, E4EPipeline.from_pretrained("faces64").generator.w_avg)
    lines = [record.getMessage() for record in caplog.records if "for this process alone" in record.getMessage()]
    assert len(lines) == 1 and "give another `cache_dir`" in lines[0] and str(tmp_path / "cache") in lines[0]
    pipeline(Path(hub.builtin_path("samples/sample1.jpg"))).save(tmp_path / "out")
    InversionOutput.load(tmp_path / "out")  # finds the model again, and does not convert it again
    folder = find_known_model("test-e4e")
    assert folder is not None and folder.parent == known._scratch() and len(fetched) == 1
    assert find_known_model("test-e4e", force_download=True) == folder and len(fetched) == 2
    shutil.rmtree(known._scratch())
    known._scratch.cache_clear()


def test_directions_that_cannot_be_added(
    fetched: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = find_known_model("test-e4e")
    assert folder is not None
    monkeypatch.setattr(known, "edits_of", lambda domain: [1])
    directions = E4EPipeline.from_pretrained("faces64").directions
    monkeypatch.setattr(known, "fetch_directions", lambda *_, **__: directions)
    known._scratch.cache_clear()
    scratch = known._scratch()

    make = Path.mkdir

    def refuse(path: Path, *options: Any, **named: Any) -> None:
        if path.parent == folder:
            raise OSError(30, "Read-only file system")
        make(path, *options, **named)

    monkeypatch.setattr(Path, "mkdir", refuse)
    folder.chmod(0o555)
    for _ in range(2):
        assert list(E4EPipeline.from_pretrained("test-e4e").directions) == list(directions)
    assert find_known_model("test-e4e") == scratch / folder.name and not (folder / "directions").exists()
    (said,) = [message for message in caplog.messages if "could not be kept, and are for this process alone" in message]
    assert "Read-only" in said
    assert (scratch / folder.name).stat().st_mode & 0o200  # or it could not be written, but by root
    folder.chmod(0o755)
    shutil.rmtree(scratch)
    known._scratch.cache_clear()
    assert (folder / hub.CONFIG_NAME).is_file() and E4EPipeline.from_pretrained(folder)  # only links to it went


def test_directions_are_added_under_the_lock(fetched: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_known_model("test-e4e")
    assert folder is not None
    directions = E4EPipeline.from_pretrained("faces64").directions
    lock, save = folder.parents[1] / ".locks" / f"{folder.name}.lock", known.save_directions

    def save_locked(*arguments: Any) -> None:
        with pytest.raises(Timeout):
            FileLock(lock).acquire(timeout=0)
        save(*arguments)

    monkeypatch.setattr(known, "edits_of", lambda domain: [1])
    monkeypatch.setattr(known, "fetch_directions", lambda *_, **__: directions)
    monkeypatch.setattr(known, "save_directions", save_locked)
    assert find_known_model("test-e4e") == folder and (folder / "directions").is_dir()
    FileLock(lock).acquire(timeout=0).lock.release()


def test_a_cache_without_locks(
    fetched: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    known._scratch.cache_clear()
    monkeypatch.setattr(FileLock, "acquire", refuse)
    folder = find_known_model("test-e4e")
    assert folder is not None and folder.parent == known._scratch() and (folder / hub.CONFIG_NAME).is_file()
    assert "cannot be written or locked (FileSystem does not appear to support flock)" in caplog.text
    shutil.rmtree(known._scratch())
    known._scratch.cache_clear()


def test_a_pipeline(fetched: list[dict[str, Any]], tmp_path: Path) -> None:
    pipeline = E4EPipeline.from_pretrained("test-e4e", token="abc", force_download=True)
    access = {"token": "abc", "cache_dir": None, "local_files_only": False, "force_download": True}
    assert fetched == [{"name": "test-e4e", **access}] and "smile" not in pipeline.directions
    assert torch.equal(pipeline.generator.w_avg, E4EPipeline.from_pretrained("faces64").generator.w_avg)
    out = pipeline(Path(hub.builtin_path("samples/sample1.jpg")))
    out.save(tmp_path / "out")
    assert hub.read_config(tmp_path / "out")["base"]["name_or_path"] == "test-e4e"  # on another machine too
    assert torch.equal(InversionOutput.load(tmp_path / "out").w_plus, out.w_plus)


def test_wherever_a_model_is_named(
    fetched: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = PTIPipeline.from_pretrained("faces64").generator
    (folder,) = find_generators(["mine=test-e4e"]).values()  # `evaluate-generator --models`
    assert torch.equal(hub.read_tensors(folder / "model.safetensors")["w_avg"], ours.w_avg)
    assert load_identity("test-identity").name == "test-identity"  # `identity=` of the losses and of `evaluate`
    options = ["--method=e4e", "--model=test-e4e", "--init=test-e4e", f"--data={tmp_path}", f"--output={tmp_path}"]
    config: Any = load_config(options)  # `train`
    encoder, theirs = make_encoder(config, make_task(config.task), ours), E4EPipeline.from_pretrained("faces64").encoder
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), theirs.parameters(), strict=True))
    assert cli.main(["directions", "--model", "test-e4e"]) == 0
    assert cli.main(["convert", "test-e4e", str(tmp_path / "folder")]) == 0
    assert "e4e: " in capsys.readouterr().out and (tmp_path / "folder" / "e4e_encoder").is_dir()
    assert cli.main(["convert", "test-e4e", str(tmp_path / "again.pt"), "--to", "rosinality"]) == 0
    assert (tmp_path / "again.pt").is_file()
    encoder = E4EPipeline.from_single_file("test-e4e").encoder
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), theirs.parameters(), strict=True))


def test_a_direction(fetched: list[dict[str, Any]]) -> None:
    pipeline = PTIPipeline.from_pretrained("faces64")
    assert torch.equal(pipeline.load_direction("test-direction", "old").vector, torch.eye(1, 512)[0])
    assert "old" in pipeline.directions and [entry["name"] for entry in fetched] == ["test-direction"]


def test_what_is_refused(fetched: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for find in (hub.find_model, PTIPipeline.from_pretrained):
        with pytest.raises(
            ModelNotFoundError, match=r"'test-e4': .*Did you mean 'test-e4e'\? `stylegan-inversion models`"
        ):
            find("test-e4")
    for name in ("faces", "e4e-ff"):  # the beginning of a name
        with pytest.raises(ModelNotFoundError, match=rf"No model '{name}': .*Did you mean '{name}[\w-]+'\?"):
            hub.find_model(name)
        with pytest.raises(ModelNotFoundError, match=rf"no file '{name}'\. Did you mean '{name}"):
            PTIPipeline.from_single_file(name)
    for name in ("me/faces64", "me/e4e-ffhq-1024"):  # repositories, whatever they are like
        assert find_known_model(name) is None
    with pytest.raises(ModelNotFoundError, match=r"'nothing': it is not a folder, .*`stylegan-inversion models` lists"):
        hub.find_model("nothing")
    with pytest.raises(ValueError, match=r"`revision` is for repositories; 'test-e4e' of the catalogue is always"):
        hub.find_model("test-e4e", revision="main")
    with pytest.raises(
        ModelNotFoundError, match=r"'test-direction' is no model: a test of direction\. .*load_direction"
    ):
        hub.find_model("test-direction")
    for find in (hub.find_model, PTIPipeline.from_pretrained, PTIPipeline.from_single_file):
        with pytest.raises(ModelNotFoundError, match=r"'test-unread' is listed, but not supported: An IR network\."):
            find("test-unread")
    with pytest.raises(
        ModelNotFoundError, match=r"'test-identity' is no model that a pipeline can be built of: a test"
    ):
        PTIPipeline.from_pretrained("test-identity")
    assert not fetched
    with pytest.raises(
        CheckpointError, match=r"has no variant 'fp16' \(model\.fp16\.safetensors\); leave `variant` out"
    ):
        PTIPipeline.from_pretrained("test-e4e", variant="fp16")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test-e4e").mkdir()  # a folder here wins
    with pytest.raises(ModelNotFoundError, match=r"test-e4e holds no config\.json"):
        hub.find_model("test-e4e")


def test_every_kind_of_the_real_table_is_read_or_refused() -> None:
    for entry in catalogue():
        readable = entry.kind in (*official._PIPELINE_KINDS, "identity", "moco", *known._NO_FOLDER)
        assert readable != (entry.kind == "unread"), entry.name
