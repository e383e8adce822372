"""Downloads from a Hub that is damaged, silent or not there, and uploads to it."""

import errno
import hashlib
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, get_session
from safetensors.torch import save_file

from stylegan_inversion import hub
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, UploadError
from stylegan_inversion.hub import Access, download_file, report_downloads, storage_folder, upload_folder
from tests.fake_hub import COMMIT, FakeHub

WEIGHTS = "encoder/model.safetensors"
OFFLINE = Access(local_files_only=True)


@pytest.fixture
def fake_hub(fake_hub: FakeHub, tmp_path: Path) -> FakeHub:
    """A Hub with one small model, org/tiny."""
    source = tmp_path / "source"
    (source / "encoder").mkdir(parents=True)
    (source / "config.json").write_text("{}\n")
    (source / "code.py").write_text("raise SystemExit\n")
    save_file({"a": torch.arange(50.0)}, source / WEIGHTS)
    save_file({"a": torch.arange(50.0).half()}, source / "encoder" / "model.fp16.safetensors")
    fake_hub.add("org/tiny", source)
    return fake_hub


def download(access: Access = Access(), repo_id: str = "org/tiny", **options: Any) -> Path:
    return hub.download(repo_id, ("*.json", "*model.safetensors"), access, **options)


def right(hub: FakeHub) -> bytes:
    return hub.repositories["org/tiny"][WEIGHTS]


def flipped(content: bytes) -> bytes:
    """One bit of the last number is another."""
    return content[:-2] + bytes([content[-2] ^ 4]) + content[-1:]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_download_and_without_a_network(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download()
    assert folder.name == COMMIT and files_in(folder) == {"config.json", WEIGHTS}  # no code
    assert (folder / WEIGHTS).read_bytes() == right(fake_hub)
    assert download() == folder and fake_hub.gets(WEIGHTS) == 1
    fake_hub.log.clear()
    assert download(OFFLINE) == download(Access(COMMIT, local_files_only=True)) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download() == folder
    with pytest.raises(ModelNotFoundError, match=r"may not be used for 'org/other': connect once, or give a folder\."):
        download(repo_id="org/other", otherwise=", or give a folder")
    assert not fake_hub.log


def test_a_commit_that_is_in_the_cache_is_neither_asked_for_nor_hashed_again(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sha256 = download(Access(COMMIT)), hashlib.sha256(right(fake_hub)).hexdigest()
    assert fake_hub.gets(WEIGHTS) == 1
    fake_hub.log.clear()
    with monkeypatch.context() as patch:
        patch.setattr(hub.hashlib, "sha256", None)
        patch.setattr(hub.hashlib, "sha1", None)
        assert download(Access(COMMIT)) == folder
        assert download_file("org/tiny", WEIGHTS, Access(COMMIT), sha256=sha256) == folder / WEIGHTS
    with pytest.raises(CheckpointError, match="is another file"):
        download_file("org/tiny", WEIGHTS, Access(COMMIT), sha256="0" * 64)
    assert not fake_hub.log
    (folder / WEIGHTS).resolve().write_bytes(right(fake_hub)[:-1])  # cut short, as by a full disk
    assert (download(Access(COMMIT)) / WEIGHTS).read_bytes() == right(fake_hub) and fake_hub.gets(WEIGHTS) == 1
    (folder / "config.json").unlink()
    assert (download(Access(COMMIT)) / "config.json").is_file()


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])  # of one the sha256 is known, of the other the git sha1
def test_a_file_damaged_on_the_way_or_in_the_cache(
    name: str, fake_hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = fake_hub.repositories["org/tiny"][name]
    wrong = flipped(expected)
    fake_hub.served[name] = [wrong]
    folder = download()
    assert (folder / name).read_bytes() == expected and fake_hub.gets(name) == 2
    assert f"{name} of 'org/tiny' is damaged. It is fetched again." in caplog.messages
    (folder / name).resolve().write_bytes(wrong)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"is damaged\. Connect and load it again: it is then fetched anew"):
            download(OFFLINE)
    fake_hub.served[name] = [wrong, wrong]
    with pytest.raises(CheckpointError, match=r"is damaged, also after it was fetched again\. Nothing of it is ke"):
        download()
    assert not list((tmp_path / "cache").rglob(name))
    assert (download() / name).read_bytes() == expected


def test_what_a_cache_without_links_or_that_may_only_be_read_does(fake_hub: FakeHub) -> None:
    folder = download()
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes(content)
    shutil.rmtree(folder.parents[1] / "refs")
    (folder.parents[1] / "refs").touch()  # a file where a folder is needed: these tests run as root, too
    assert download() == download(Access(COMMIT, local_files_only=True)) == folder


def test_the_progress_of_this_thread_is_reported(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, int]] = []
    with report_downloads(lambda done, total: heard.append((done, total))):
        other = threading.Thread(target=download, args=(Access(cache_dir=constants.HF_HUB_CACHE + "2"),))
        other.start()
        other.join()
        assert not heard
        folder = download()
    size = sum(len((folder / name).read_bytes()) for name in files_in(folder))
    assert heard[-1] == (size, size)

    def leave(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with report_downloads(leave), pytest.raises(KeyboardInterrupt):
        download(Access(force_download=True))
    monkeypatch.setattr(hub, "MAX_FILE_BYTES", 5)
    with pytest.raises(ModelNotFoundError, match=r"'org/tiny' could not be fetched from the Hub: more than 0 GiB came"):
        download(Access(force_download=True))


ANSWERS: list[tuple[str | int, str]] = [
    ("GatedRepo", r"'org/tiny' is gated: accept its terms on the Hub and pass `token`\."),
    ("private", r"The Hub has no repository 'org/tiny', or it is private: pass `token`\."),
    (403, r"The Hub refuses access to 'org/tiny' \(403\): log in with `hf auth login`, or pass a `token` that has the"),
    (429, r"The Hub .* too many requests \(429\), so 'org/tiny' could not be reached: try again in some minutes, or"),
    (503, r"The Hub is out of order .* \(503\), so 'org/tiny' could not be reached: try again in some minutes"),
    ("hang", r"The Hub did not answer in time for 'org/tiny', or the connection broke off: try again later\."),
    ("cut", r"The Hub did not answer in time for 'org/tiny', or the connection broke off: try again later\."),
    ("html", r"Something answered at http://127.0.0.1:\d+ that is not the Hub, perhaps a page that asks for a log-in"),
    ("odd", r"that is not the Hub"),
    ("loop", r"that is not the Hub"),
    ("unplugged", r"The Hub cannot be reached for 'org/tiny': check the connection"),
]


@pytest.mark.parametrize(("fault", "message"), ANSWERS)
def test_each_fault_says_what_it_is_and_a_model_in_the_cache_still_loads(
    fake_hub: FakeHub, fault: str | int, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = download()  # positive control
    if fault == "private":
        fake_hub.tokens["org/tiny"] = "secret"
    elif fault == "unplugged":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        fake_hub.faults[""] = fault
    assert download() == folder
    (said,) = caplog.messages
    assert re.search(message, said) and said.endswith("The copy in the cache is used.")
    with pytest.raises(ModelNotFoundError, match=rf"^[^\n]*{message}[^\n]*$"):
        download(Access(force_download=True))
    shutil.rmtree(folder.parents[1])
    with pytest.raises(ModelNotFoundError, match=rf"^[^\n]*{message}[^\n]*$"):
        download()


@pytest.mark.parametrize(("fault", "message"), [(403, "refuses access"), ("cut", "'org/tiny'")])
def test_a_file_that_does_not_come(fake_hub: FakeHub, fault: str | int, message: str, tmp_path: Path) -> None:
    fake_hub.faults[WEIGHTS] = fault
    with pytest.raises(ModelNotFoundError, match=message):
        download()
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    fake_hub.faults.clear()
    assert (download() / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), "The disk is full, so 'org/tiny' could not be kept: make room"),
        (PermissionError(errno.EACCES, "denied"), "the cache may not be written: give another `cache_dir`"),
        (OSError("something\nnew"), r"^'org/tiny' could not be fetched from the Hub: something new$"),
    ],
)
def test_faults_of_this_machine(
    fake_hub: FakeHub, error: OSError, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelNotFoundError, match=message):
        download()


def test_other_refusals(fake_hub: FakeHub, tmp_path: Path) -> None:
    for repo_id, revision, message in (
        ("org/absent", None, r"The Hub has no repository 'org/absent', or it is private: pass `token`\."),
        ("org/tiny", "v9", r"'org/tiny' has no revision 'v9'\."),
        ("org/tiny--x", None, r"'org/tiny--x' could not be fetched from the Hub: "),
    ):
        with pytest.raises(ModelNotFoundError, match=message):
            download(Access(revision), repo_id)
    for revision in (str(tmp_path / "x"), "../../x", "..\\x", "C:x", "\\\\host\\x"):
        with pytest.raises(ValueError, match="`revision` must be a branch, a tag or a commit, got "):
            download(Access(revision))
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFoundError, match="'org/tiny'"):
        download(Access(cache_dir=tmp_path / "file"))
    fake_hub.repositories["org/evil"] = {"../../../../x.json": b"{}"}
    with pytest.raises(ModelNotFoundError, match="'org/evil' could not be fetched"):
        download(repo_id="org/evil")
    assert not list(tmp_path.rglob("x.json"))


def test_one_file(fake_hub: FakeHub) -> None:
    sha256 = hashlib.sha256(right(fake_hub)).hexdigest()
    path = download_file("org/tiny", WEIGHTS, Access(), sha256=sha256)
    assert path.read_bytes() == right(fake_hub)
    assert download_file("org/tiny", WEIGHTS, OFFLINE, sha256=sha256) == path and fake_hub.gets(WEIGHTS) == 1
    with pytest.raises(ModelNotFoundError, match=r"'org/tiny' has no file 'absent\.pt', or the cache lacks it"):
        download_file("org/tiny", "absent.pt", Access(), sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"of 'org/tiny' is another file: its sha256 is not 0{64}"):
        download_file("org/tiny", WEIGHTS, Access(), sha256="0" * 64)
    assert path.is_file() and fake_hub.gets(WEIGHTS) == 1, "the copy in the cache is the Hub's, and stays"


def test_a_file_is_removed_and_its_content_with_the_last_link_to_it(tmp_path: Path) -> None:
    storage = storage_folder("org/repo", tmp_path)
    (storage / "blobs").mkdir(parents=True)
    (storage / "blobs" / "0").write_text("x")
    links = [storage / "snapshots" / "1" / "a.pt", storage / "snapshots" / "2" / "renamed" / "b.pt"]
    for link in links:
        link.parent.mkdir(parents=True)
        link.symlink_to(os.path.relpath(storage / "blobs" / "0", link.parent))
    hub.remove(links[0])
    assert files_in(storage) == {"blobs/0", "snapshots/2/renamed/b.pt"}
    hub.remove(links[1])
    assert files_in(storage) == set()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client
def test_upload(fake_hub: FakeHub, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "README.md").write_text("# mine\n")
    (source / "encoder" / "LICENSE").write_text("mine\n")
    address = upload_folder(source, "org/new", token="write")
    assert address == f"{fake_hub.url}/org/new/commit/{COMMIT}"
    files = fake_hub.repositories["org/new"]
    expected = {"README.md", "config.json", WEIGHTS, "encoder/model.fp16.safetensors", "encoder/LICENSE"}
    assert set(files) == expected  # and no code
    assert files[WEIGHTS] == (source / WEIGHTS).read_bytes()

    (source / "README.md").write_text("# another\n")
    (source / "config.json").write_text('{"a": 1}\n')
    upload_folder(source, "org/new", token="write")
    assert files["README.md"] == b"# mine\n" and files["config.json"] == b'{"a": 1}\n'
    upload_folder(source, "org/new", token="write", overwrite_card=True, revision="v2")
    assert files["README.md"] == b"# another\n" and fake_hub.branches == {"v2"}


def test_an_upload_that_is_refused(fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UploadError, match=r"^'org/new' could not be uploaded, its files are as they were: [^\n]*401"):
        upload_folder(tmp_path / "source", "org/new", token="wrong")
    before = get_session().timeout
    monkeypatch.setattr(hub, "UPLOAD_SILENCE", 0.5)
    fake_hub.faults[""] = "hang"
    with pytest.raises(UploadError, match=r"The Hub did not answer in time for 'org/new'"):
        upload_folder(tmp_path / "source", "org/new", token="write")
    assert get_session().timeout == before
    for name in ("repo", "a/b/c", "a b/c", "../x/y"):
        with pytest.raises(ValueError, match=rf"`repo_id` must be organisation/repository, got '{name}'"):
            upload_folder(tmp_path, name)
