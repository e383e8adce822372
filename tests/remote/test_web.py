import hashlib
import io
import socket
from http.client import HTTPMessage, HTTPSConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError
from urllib.request import Request

import pytest

from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.remote import web
from stylegan_inversion.remote.web import download_url

URL = "https://example.org/files/e4e.pt?download=1"
CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Answer(io.BytesIO):
    """What an address gives."""


class FakeOpener:
    """Answers every request with the same bytes, or fails."""

    def __init__(self) -> None:
        self.content, self.asked = CONTENT, 0
        self.error: Exception | None = None

    def open(self, request: Any, timeout: float) -> Answer:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return Answer(self.content)


@pytest.fixture
def opener(monkeypatch: pytest.MonkeyPatch) -> FakeOpener:
    fake = FakeOpener()
    monkeypatch.setattr(web, "build_opener", lambda *handlers: fake)
    return fake


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_fetched_once(opener: FakeOpener, tmp_path: Path) -> None:
    path = download_url(URL, sha256=SHA256.upper(), cache_dir=tmp_path)
    assert path.read_bytes() == CONTENT and path.name == "e4e.pt" and left(tmp_path) == ["e4e.pt"]
    assert download_url(URL, sha256=SHA256, cache_dir=tmp_path, local_files_only=True) == path
    assert opener.asked == 1
    download_url(URL, sha256=SHA256, cache_dir=tmp_path, force_download=True)
    assert opener.asked == 2


def test_another_file(opener: FakeOpener, tmp_path: Path) -> None:
    opener.content = b"<html>Quota exceeded</html>"
    with pytest.raises(CheckpointError, match=r"gave another file: .* not .* open the address in a browser"):
        download_url(URL, sha256=SHA256, cache_dir=tmp_path)
    assert left(tmp_path) == []


def test_what_cannot_be_fetched(opener: FakeOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match=r"not in the cache, and `local_files_only` forbids"):
        download_url(URL, sha256=SHA256, cache_dir=tmp_path, local_files_only=True)
    opener.error = URLError("no route to host")
    with pytest.raises(ModelNotFoundError, match=r"could not be fetched: no route to host"):
        download_url(URL, sha256=SHA256, cache_dir=tmp_path)
    opener.error = None
    monkeypatch.setattr(web, "MAX_BYTES", 100)
    with pytest.raises(ModelNotFoundError, match=r"it is larger than 0 GiB"):
        download_url(URL, sha256=SHA256, cache_dir=tmp_path)
    assert left(tmp_path) == []


def test_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`url` must begin with https://, got 'http://a/b'"):
        download_url("http://a/b", sha256=SHA256, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"`sha256` must be 64 hexadecimal digits, got 'abc'"):
        download_url(URL, sha256="abc", cache_dir=tmp_path)


def test_a_damaged_file_in_the_cache_is_fetched_again(opener: FakeOpener, tmp_path: Path) -> None:
    path = download_url(URL, sha256=SHA256, cache_dir=tmp_path)
    path.write_bytes(CONTENT[::-1])
    assert download_url(URL, sha256=SHA256, cache_dir=tmp_path).read_bytes() == CONTENT and opener.asked == 2


def test_only_https_after_a_redirect(tmp_path: Path) -> None:
    handler, request = web._OnlyHTTPS(), Request(URL)
    headers = HTTPMessage()
    following = handler.redirect_request(request, io.BytesIO(), 302, "", headers, "https://example.org/other")
    assert following is not None and following.full_url == "https://example.org/other"
    for address in ("http://example.org/e4e.pt", "ftp://example.org/e4e.pt", "file:///etc/passwd"):
        with pytest.raises(URLError, match=r"it leads to .*, which is not https"):
            handler.redirect_request(request, io.BytesIO(), 302, "", headers, address)


def test_a_wall_that_drops_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def drop(address: Any, timeout: float, *_: Any) -> None:
        waits.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", drop)
    with pytest.raises(ModelNotFoundError, match=r"could not be fetched: timed out"):
        download_url(URL, sha256=SHA256, cache_dir=tmp_path)
    assert waits == [web.CONNECT] and web.CONNECT < web.STALLED

    def answer(connection: HTTPSConnection) -> None:
        connection.sock = SimpleNamespace(settimeout=waits.append)  # type: ignore[assignment]

    monkeypatch.setattr(HTTPSConnection, "connect", answer)  # then a slow server has its time
    web._Connection("example.org", timeout=web.STALLED).connect()
    assert waits == [web.CONNECT, web.STALLED]
