"""Names of models, wherever one is named: folders, built-in models, the catalogue, the Hub, files, addresses.

The checkpoints are small ones of ours in the official layouts.
"""

import hashlib
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from huggingface_hub import constants

from stylegan_inversion import E4EPipeline, InversionOutput, PTIPipeline, cli, storage
from stylegan_inversion import catalogue as catalogue_module
from stylegan_inversion.catalogue import CatalogueEntry, catalogue
from stylegan_inversion.checkpoints import find
from stylegan_inversion.checkpoints.export import write_official
from stylegan_inversion.checkpoints.find import download_url, fetch, find_file, find_folder
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.hub import Access, file_sha256, storage_folder
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from tests.checkpoints.official_files import checkpoint_to_rosinality, generator, official_arcface
from tests.checkpoints.public_directions import FakeGitHub
from tests.fake_hub import FakeHub

OFFLINE = Access(local_files_only=True)
AGAIN = Access(force_download=True)


def model_folder(folder: Path) -> Path:
    storage.write_config({"width": 4}, folder)
    return folder


# --- folders, built-in models, the Hub


def test_folders_and_built_in_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "catalogue", None)  # it is not read for these
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces64").mkdir()  # a mere folder hides nothing
    assert find_folder("faces64") == storage.builtin_path("faces64")
    assert find_folder("faces64", Access(subfolder="generator")) == storage.builtin_path("faces64/generator")
    model_folder(tmp_path / "faces64")
    model_folder(tmp_path / "org" / "repo")
    assert find_folder("faces64") == Path("faces64") and find_folder("org/repo") == Path("org/repo")
    assert find_folder(tmp_path / "faces64") == tmp_path / "faces64"


@pytest.mark.parametrize("name", ["faces65", "./org/repo", "~/repo", "a/b/c", ""])
def test_an_unknown_name_names_the_known_ones(name: str) -> None:
    with pytest.raises(
        ModelNotFoundError, match=rf"No model '{name}': it is not a folder.*faces64.*models` lists what"
    ):
        find_folder(name)


def test_what_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"so it is not a model saved by this package, or its saving was interrupted"
    ):
        find_folder(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"faces64.absent holds no config.json"):
        find_folder("faces64", Access(subfolder="absent"))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelNotFoundError, match=r"a pipeline of diffusers \(model_index\.json\), not a GAN"):
        PTIPipeline.from_pretrained(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"a folder: use from_pretrained"):
        PTIPipeline.from_single_file(tmp_path)
    for name in ("model_ir_se50.pth", "weights/e4e_ffhq_encode.pt"):
        with pytest.raises(CheckpointError, match=r"`from_single_file` reads it; or convert it once, by `.* FOLDER`"):
            find_folder(name)
    for variant in ("", "a/b", "..", "a b", "x" * 33):
        with pytest.raises(ValueError, match=r"`variant` must be a word such as 'fp16', got "):
            find_folder("faces64", variant=variant)


@pytest.mark.parametrize("subfolder", ["..", "a/../../b", "/etc", "a\\..\\..", "C:"])
def test_a_subfolder_stays_inside(subfolder: str, tmp_path: Path) -> None:
    for name in (model_folder(tmp_path), "faces64", "org/repo"):
        with pytest.raises(
            ValueError, match=r"`subfolder` must be a relative path inside the model, without '\.\.', g"
        ):
            find_folder(name, Access(subfolder=subfolder))


# --- files and addresses

URL = "https://example.org/files/e4e.pt?download=1"
CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> FakeGitHub:
    server = FakeGitHub()
    server.files[URL] = CONTENT
    server.install(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return server


def test_an_https_address(web: FakeGitHub, tmp_path: Path) -> None:
    access = Access(cache_dir=tmp_path)
    path = find_file(URL, access, sha256=SHA256.upper())
    assert path.read_bytes() == CONTENT and path.name == "e4e.pt"
    assert find_file(URL, replace(access, local_files_only=True), sha256=SHA256) == path
    assert len(web.asked) == 1
    path.write_bytes(CONTENT[::-1])  # damaged in the cache
    assert find_file(URL, access, sha256=SHA256).read_bytes() == CONTENT and len(web.asked) == 2
    download_url(URL, SHA256, replace(access, force_download=True))
    assert len(web.asked) == 3 and [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["e4e.pt"]


def test_an_https_address_that_is_refused(web: FakeGitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access(cache_dir=tmp_path)

    def refused(error: type[Exception], message: str, sha256: str | None = SHA256, access: Access = access) -> None:
        with pytest.raises(error, match=message):
            find_file(URL, access, sha256=sha256)

    refused(ValueError, r"give the `sha256` of the file too", None)
    refused(ValueError, r"`sha256` must be 64 hexadecimal digits, got 'abc'", "abc")
    web.leads_to = "http://example.org/e4e.pt"  # nothing is asked there: a test has no network
    refused(ModelNotFoundError, r"could not be fetched: it leads to http://example\.org.*, which is not https")
    web.leads_to, web.files[URL] = None, b"<html>Quota exceeded</html>"
    refused(CheckpointError, r"gave another file: .* not .* open the address in a browser")
    offline = replace(access, local_files_only=True)
    refused(ModelNotFoundError, r"not in the cache, and the network may not be used", access=offline)
    monkeypatch.setattr(find, "MAX_FILE_BYTES", 10)
    refused(ModelNotFoundError, r"it is larger than 10 bytes")
    web.down = True
    refused(ModelNotFoundError, r"could not be fetched: no route to host")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- files of the catalogue


@pytest.fixture
def fake_hub(fake_hub: FakeHub) -> FakeHub:
    fake_hub.repositories["org/weights"] = {"folder/file.pt": CONTENT}
    return fake_hub


@pytest.fixture
def entry() -> CatalogueEntry:
    where = {"repository": "org/weights", "file": "folder/file.pt", "size": len(CONTENT), "sha256": SHA256}
    return CatalogueEntry("some-file", "generator", "", "", "somewhere", **where)  # type: ignore[arg-type]


def test_fetch(fake_hub: FakeHub, entry: CatalogueEntry, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = fetch(entry)
    assert path.read_bytes() == CONTENT and (tmp_path / "cache") in path.parents
    assert fetch(entry) == path and fetch(entry, OFFLINE) == path
    assert fake_hub.gets("folder/file.pt") == 1 and not caplog.text
    loose = replace(entry, sha256=None, size=None)
    assert fetch(loose).read_bytes() == CONTENT and f"against the Hub's own, {entry.sha256}" in caplog.text
    path.resolve().write_bytes(CONTENT[:-1] + b"!")  # the same size
    for each in (entry, loose):
        with pytest.raises(CheckpointError, match="is damaged"):
            fetch(each, OFFLINE)


def test_what_cannot_be_fetched_is_not(fake_hub: FakeHub, entry: CatalogueEntry) -> None:
    entries = {entry.name: entry for entry in catalogue()}
    with pytest.raises(ModelNotFoundError, match=r"is known\. Get it from yuval-alaluf.* holds a StyleGAN3"):
        fetch(entries["restyle-e4e-ffhq-1024"])
    with pytest.raises(ModelNotFoundError, match=r"not supported: It draws 1024 x 512 pixels; only square"):
        fetch(entries["stylegan2-human-1024"])
    assert not fake_hub.log
    with pytest.raises(ModelNotFoundError, match=r"Or get gone\.pt from somewhere; .* convert gone\.pt FOLDER` makes"):
        fetch(replace(entry, file="gone.pt"))
    with pytest.raises(ModelNotFoundError, match=r"no folder 'models/psp-ffhq-toonify' here\. Did you mean 'psp-ffhq"):
        find_folder("models/psp-ffhq-toonify")


# --- models of the catalogue


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, faces64 = tmp_path_factory.mktemp("field"), storage.builtin_path("faces64")
    torch.save(official_arcface(), folder / "arcface.pth")
    torch.save(torch.eye(1, 512), folder / "age.pt")
    layouts: Any = ("e4e", "psp")
    files = {layout: write_official(faces64, folder / f"{layout}.pt", layout=layout) for layout in layouts}
    return files | {"identity": folder / "arcface.pth", "direction": folder / "age.pt"}


@pytest.fixture
def fetched(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Access]]:
    """A catalogue of test-e4e, test-psp, test-identity and test-direction; what was fetched, and how."""
    log: list[tuple[str, Access]] = []

    def fake_fetch(entry: CatalogueEntry, access: Access = Access()) -> Path:
        if entry.kind == "unread":
            return fetch(entry, access)
        log.append((entry.name, access))
        where = storage_folder(str(entry.repository), access.cache_dir) / "snapshots" / "1" / str(entry.file)
        where.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(files[entry.kind], where))

    entries = [CatalogueEntry("test-unread", "unread", "", "", "", note="An IR network.")]
    entries += [CatalogueEntry("e4e-ffhq-1024", "e4e", "", "", "")]
    for kind, path in files.items():
        names = (f"test-{kind}", kind, f"a test of {kind}", "", "", "hub", "org/repo", path.name)
        entries.append(CatalogueEntry(*names, sha256=file_sha256(path)))  # type: ignore[arg-type]
    for module in (find, catalogue_module):
        monkeypatch.setattr(module, "catalogue", lambda: tuple(entries))
    monkeypatch.setattr(find, "fetch", fake_fetch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return log


def test_converted_once_and_not_kept_twice(fetched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = find_folder("test-e4e"), tmp_path / "cache"
    assert folder.parent.parent == cache and not list(cache.rglob("e4e.pt"))  # no checkpoint beside its conversion
    stamp = (folder / storage.CONFIG_NAME).stat().st_mtime_ns
    assert find_folder("test-e4e") == find_folder("test-e4e", OFFLINE) == folder and len(fetched) == 1
    assert (folder / storage.CONFIG_NAME).stat().st_mtime_ns == stamp and list(folder.parent.iterdir()) == [folder]
    assert find_folder("test-e4e", AGAIN) == folder and len(fetched) == 2
    assert (folder / storage.CONFIG_NAME).stat().st_mtime_ns != stamp and list(folder.parent.iterdir()) == [folder]
    monkeypatch.setattr(catalogue_module, "CONVERTED", 99)  # another format of ours
    assert find_folder("test-e4e") != folder and len(fetched) == 3
    find_file("test-psp")  # fetched for its own sake, as by `from_single_file`: it stays
    find_folder("test-psp")
    assert len(list(cache.rglob("psp.pt"))) == 1
    other = find_folder("test-psp", Access(cache_dir=tmp_path / "other"))
    assert other.parent.parent == tmp_path / "other"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_several_processes_convert_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(checkpoint_to_rosinality(*generator()), tmp_path / "x.pt")
    write_model = find.write_model

    def fake_fetch(entry: CatalogueEntry, access: Access) -> Path:
        with (tmp_path / "log").open("a") as log:
            log.write("fetched\n")
        return Path(shutil.copy(tmp_path / "x.pt", tmp_path / "fetched.pt"))

    def slow_write(file: Any, folder: Path) -> None:
        write_model(file, folder)
        time.sleep(0.5)  # the others come meanwhile

    monkeypatch.setattr(find, "fetch", fake_fetch)
    monkeypatch.setattr(find, "write_model", slow_write)
    monkeypatch.setattr(find, "cached_file", lambda entry, cache_dir: None)
    for module in (find, catalogue_module):
        monkeypatch.setattr(module, "catalogue", lambda: (CatalogueEntry("test", "generator", "", "", ""),))
    children = []
    for _ in range(3):
        if (child := os.fork()) == 0:
            try:
                folder = find_folder("test", Access(cache_dir=tmp_path))
                storage.load_module(Generator, GeneratorConfig, folder / "generator")
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert len([path for path in tmp_path.glob("converted--*/*") if path.is_dir()]) == 1
    assert (tmp_path / "log").read_text() == "fetched\n"  # one converted, two waited
    assert not (tmp_path / "fetched.pt").exists()


@pytest.mark.parametrize("place", ["converted--stylegan-inversion", ".locks", "no locks"])
def test_a_cache_that_cannot_be_written(
    place: str, fetched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    (tmp_path / "cache").mkdir()
    if place == "no locks":
        monkeypatch.setattr(FileLock, "acquire", refuse)
    else:
        (tmp_path / "cache" / place).touch()  # a file where the folder should be: these tests run as root, too
    with pytest.raises(ModelNotFoundError, match=r"cannot be written or locked \(.*\): give another `cache_dir`\."):
        find_folder("test-e4e")
    assert not fetched


def test_directions_that_were_missing_are_added(
    fetched: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, directions = find_folder("test-e4e"), E4EPipeline.from_pretrained("faces64").directions
    monkeypatch.setattr(find, "fetch_directions", lambda *_: directions)
    locks = folder.parents[1] / ".locks"
    shutil.rmtree(locks)
    locks.touch()
    assert find_folder("test-e4e") == folder and not (folder / "directions").exists()
    (said,) = caplog.messages
    assert "give another `cache_dir`. The directions of test-e4e are missing." in said
    locks.unlink()
    assert list(E4EPipeline.from_pretrained("test-e4e").directions) == list(directions)
    assert (folder / "directions").is_dir() and list(folder.parent.iterdir()) == [folder] and len(fetched) == 1


def test_a_pipeline(fetched: list[Any], tmp_path: Path) -> None:
    pipeline = E4EPipeline.from_pretrained("test-e4e", token="abc", force_download=True)
    assert fetched == [("test-e4e", Access(token="abc", force_download=True))] and "smile" not in pipeline.directions
    assert torch.equal(pipeline.generator.w_avg, E4EPipeline.from_pretrained("faces64").generator.w_avg)
    out = pipeline(Path(storage.builtin_path("samples/sample1.jpg")))
    out.save(tmp_path / "out")
    assert storage.read_config(tmp_path / "out")["base"]["name_or_path"] == "test-e4e"  # on another machine too
    assert torch.equal(InversionOutput.load(tmp_path / "out").w_plus, out.w_plus)


def test_wherever_a_model_is_named(fetched: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["directions", "--model", "test-e4e"]) == 0
    assert cli.main(["convert", "test-e4e", str(tmp_path / "folder")]) == 0
    assert "e4e: " in capsys.readouterr().out and (tmp_path / "folder" / "e4e_encoder").is_dir()
    assert cli.main(["convert", "test-e4e", str(tmp_path / "again.pt"), "--to", "rosinality"]) == 0
    assert (tmp_path / "again.pt").is_file()
    theirs = E4EPipeline.from_pretrained("faces64").encoder
    encoder = E4EPipeline.from_single_file("test-e4e").encoder
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), theirs.parameters(), strict=True))
    pipeline = PTIPipeline.from_pretrained("faces64")
    assert torch.equal(pipeline.load_direction("test-direction", "old").vector, torch.eye(1, 512)[0])


def test_what_is_refused(fetched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, meant in (("test-e4", "test-e4e"), ("faces", "faces64"), ("e4e-ff", "e4e-ffhq-1024")):
        hint = rf"Did you mean '{meant}'\?"
        for load in (find_folder, PTIPipeline.from_pretrained):
            with pytest.raises(ModelNotFoundError, match=rf"No model '{name}': .*{hint} `stylegan-inversion models`"):
                load(name)
        with pytest.raises(ModelNotFoundError, match=rf"no file '{name}'\. {hint}"):
            PTIPipeline.from_single_file(name)
    with pytest.raises(ModelNotFoundError, match=r"used for 'me/faces64'"):  # a repository, whatever it is like
        find_folder("me/faces64", OFFLINE)
    with pytest.raises(ValueError, match=r"`revision` is for repositories; 'test-e4e' of the catalogue is always"):
        find_folder("test-e4e", Access("main"))
    with pytest.raises(ModelNotFoundError, match=r"'test-direction' is not a model: a test of dire.*load_direction"):
        find_folder("test-direction")
    for load in (find_folder, PTIPipeline.from_pretrained, PTIPipeline.from_single_file):
        with pytest.raises(ModelNotFoundError, match=r"'test-unread' is listed, but not supported: An IR network\."):
            load("test-unread")
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
        find_folder("test-e4e")
