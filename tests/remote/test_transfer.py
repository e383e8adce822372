import hashlib
import logging
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, get_session

from stylegan_inversion import hub
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, UploadError
from stylegan_inversion.remote import transfer
from stylegan_inversion.remote.client import report_downloads
from stylegan_inversion.remote.integrity import read_listing
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


def test_download(fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    assert folder.name == COMMIT and files_in(folder) == {"config.json", WEIGHTS}
    assert (folder / WEIGHTS).read_bytes() == fake_hub.repositories["org/tiny"][WEIGHTS]
    assert download_snapshot("org/tiny", patterns=PATTERNS) == folder
    assert fake_hub.gets(WEIGHTS) == 1 and not leftovers(tmp_path / "cache")


def test_a_warm_cache_needs_no_network(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    with no_sockets(monkeypatch):
        assert download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True) == folder
        assert download_snapshot("org/tiny", patterns=PATTERNS, revision=COMMIT) == folder
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert download_snapshot("org/tiny", patterns=PATTERNS) == folder
        with pytest.raises(
            ModelNotFoundError, match=r"'org/other' is not in the cache, and the network may not be used"
        ):
            download_snapshot("org/other", patterns=PATTERNS)


def test_of_a_branch_only_its_commit_is_asked(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    fake_hub.log.clear()
    monkeypatch.setattr("subprocess.Popen", None)  # no process is started
    assert download_snapshot("org/tiny", patterns=PATTERNS) == folder
    assert fake_hub.log == [("GET", "/api/models/org/tiny")]


def test_the_cache_of_another_program(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of huggingface_hub itself, or of an older version of this package."""
    folder = Path(huggingface_hub.snapshot_download("org/tiny", allow_patterns=list(PATTERNS)))
    fake_hub.log.clear()
    assert download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True) == folder and not fake_hub.log
    assert download_snapshot("org/tiny", patterns=PATTERNS) == folder and not fake_hub.gets(WEIGHTS)
    damage(folder / WEIGHTS)
    shutil.rmtree(folder.parents[1] / ".verified")
    with pytest.raises(CheckpointError, match="is damaged in the cache"):
        download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True)


def test_a_file_damaged_on_the_way_is_fetched_again(fake_hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    right = fake_hub.repositories["org/tiny"][WEIGHTS]
    fake_hub.served[WEIGHTS] = [flipped(right)]
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    assert (folder / WEIGHTS).read_bytes() == right and fake_hub.gets(WEIGHTS) == 2
    sha256 = hashlib.sha256(right).hexdigest()
    assert f"encoder/model.safetensors of 'org/tiny' is damaged in the cache: its hash is not {sha256[:12]}" in (
        caplog.text
    )


def test_a_file_damaged_twice_is_refused_and_not_kept(fake_hub: FakeHub, tmp_path: Path) -> None:
    right = fake_hub.repositories["org/tiny"][WEIGHTS]
    fake_hub.served[WEIGHTS] = [flipped(right), flipped(right), flipped(right), right]
    with pytest.raises(CheckpointError, match=r"was fetched twice \(\d+ bytes\) and does not have the hash"):
        download_snapshot("org/tiny", patterns=PATTERNS)
    assert not list((tmp_path / "cache").rglob("model.safetensors")) and not leftovers(tmp_path / "cache")
    folder = download_snapshot("org/tiny", patterns=PATTERNS)  # wrong once more, then right
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


def test_a_cache_without_links(fake_hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes(flipped(content))
    with pytest.raises(CheckpointError, match="is damaged in the cache"):
        download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True)
    listing = folder.parents[1] / ".verified" / f"{COMMIT}.json"
    for text in ("{", "[]", '{"a": 1}', '{"../x": ["0", 1]}'):  # damaged: nothing to compare with
        listing.write_text(text)
        assert read_listing(folder.parents[1], COMMIT) is None
    assert download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True) == folder
    assert "encoder/model.safetensors of 'org/tiny' cannot be checked" in caplog.text


def test_a_file_is_read_once(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    with monkeypatch.context() as patch:
        patch.setattr("stylegan_inversion.remote.integrity.file_sha256", None)  # not called
        assert download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True) == folder
    shutil.rmtree(folder.parents[1] / ".verified")
    (folder.parents[1] / ".verified").write_text("in the way")  # as in a cache that may only be read
    assert download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True) == folder


def test_a_small_file_is_checked_too(fake_hub: FakeHub) -> None:
    """Its git sha1 is known: a number of a config that was changed on the way, or in the cache, changes no result."""
    fake_hub.repositories["org/tiny"]["config.json"] = b'{"crop_scale": 0.74}\n'
    right, wrong = b'{"crop_scale": 0.74}\n', b'{"crop_scale": 9.74}\n'
    fake_hub.served["config.json"] = [wrong]
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    assert (folder / "config.json").read_bytes() == right and fake_hub.gets("config.json") == 2
    (folder / "config.json").resolve().write_bytes(wrong)
    with pytest.raises(CheckpointError, match=r"config\.json of 'org/tiny' is damaged in the cache"):
        download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True)
    assert download_snapshot("org/tiny", patterns=PATTERNS) == folder
    assert (folder / "config.json").read_bytes() == right


@pytest.mark.parametrize("etag", ['W/"0123456789abcdef"', '"abc"'])
def test_an_odd_etag_switches_no_check_off(fake_hub: FakeHub, etag: str, caplog: pytest.LogCaptureFixture) -> None:
    right = fake_hub.repositories["org/tiny"][WEIGHTS]
    fake_hub.etags[WEIGHTS] = etag
    fake_hub.served[WEIGHTS] = [flipped(right)]
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    assert (folder / WEIGHTS).read_bytes() == right and "is damaged in the cache" in caplog.text
    caplog.clear()
    shutil.rmtree(folder.parents[1] / ".verified")  # and in the cache of a client that kept no list
    assert download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True) == folder
    assert caplog.messages == [f"{WEIGHTS} of 'org/tiny' cannot be checked: the Hub gives no hash of it."]


def test_a_slow_download_is_left_alone(fake_hub: FakeHub) -> None:
    fake_hub.faults[WEIGHTS] = "drip"
    heard: list[tuple[int, int]] = []
    with report_downloads(lambda done, total: heard.append((done, total))):
        folder = download_snapshot("org/tiny", patterns=PATTERNS)
    content = fake_hub.repositories["org/tiny"][WEIGHTS]
    assert (folder / WEIGHTS).read_bytes() == content and heard[-1] == (len(content), len(content))


@pytest.mark.parametrize("fault", ["cut", "hang"])
def test_a_download_that_goes_silent(fake_hub: FakeHub, fault: str, tmp_path: Path) -> None:
    """Each attempt of the client's ends after 1 s here (`HF_HUB_DOWNLOAD_TIMEOUT`)."""
    fake_hub.faults[WEIGHTS] = fault
    message = {"cut": "The connection to the Hub broke off for 'org/tiny': try again", "hang": "did not answer in time"}
    with pytest.raises(ModelNotFoundError, match=rf"{message[fault]}.* It lacks encoder/model\.safetensors\."):
        download_snapshot("org/tiny", patterns=PATTERNS)
    assert not leftovers(tmp_path / "cache") and not list((tmp_path / "cache").rglob("model.safetensors"))
    del fake_hub.faults[WEIGHTS]
    assert (download_snapshot("org/tiny", patterns=PATTERNS) / WEIGHTS).is_file()


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
    (500, r"The Hub is out of order \(500\), so 'org/tiny' could not be reached: try again in some minutes\."),
    (503, r"The Hub is out of order \(503\)"),
    ("hang", r"The Hub did not answer in time for 'org/tiny': try again later\."),
    ("html", r"Something answered at http://127.0.0.1:\d+ that is not the Hub, perhaps a page that asks for a log-in"),
    ("empty", r"that is not the Hub"),
    ("odd", r"that is not the Hub"),
    ("loop", r"that is not the Hub"),
    ("cut", r"The connection to the Hub broke off for 'org/tiny': try again\."),
    ("unplugged", r"The Hub cannot be reached for 'org/tiny': check the connection"),
]


def break_hub(hub: FakeHub, fault: int | str | Callable[[FakeHub], None], patch: pytest.MonkeyPatch) -> None:
    if callable(fault):
        fault(hub)
    elif fault == "unplugged":
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.everywhere = fault


@pytest.mark.parametrize(("fault", "message"), ANSWERS, ids=[str(getattr(a, "__name__", a)) for a, _ in ANSWERS])
def test_each_fault_says_what_it_is_and_a_model_in_the_cache_still_loads(
    fake_hub: FakeHub, fault: Any, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)  # positive control
    break_hub(fake_hub, fault, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert download_snapshot("org/tiny", patterns=PATTERNS) == folder
    (said,) = caplog.messages
    assert re.search(message, said) and said.endswith("The copy in the cache is used.")
    with pytest.raises(ModelNotFoundError, match=rf"^[^\n]*{message}[^\n]*$"):
        download_snapshot("org/tiny", patterns=PATTERNS, force_download=True)
    (folder / WEIGHTS).unlink()
    with pytest.raises(
        ModelNotFoundError, match=rf"{message}.* The cache lacks encoder/model\.safetensors of 'org/tiny'\."
    ):
        download_snapshot("org/tiny", patterns=PATTERNS)
    shutil.rmtree(folder.parents[1])
    with pytest.raises(ModelNotFoundError, match=rf"^[^\n]*{message}[^\n]*$"):
        download_snapshot("org/tiny", patterns=PATTERNS)


@pytest.mark.parametrize(("status", "message"), [(403, "lacks the right"), (404, "is listed but not there")])
def test_a_file_that_the_hub_does_not_give(fake_hub: FakeHub, status: int, message: str) -> None:
    fake_hub.faults[WEIGHTS] = status
    with pytest.raises(ModelNotFoundError, match=rf"{message}.* It lacks encoder/model\.safetensors\."):
        download_snapshot("org/tiny", patterns=PATTERNS)
    with pytest.raises(
        ModelNotFoundError, match=r"The cache lacks encoder/model\.safetensors of .* Connect once, or el"
    ):
        download_snapshot("org/tiny", patterns=PATTERNS, local_files_only=True, otherwise="or else")


def test_other_faults(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for repo_id, revision, message in (
        ("org/absent", None, r"The Hub has no repository 'org/absent', or it is private: pass `token`\."),
        ("org/tiny", "v9", r"'org/tiny' has no revision 'v9'\."),
        ("org/tiny--x", None, r"'org/tiny--x' could not be fetched from the Hub: "),
    ):
        with pytest.raises(ModelNotFoundError, match=message):
            download_snapshot(repo_id, patterns=PATTERNS, revision=revision)
    fake_hub.repositories["org/tiny"]["../../x.json"] = b"{}"
    with pytest.raises(ModelNotFoundError, match="that is not the Hub"):
        download_snapshot("org/tiny", patterns=PATTERNS)


def test_a_repository_without_files(fake_hub: FakeHub) -> None:
    fake_hub.repositories["org/empty"] = {}
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json, so it is not a model saved by this package"):
        hub.find_model("org/empty")


def test_no_room(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(ModelNotFoundError, match=r"'org/tiny' needs 0 MB, but .* has room for 0 MB: make room"):
        download_snapshot("org/tiny", patterns=PATTERNS)
    assert not fake_hub.gets(WEIGHTS)


def test_a_cache_that_may_not_be_written(fake_hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFoundError, match="'org/tiny'"):
        download_snapshot("org/tiny", patterns=PATTERNS, cache_dir=tmp_path / "file")


# --- one file


def of(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest()}


def test_one_file(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    content = fake_hub.repositories["org/tiny"][WEIGHTS]
    path = download_file("org/tiny", WEIGHTS, **of(content))
    assert path.read_bytes() == content
    with no_sockets(monkeypatch):
        assert download_file("org/tiny", WEIGHTS, **of(content), local_files_only=True) == path
    assert fake_hub.gets(WEIGHTS) == 1


def test_a_file_that_was_replaced(fake_hub: FakeHub, tmp_path: Path) -> None:
    """The Hub itself has another file than the one we know: it is refused, and stays for others who use the cache."""
    content = fake_hub.repositories["org/tiny"][WEIGHTS]
    fake_hub.repositories["org/tiny"][WEIGHTS] = flipped(content)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"not the file that was asked for: the Hub says its sha256 is .*, not"
        ):
            download_file("org/tiny", WEIGHTS, **of(content))
    assert not list((tmp_path / "cache").rglob("model.safetensors"))  # it was not even fetched
    assert download_file("org/tiny", WEIGHTS, sha256=None).read_bytes() == flipped(content)


def test_a_file_that_is_not_there(fake_hub: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'org/tiny' has no file 'absent\.pt'"):
        download_file("org/tiny", "absent.pt", sha256="0" * 64)


# --- uploads


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client
def test_upload(fake_hub: FakeHub, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "README.md").write_text("# mine\n")
    (source / "encoder" / "LICENSE").write_text("mine\n")
    address = upload_folder(source, "org/new", token="write")
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


def test_an_upload_that_is_refused(fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UploadError, match=r"^'org/new' could not be uploaded, its files are as they were: [^\n]*401"):
        upload_folder(tmp_path / "source", "org/new", token="wrong")
    before = get_session().timeout
    monkeypatch.setattr(transfer, "UPLOAD_SILENCE", 0.5)
    fake_hub.everywhere = "hang"
    with pytest.raises(UploadError, match=r"The Hub did not answer in time for 'org/new'"):
        upload_folder(tmp_path / "source", "org/new", token="write")
    assert get_session().timeout == before


def test_what_is_not_uploaded(tmp_path: Path) -> None:
    for name in ("repo", "a/b/c", "a/", "a b/c", "../x/y"):
        with pytest.raises(ValueError, match=rf"`repo_id` must be organisation/repository, got '{name}'"):
            upload_folder(tmp_path, name)
    with pytest.raises(ModelNotFoundError, match=r"holds no config.json, so it is not a model"):
        upload_folder(tmp_path, "org/repo")


def test_a_cache_that_may_only_be_read(fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download_snapshot("org/tiny", patterns=PATTERNS)
    storage = folder.parents[1]
    for name in (".verified", "refs"):
        shutil.rmtree(storage / name)
        (storage / name).touch()  # a file where a folder is needed: these tests run as root, too

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert download_snapshot("org/tiny", patterns=PATTERNS) == folder
    offline = {"local_files_only": True}
    assert download_snapshot("org/tiny", patterns=PATTERNS, revision=folder.name, **offline) == folder
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match="the cache may not be written: give another `cache_dir`"):
        download_snapshot("org/tiny", patterns=PATTERNS)
