"""A file from an https address, checked against its sha256."""

import hashlib
import os
from contextlib import suppress
from http.client import HTTPMessage, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.remote.integrity import cache_root, file_sha256

MAX_BYTES = 16 << 30
CONNECT = 5.0  # seconds in which an address must answer
STALLED = 30.0  # seconds without a byte, which end a download
_CHUNK = 1 << 20


def download_url(
    url: str,
    *,
    sha256: str,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Fetch a file, or find it in the cache under its sha256.

    Only https is spoken, after a redirect too. What is not the file that was asked for is not kept.

    Args:
        url: An https address.
        sha256: Of the file, 64 hexadecimal digits.
        cache_dir: Where downloads are kept. `None` means the Hub's own cache.
        local_files_only: Never use the network.
        force_download: Fetch it again.

    Raises:
        ValueError: If the address or the sha256 is invalid.
        ModelNotFoundError: If it cannot be fetched.
        CheckpointError: If another file came.
    """
    if not url.startswith("https://"):
        raise ValueError(f"`url` must begin with https://, got {url!r}.")
    sha256 = sha256.lower()
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError(f"`sha256` must be 64 hexadecimal digits, got {sha256!r}.")
    path = cached_url(url, sha256, cache_dir)
    if path.is_file() and not force_download and file_sha256(path) == sha256:
        return path
    if local_files_only:
        raise ModelNotFoundError(f"{url} is not in the cache, and `local_files_only` forbids to fetch it.")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _fetch(url, partial)
        if found != sha256:
            raise CheckpointError(
                f"{url} gave another file: its sha256 is {found}, not {sha256}. Often it is a page that asks for a "
                "log-in or reports a quota: open the address in a browser."
            )
        partial.replace(path)
    except (URLError, OSError, TimeoutError) as e:
        raise ModelNotFoundError(f"{url} could not be fetched: {getattr(e, 'reason', e)}. Try again later.") from e
    finally:
        with suppress(OSError):  # a cache that may only be read
            partial.unlink(missing_ok=True)
    return path


def cached_url(url: str, sha256: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the cache keeps a file of this address and sha256, if it has it."""
    return cache_root(cache_dir) / "files--https" / sha256 / (Path(urlsplit(url).path).name or "file")


class _OnlyHTTPS(HTTPRedirectHandler):
    """Follows no address but https."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """The next request, or an error."""
        if not newurl.startswith("https://"):
            raise URLError(f"it leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Connection(HTTPSConnection):
    """Gives up soon where nothing answers, as behind a wall that drops what is sent."""

    def connect(self) -> None:
        """Connect and shake hands."""
        stalled, self.timeout = self.timeout, CONNECT
        super().connect()
        self.sock.settimeout(stalled)


class _HTTPS(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        """The answer."""
        return self.do_open(_Connection, req)


def _fetch(url: str, path: Path) -> str:
    """Write the file and give its sha256."""
    digest, size = hashlib.sha256(), 0
    request = Request(url, headers={"User-Agent": "stylegan_inversion"})
    opener = build_opener(_HTTPS(), _OnlyHTTPS())
    with opener.open(request, timeout=STALLED) as answer, path.open("wb") as file:
        while chunk := answer.read1(_CHUNK):  # what has come, instead of waiting for a whole chunk
            size += len(chunk)
            if size > MAX_BYTES:
                raise OSError(f"it is larger than {MAX_BYTES >> 30} GiB")
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
