import hashlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, UploadError
from stylegan_inversion.remote.integrity import expected_sha256
from stylegan_inversion.remote.transfer import download_file, download_snapshot, upload_folder
from tests.fake_hub import COMMIT, FakeHub
from tests.remote.conftest import WEIGHTS

PATTERNS = ("*.json", "*model.safetensors")


def flipped(content: bytes) -> bytes:
    """One bit of the last number is another."""
    return content[:-2] + bytes([content[-2] ^ 4]) + content[-1:]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def leftovers(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


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
        patch.setattr(socket, "socket", refuse)
        patch.setattr(socket, "create_connection", refuse)
        patch.setattr("subprocess.Popen", refuse)
        yield


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_download(fake_hub: FakeHub, timeout: float | None, tmp_path: Path) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS, timeout=timeout)
    assert folder.name == COMMIT and files_in(folder) == {"config.json", WEIGHTS}
    assert (folder / WEIGHTS).read_bytes() == fake_hub.repositories["org/tiny"][WEIGHTS]
    assert download_snapshot("org/tiny", patterns=PATTERNS, timeout=timeout) == folder
    assert fake_hub.gets(WEIGHTS) == 1 and not leftovers(tmp_path / "cache")


def test_a_warm_cache_needs_no_network(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    with no_sockets(monkeypatch):
        assert download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True, timeout=60.0) == folder
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert download_snapshot("org/tiny", patterns=PATTERNS, timeout=60.0) == folder
        assert download_snapshot("org/tiny", patterns=PATTERNS, revision=COMMIT, timeout=60.0) == folder
        with pytest.raises(ModelNotFoundError, match=r"'org/other' is not in the cache and the Hub cannot be reached"):
            download_snapshot("org/other", patterns=PATTERNS, timeout=60.0)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_file_damaged_on_the_way_is_fetched_again(
    fake_hub: FakeHub, timeout: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    right = fake_hub.repositories["org/tiny"][WEIGHTS]
    fake_hub.served[WEIGHTS] = [flipped(right)]
    folder = download_snapshot("org/tiny", patterns=PATTERNS, timeout=timeout)
    assert (folder / WEIGHTS).read_bytes() == right and fake_hub.gets(WEIGHTS) == 2
    sha256 = hashlib.sha256(right).hexdigest()
    assert f"encoder/model.safetensors of 'org/tiny' is damaged in the cache: its sha256 is not {sha256[:12]}" in (
        caplog.text
    )


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_file_damaged_twice_is_refused_and_not_kept(fake_hub: FakeHub, timeout: float | None, tmp_path: Path) -> None:
    right = fake_hub.repositories["org/tiny"][WEIGHTS]
    fake_hub.served[WEIGHTS] = [flipped(right), flipped(right), flipped(right), right]
    with pytest.raises(CheckpointError, match=r"was fetched twice \(\d+ bytes\) and is not the file with the sha256"):
        download_snapshot("org/tiny", patterns=PATTERNS, timeout=timeout)
    assert not list((tmp_path / "cache").rglob("model.safetensors")) and not leftovers(tmp_path / "cache")
    folder = download_snapshot("org/tiny", patterns=PATTERNS, timeout=timeout)  # wrong once more, then right
    assert (folder / WEIGHTS).read_bytes() == right


def test_a_file_damaged_in_the_cache(fake_hub: FakeHub) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    damage(folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"is damaged in the cache: .* Connect and load it again"):
        download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True)
    assert (folder / WEIGHTS).exists()  # refused again, until there is another
    assert download_snapshot("org/tiny", patterns=PATTERNS) == folder
    assert (folder / WEIGHTS).read_bytes() == fake_hub.repositories["org/tiny"][WEIGHTS]

    damage(folder / WEIGHTS)
    fake_hub.faults[WEIGHTS] = 500
    with pytest.raises(CheckpointError, match=r"is damaged in the cache: .* could not be fetched again: "):
        download_snapshot("org/tiny", patterns=PATTERNS)
    assert not (folder / WEIGHTS).exists()


def test_a_cache_without_links(fake_hub: FakeHub) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes(flipped(content))
    with pytest.raises(CheckpointError, match="is damaged in the cache"):
        download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True)
    listing = folder.parents[1] / "trees" / f"{COMMIT}.json"
    for text in ("{", "[]", '{"files": {}}'):  # of an older client, or none: nothing to compare with
        listing.write_text(text)
        assert expected_sha256(folder, Path(WEIGHTS), folder.parents[1]) is None
    listing.unlink()
    assert download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True) == folder


def test_a_file_is_read_once(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    with monkeypatch.context() as patch:
        patch.setattr("stylegan_inversion.remote.integrity.file_sha256", None)  # not called
        assert download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True) == folder
    shutil.rmtree(folder.parents[1] / ".verified")
    (folder.parents[1] / ".verified").write_text("in the way")  # as in a cache that may only be read
    assert download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True) == folder


@pytest.mark.parametrize("fault", ["drip", "hang"])
def test_the_deadline(fake_hub: FakeHub, fault: str, tmp_path: Path) -> None:
    fake_hub.faults[WEIGHTS] = fault
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match=r"not done with 'org/tiny' within 4 s \(0\.0 of 0\.0 MB\)\. Try"):
        download_snapshot("org/tiny", patterns=PATTERNS, timeout=4.0)
    assert time.monotonic() - start < 60  # a hang ends, and not after the 30 minutes of a download
    assert not leftovers(tmp_path / "cache") and not list((tmp_path / "cache").rglob("model.safetensors"))
    del fake_hub.faults[WEIGHTS]
    assert (download_snapshot("org/tiny", patterns=PATTERNS, timeout=60.0) / WEIGHTS).is_file()


def test_after_the_deadline_a_copy_will_do(fake_hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    fake_hub.everywhere = "hang"
    with caplog.at_level(logging.WARNING):
        assert download_snapshot("org/tiny", patterns=PATTERNS, timeout=1.0) == folder
    assert "The copy in the cache is used." in caplog.text
    with pytest.raises(ModelNotFoundError, match="within 1 s"):
        download_snapshot("org/tiny", patterns=PATTERNS, timeout=1.0, force_download=True)


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("absent", r"The Hub has no repository 'org/absent', or it is private: pass `token`\."),
        ("gated", r"'org/gated' is gated: accept its terms on the Hub and pass `token`\."),
        ("revision", r"'org/tiny' has no revision 'v9'\."),
        ("unauthorised", r"^[^\n]*'org/tiny'[^\n]*$"),
        ("broken", r"^[^\n]*'org/tiny'[^\n]*$"),
        ("down", r"'org/tiny' is not in the cache and the Hub cannot be reached\. Connect once, or else\."),
        ("name", r"'org/tiny--x' could not be fetched from the Hub: "),
    ],
)
def test_one_message_for_each_fault(
    fake_hub: FakeHub, case: str, message: str, timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo_id, revision = "org/tiny", None
    if case in ("absent", "gated"):
        repo_id = f"org/{case}"
        fake_hub.gated.add("org/gated")
    elif case == "revision":
        revision = "v9"
    elif case == "name":
        repo_id = "org/tiny--x"
    elif case == "down":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        fake_hub.everywhere = {"unauthorised": 401, "broken": 404}[case]
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match=message):
        download_snapshot(repo_id, patterns=PATTERNS, revision=revision, timeout=timeout, otherwise="or else")
    assert time.monotonic() - start < 20


def test_a_connection_that_is_cut_each_time(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.faults[WEIGHTS] = "cut"
    with pytest.raises(ModelNotFoundError, match="'org/tiny'"):
        download_snapshot("org/tiny", patterns=PATTERNS, timeout=30.0)
    assert not leftovers(tmp_path / "cache") and not list((tmp_path / "cache").rglob("model.safetensors"))


# --- one file


def of(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def test_one_file(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    content = fake_hub.repositories["org/tiny"][WEIGHTS]
    path = download_file("org/tiny", WEIGHTS, **of(content), timeout=60.0)
    assert path.read_bytes() == content
    with no_sockets(monkeypatch):
        assert download_file("org/tiny", WEIGHTS, **of(content), local_files_only=True) == path
    assert fake_hub.gets(WEIGHTS) == 1


@pytest.mark.parametrize("size", [None, 1])
def test_a_file_that_was_replaced(fake_hub: FakeHub, size: int | None, tmp_path: Path) -> None:
    """The Hub itself has another file than the one we know: it is refused, and stays for others who use the cache."""
    content = fake_hub.repositories["org/tiny"][WEIGHTS]
    known = {**of(content), "size": size}
    fake_hub.repositories["org/tiny"][WEIGHTS] = flipped(content)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"not the file that was asked for: the Hub says its sha256 is .*, not"
        ):
            download_file("org/tiny", WEIGHTS, **known, timeout=60.0)
    assert len(list((tmp_path / "cache").rglob("model.safetensors"))) == 1
    assert download_file("org/tiny", WEIGHTS, sha256=None, timeout=60.0).read_bytes() == flipped(content)


def test_a_file_that_is_not_there(fake_hub: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'org/tiny' could not be fetched from the Hub: .*absent\.pt"):
        download_file("org/tiny", "absent.pt", sha256="0" * 64)


def test_no_room(fake_hub: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"The file has 1000000000000 MB, but .* has room for \d+ MB: make"):
        download_file("org/tiny", WEIGHTS, sha256="0" * 64, size=10**18)
    assert not fake_hub.log


# --- uploads


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_upload(fake_hub: FakeHub, tmp_path: Path, timeout: float | None) -> None:
    source = tmp_path / "source"
    (source / "README.md").write_text("# mine\n")
    (source / "encoder" / "LICENSE").write_text("mine\n")
    address = upload_folder(source, "org/new", token="write", timeout=timeout)
    assert address == f"{fake_hub.url}/org/new/commit/{COMMIT}"
    files = fake_hub.repositories["org/new"]
    assert set(files) == {
        "README.md",
        "config.json",
        WEIGHTS,
        "encoder/model.fp16.safetensors",
        "encoder/LICENSE",
    }  # and no code
    assert files[WEIGHTS] == (source / WEIGHTS).read_bytes()

    (source / "README.md").write_text("# another\n")
    (source / "config.json").write_text('{"a": 1}\n')
    upload_folder(source, "org/new", token="write")
    assert files["README.md"] == b"# mine\n" and files["config.json"] == b'{"a": 1}\n'
    upload_folder(source, "org/new", token="write", overwrite_card=True, revision="v2")
    assert files["README.md"] == b"# another\n" and fake_hub.branches == {"v2"}


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_an_upload_that_is_refused(fake_hub: FakeHub, tmp_path: Path, timeout: float | None) -> None:
    with pytest.raises(UploadError, match=r"^'org/new' could not be uploaded, its files are as they were: [^\n]*401"):
        upload_folder(tmp_path / "source", "org/new", token="wrong", timeout=timeout)
    fake_hub.everywhere = "hang"
    if timeout is not None:
        with pytest.raises(UploadError, match=r"The Hub was not done with 'org/new' within 1 s"):
            upload_folder(tmp_path / "source", "org/new", token="write", timeout=1.0)


def test_what_is_not_uploaded(tmp_path: Path) -> None:
    for name in ("repo", "a/b/c", "a/", "a b/c", "../x/y"):
        with pytest.raises(ValueError, match=rf"`repo_id` must be organisation/repository, got '{name}'"):
            upload_folder(tmp_path, name)
    with pytest.raises(ModelNotFoundError, match=r"holds no config.json, so it is not a model"):
        upload_folder(tmp_path, "org/repo")
