"""Downloads from a Hub that is damaged, slow, silent or not there, and uploads to it."""

import errno
import hashlib
import logging
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, get_session
from safetensors.torch import save_file

from stylegan_inversion import __version__, remote
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, UploadError
from stylegan_inversion.hub import Access
from stylegan_inversion.remote import download_file, report_downloads, storage_folder, upload_folder
from tests.fake_hub import COMMIT, FakeHub, hub_client, serve

WEIGHTS = "encoder/model.safetensors"
PATTERNS = ("*.json", "*model.safetensors")
OFFLINE = Access(local_files_only=True)


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with one small model, org/tiny, an empty cache in `tmp_path / "cache"`, and the client set to both."""
    source = tmp_path / "source"
    (source / "encoder").mkdir(parents=True)
    (source / "config.json").write_text("{}\n")
    (source / "code.py").write_text("raise SystemExit\n")
    save_file({"a": torch.arange(50.0)}, source / WEIGHTS)
    save_file({"a": torch.arange(50.0).half()}, source / "encoder" / "model.fp16.safetensors")
    with serve() as hub, hub_client(hub, tmp_path / "cache"):
        hub.add("org/tiny", source)
        yield hub


def download(access: Access = Access(), repo_id: str = "org/tiny", **options: Any) -> Path:
    return remote.download(repo_id, PATTERNS, access, **options)[0]


def right(hub: FakeHub) -> bytes:
    return hub.repositories["org/tiny"][WEIGHTS]


def flipped(content: bytes) -> bytes:
    """One bit of the last number is another."""
    return content[:-2] + bytes([content[-2] ^ 4]) + content[-1:]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def left(cache: Path) -> list[Path]:
    return [*cache.rglob("*.incomplete"), *cache.rglob("model.safetensors")]


def damage(path: Path) -> None:
    """Flip a bit of a file in the cache, whose size and time stay as they are."""
    status = path.stat()
    path.resolve().write_bytes(flipped(path.read_bytes()))
    os.utime(path.resolve(), ns=(status.st_atime_ns, status.st_mtime_ns))


@contextmanager
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a socket was opened")

    with monkeypatch.context() as patch:
        for owner, name in ((socket, "socket"), (socket, "create_connection")):
            patch.setattr(owner, name, refuse)
        patch.setattr("subprocess.Popen", refuse)
        yield


def test_download(fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download()
    assert folder.name == COMMIT and files_in(folder) == {"config.json", WEIGHTS}
    assert (folder / WEIGHTS).read_bytes() == right(fake_hub)
    assert [a for a in fake_hub.agents if f"stylegan-inversion/{__version__}" not in a] == []
    fake_hub.log.clear()
    assert download() == folder and fake_hub.log == [("GET", "/api/models/org/tiny")]  # which commit a branch is at
    with no_sockets(monkeypatch):
        assert download(OFFLINE) == folder
        monkeypatch.setattr(remote, "file_sha256", None)  # not called: it was read before
        assert download(Access(COMMIT)) == folder
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert download() == folder
        with pytest.raises(
            ModelNotFoundError, match=r"may not be used for 'org/other': connect once, or give a folder\."
        ):
            download(repo_id="org/other", otherwise=", or give a folder")


def test_the_cache_of_another_program(fake_hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    """Of huggingface_hub itself, or of an older version of this package."""
    folder = Path(huggingface_hub.snapshot_download("org/tiny", allow_patterns=list(PATTERNS)))
    fake_hub.log.clear()
    assert download(OFFLINE) == folder and not fake_hub.log
    assert download() == folder and not fake_hub.gets(WEIGHTS)
    damage(folder / WEIGHTS)
    shutil.rmtree(folder.parents[1] / ".verified")
    with pytest.raises(CheckpointError, match="is damaged in the cache"):
        download(OFFLINE)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes(content)  # a cache without links, of which no list is known
    assert download(OFFLINE) == folder
    assert f"{WEIGHTS} of 'org/tiny' cannot be checked: the Hub gives no hash of it." in caplog.messages


def test_a_file_damaged_on_the_way_is_fetched_again(fake_hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    fake_hub.served[WEIGHTS] = [flipped(right(fake_hub))]
    fake_hub.etags[WEIGHTS] = 'W/"0123456789abcdef"'  # an odd one switches no check off
    folder = download()
    assert (folder / WEIGHTS).read_bytes() == right(fake_hub) and fake_hub.gets(WEIGHTS) == 2
    sha256 = hashlib.sha256(right(fake_hub)).hexdigest()
    assert f"{WEIGHTS} of 'org/tiny' is damaged in the cache: its hash is not {sha256[:12]}" in caplog.text


def test_a_file_damaged_twice_is_refused_and_not_kept(fake_hub: FakeHub, tmp_path: Path) -> None:
    wrong = flipped(right(fake_hub))
    fake_hub.served[WEIGHTS] = [wrong, wrong, wrong, right(fake_hub)]
    with pytest.raises(CheckpointError, match=r"damaged in the cache.* also after it was fetched again.* is kept\."):
        download()
    assert not left(tmp_path / "cache")
    assert (download() / WEIGHTS).read_bytes() == right(fake_hub)  # wrong once more, then right


@pytest.mark.parametrize("links", [True, False])
def test_a_file_damaged_in_the_cache(fake_hub: FakeHub, links: bool) -> None:
    folder = download()
    if links:
        damage(folder / WEIGHTS)
    else:
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).write_bytes(flipped(right(fake_hub)))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"is damaged in the cache: .* Connect and load it again"):
            download(OFFLINE)
    assert download() == folder
    assert (folder / WEIGHTS).read_bytes() == right(fake_hub)

    damage(folder / WEIGHTS)
    fake_hub.faults[WEIGHTS] = 500
    with pytest.raises(ModelNotFoundError, match=r"out of order \(500\).* The cache lacks encoder/model.safetensors\."):
        download()
    assert not (folder / WEIGHTS).exists()


def test_a_small_file_is_checked_too(fake_hub: FakeHub) -> None:
    """Its git sha1 is known: a number of a config that was changed on the way, or in the cache, changes no result."""
    expected, wrong = b'{"crop_scale": 0.74}\n', b'{"crop_scale": 9.74}\n'
    fake_hub.repositories["org/tiny"]["config.json"] = expected
    fake_hub.served["config.json"] = [wrong]
    folder = download()
    assert (folder / "config.json").read_bytes() == expected and fake_hub.gets("config.json") == 2
    (folder / "config.json").resolve().write_bytes(wrong)
    with pytest.raises(CheckpointError, match=r"config\.json of 'org/tiny' is damaged in the cache"):
        download(OFFLINE)


def test_what_is_known_of_a_commit_may_be_damaged_or_not_written(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = download()
    notes = folder.parents[1] / ".verified"
    for text in ("{", "[]", '{"a": 1}'):
        (notes / f"{COMMIT}.json").write_text(text)
        assert download(OFFLINE) == folder
    for name in (".verified", "refs"):
        shutil.rmtree(folder.parents[1] / name)
        (folder.parents[1] / name).touch()  # a file where a folder is needed: these tests run as root, too
    assert download() == folder and download(Access(COMMIT, local_files_only=True)) == folder

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match="the cache may not be written: give another `cache_dir`"):
        download()


def test_a_slow_download_is_reported_and_left_alone(fake_hub: FakeHub) -> None:
    fake_hub.faults[WEIGHTS] = "drip"
    heard: list[tuple[int, int]] = []
    with report_downloads(lambda done, total: heard.append((done, total))):
        other = threading.Thread(target=remote._progress_bar(9), kwargs={"total": 9, "disable": True})
        other.start()  # another thread's downloads are not heard
        other.join()
        folder = download()
    size = len(right(fake_hub))
    assert (folder / WEIGHTS).read_bytes() == right(fake_hub) and heard[-1] == (size, size)

    def leave(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with report_downloads(leave), pytest.raises(KeyboardInterrupt):
        download(Access(force_download=True))


def test_a_file_without_an_end_is_ended() -> None:
    bar = remote._progress_bar(5)(disable=True)
    bar.update(5)
    with pytest.raises(OSError, match="more bytes came than the 5 that the file has"):
        bar.update(1)


@pytest.mark.parametrize("fault", ["cut", "hang"])
def test_a_download_that_goes_silent(fake_hub: FakeHub, fault: str, tmp_path: Path) -> None:
    """Each attempt of the client's ends after 1 s here (`HF_HUB_DOWNLOAD_TIMEOUT`)."""
    fake_hub.faults[WEIGHTS] = fault
    message = {"cut": "The connection to the Hub broke off for 'org/tiny': try again", "hang": "did not answer in time"}
    with pytest.raises(ModelNotFoundError, match=rf"{message[fault]}.* The cache lacks encoder/model\.safetensors\."):
        download()
    assert not [*(tmp_path / "cache").rglob("model.safetensors")]  # older clients keep a part, and go on from there
    del fake_hub.faults[WEIGHTS]
    assert (download() / WEIGHTS).is_file()


def gate(hub: FakeHub) -> None:
    hub.gated.add("org/tiny")


def hide(hub: FakeHub) -> None:
    hub.tokens["org/tiny"] = "secret"


ANSWERS: list[tuple[int | str | Callable[[FakeHub], None], str]] = [
    (gate, r"'org/tiny' is gated: accept its terms on the Hub and pass `token`\."),
    (hide, r"The Hub has no repository 'org/tiny', or it is private: pass `token`\."),
    (401, r"The Hub does not know this token \(401\) for 'org/tiny': log in with `hf auth login`, or pass `token`\."),
    (403, r"The Hub refuses access to 'org/tiny' \(403\): the token lacks the right to it\. Pass another `token`\."),
    (429, r"too many requests from here \(429\), the last for 'org/tiny': wait some minutes, or log in with"),
    (503, r"The Hub is out of order \(503\), so 'org/tiny' could not be reached: try again in some minutes\."),
    ("hang", r"The Hub did not answer in time for 'org/tiny': try again later\."),
    ("html", r"Something answered at http://127.0.0.1:\d+ that is not the Hub, perhaps a page that asks for a log-in"),
    ("empty", r"that is not the Hub"),
    ("odd", r"that is not the Hub"),
    ("loop", r"that is not the Hub"),
    ("cut", r"The connection to the Hub broke off for 'org/tiny': try again\."),
    ("unplugged", r"The Hub cannot be reached for 'org/tiny': check the connection"),
]


@pytest.mark.parametrize(("fault", "message"), ANSWERS, ids=[str(getattr(a, "__name__", a)) for a, _ in ANSWERS])
def test_each_fault_says_what_it_is_and_a_model_in_the_cache_still_loads(
    fake_hub: FakeHub, fault: Any, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = download()  # positive control
    if callable(fault):
        fault(fake_hub)
    elif fault == "unplugged":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        fake_hub.everywhere = fault
    with caplog.at_level(logging.WARNING):
        assert download() == folder
    (said,) = caplog.messages
    assert re.search(message, said) and said.endswith("The copy in the cache is used.")
    with pytest.raises(ModelNotFoundError, match=rf"^[^\n]*{message}[^\n]*$"):
        download(Access(force_download=True))
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelNotFoundError, match=rf"{message}.* The cache lacks encoder/model\.safetensors\."):
        download()
    shutil.rmtree(folder.parents[1])
    with pytest.raises(ModelNotFoundError, match=rf"^[^\n]*{message}[^\n]*$"):
        download()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "The disk is full, so 'org/tiny' could not be kept: make room",
        ),
        (PermissionError(errno.EACCES, "denied"), "the cache may not be written: give another `cache_dir`"),
        (OSError("something\nnew"), r"^'org/tiny' could not be fetched from the Hub: something new The cache lacks"),
    ],
)
def test_faults_of_this_machine(
    fake_hub: FakeHub, error: OSError, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
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
    fake_hub.faults[WEIGHTS] = 404
    with pytest.raises(ModelNotFoundError, match=r"is listed but not there .* The cache lacks encoder/model\.safetens"):
        download()
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFoundError, match="'org/tiny'"):
        download(Access(cache_dir=tmp_path / "file"))
    fake_hub.repositories["org/tiny"]["../../x.json"] = b"{}"
    with pytest.raises(ModelNotFoundError, match="that is not the Hub"):
        download()


def test_one_file(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = hashlib.sha256(right(fake_hub)).hexdigest()
    path = download_file("org/tiny", WEIGHTS, Access(), sha256=sha256)
    assert path.read_bytes() == right(fake_hub)
    with no_sockets(monkeypatch):
        assert download_file("org/tiny", WEIGHTS, OFFLINE, sha256=sha256) == path
    assert fake_hub.gets(WEIGHTS) == 1
    with pytest.raises(ModelNotFoundError, match=r"'org/tiny' has no file 'absent\.pt'"):
        download_file("org/tiny", "absent.pt", Access(), sha256="0" * 64)


def test_a_file_that_was_replaced(fake_hub: FakeHub, tmp_path: Path) -> None:
    """The Hub itself has another file than the one we know: it is refused, and stays for others who use the cache."""
    sha256 = hashlib.sha256(right(fake_hub)).hexdigest()
    fake_hub.repositories["org/tiny"][WEIGHTS] = flipped(right(fake_hub))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"not the file that was asked for: the Hub says its sha256 is .*, n"):
            download_file("org/tiny", WEIGHTS, Access(), sha256=sha256)
    assert not left(tmp_path / "cache")  # it was not even fetched
    assert download_file("org/tiny", WEIGHTS, Access()).read_bytes() == right(fake_hub)


def test_a_file_is_removed_and_its_content_with_the_last_link_to_it(tmp_path: Path) -> None:
    storage = storage_folder("org/repo", tmp_path)
    (storage / "blobs").mkdir(parents=True)
    (storage / "blobs" / "0").write_text("x")
    links = [storage / "snapshots" / "1" / "a.pt", storage / "snapshots" / "2" / "renamed" / "b.pt"]
    for link in links:
        link.parent.mkdir(parents=True)
        link.symlink_to(os.path.relpath(storage / "blobs" / "0", link.parent))
    remote.remove(links[0])
    assert files_in(storage) == {"blobs/0", "snapshots/2/renamed/b.pt"}
    remote.remove(links[1])
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
    monkeypatch.setattr(remote, "UPLOAD_SILENCE", 0.5)
    fake_hub.everywhere = "hang"
    with pytest.raises(UploadError, match=r"The Hub did not answer in time for 'org/new'"):
        upload_folder(tmp_path / "source", "org/new", token="write")
    assert get_session().timeout == before
    for name in ("repo", "a/b/c", "a b/c", "../x/y"):
        with pytest.raises(ValueError, match=rf"`repo_id` must be organisation/repository, got '{name}'"):
            upload_folder(tmp_path, name)
    with pytest.raises(ModelNotFoundError, match=r"holds no config.json, so it is not a model"):
        upload_folder(tmp_path, "org/repo")
