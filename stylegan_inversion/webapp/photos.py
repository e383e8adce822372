"""What a visitor may send: the one door for every file whose path stands in a request."""

import base64
import contextlib
import io
import ipaddress
import logging
import os
import re
import socket
import stat
import time
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.preprocessing.image import ImageLimits, load_image, open_source
from stylegan_inversion.preprocessing.sources import LabelSource, Source

logger = logging.getLogger(__name__)

MAX_PHOTO_BYTES, MAX_INVERSION_BYTES = 20_000_000, 300_000_000
MAX_REQUEST_BYTES = 30_000_000  # a `data:` address is JSON
MAX_FILES = 32  # of a zip
# No photo takes more than 300 MB and 3 seconds, so a JPEG has at most about 100 scans
PHOTOS = ImageLimits(
    ("JPEG", "PNG", "WEBP"), max_pixels=40_000_000, max_memory=300_000_000, max_table_pixels=20_000_000
)
NOT_UPLOADED = "This file was not uploaded here, is too large, or has expired. Upload it again."
NO_PHOTO = "Choose a photo first: an uploaded file (`handle_file` in Python), or a `data:` address."
NO_ADDRESS = "The app fetches nothing from the web: upload the photo itself, or send it as a `data:` address."

_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)  # Windows has neither
_DATA = re.compile(r"data:[\w/+.-]*;base64,")


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as a visitor sent it."""

    image: Image.Image  # RGB, upright, without metadata; or a label map, as it is
    name: str  # of its file, without the suffix: letters, digits, "-" and "_"
    path: Path | None = None  # where the upload lies; None for a `data:` address


def read_photo(value: Any, source: Source | None = None) -> Photo:
    """Open the picture that a request names: a photo, or what an encoder of such a source reads.

    Raises:
        ValueError: If it is nothing that was sent here.
        InvalidImageError: If it is no JPEG, PNG or WebP, damaged, too large, or no label map where it should be.
    """
    if not _address(value):
        raise ValueError(NO_PHOTO)
    data, path = read_upload(value, max_bytes=MAX_PHOTO_BYTES)
    name = "photo" if path is None else re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem)[:60]
    if not isinstance(source, LabelSource):
        return Photo(load_image(data, limits=PHOTOS), name or "photo", path)
    with open_source(data, PHOTOS) as (image, _):
        if image.width * image.height > PHOTOS.max_pixels:  # of a PNG, only decoding would notice
            most = f"at most {PHOTOS.max_pixels / 1e6:g} megapixels are read"
            raise InvalidImageError(f"The file is {image.width} x {image.height} pixels, and {most}; shrink it first.")
        return Photo(source.load(data), name or "photo", path)


def read_upload(value: Any, *, max_bytes: int) -> tuple[bytes, Path | None]:
    """Read a file that was sent to this app: {"path": ...}, {"url": "data:..."} or such an address alone.

    Returns:
        Its bytes, and where an upload lies. Nothing else on the machine is opened, waited for or touched.

    Raises:
        ValueError: If it is larger, or no regular file in a folder inside `GRADIO_TEMP_DIR`.
    """
    address = _address(value)
    if names_web_address({"path": address}):
        raise ValueError(NO_ADDRESS)
    try:
        found = _DATA.match(address)
        if found and len(address) < 4 / 3 * max_bytes + 100:
            return base64.b64decode(address[found.end() :], validate=True), None
        real = Path(address).resolve(strict=True)
        folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve(strict=True)
        if folder not in real.parent.parents:  # directly in it lie uploads that are not whole yet
            raise ValueError
        with open(real, "rb", opener=lambda name, flags: os.open(name, flags | _NEVER_WAIT)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
                raise ValueError
            return file.read(), real
    except (OSError, ValueError, RuntimeError, KeyError):  # KeyError: the app has ended; RuntimeError: a loop of links
        raise ValueError(NOT_UPLOADED) from None


def unpack_upload(value: Any, folder: Path) -> None:
    """Unpack JSON, safetensors and Markdown of an inversion's zip that was sent to this app.

    Raises:
        ValueError: If it is no such zip, it was not sent here, or is too large.
    """
    data, _ = read_upload(value, max_bytes=MAX_INVERSION_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = [each for each in archive.infolist() if not each.is_dir()]
            if len(parts) <= MAX_FILES and sum(each.file_size for each in parts) <= MAX_INVERSION_BYTES:
                for each in parts:
                    if Path(each.filename).suffix in (".json", ".safetensors", ".md"):
                        archive.extract(each, folder)  # never outside of it
                return
    except Exception as e:  # whatever the decompressors raise
        raise ValueError("`inversion` must be a zip that /download gave for kind='inversion'.") from e
    raise ValueError(f"A zip has {MAX_FILES} files and {MAX_INVERSION_BYTES / 1e9:g} GB at most.")


class Example(NamedTuple):
    """A photo of the package, with the edit that shows what it is for."""

    name: str
    caption: str
    edit: dict[str, float]  # by direction, in shares of its range


EXAMPLES = (
    Example("portraits/portrait1.jpg", "An astronaut, 1992", {"yaw": -0.6, "pose": -0.6}),
    Example("portraits/portrait2.jpg", "A rear admiral, 1984", {"smile": 1.0}),
    Example("portraits/portrait3.jpg", "A scientist", {"smile": 0.9}),
    Example("sample6.jpg", "Four friends", {"smile": 0.8}),
)


def samples() -> Path:
    """The package's photos beside the visitors', so that no address says where the package is."""
    return Path(os.environ["GRADIO_TEMP_DIR"]).parent / "samples"


def _address(value: Any) -> str:
    address = (value.get("path") or value.get("url")) if isinstance(value, dict) else value
    return address if isinstance(address, str) else ""


def names_web_address(value: Any) -> bool:
    """Whether an argument names, at any depth, a file that Gradio would fetch."""
    if isinstance(value, dict):
        path = str(value.get("path") or "").lower().lstrip()
        return path.startswith(("http:", "https:")) or any(map(names_web_address, value.values()))
    return isinstance(value, (list, tuple)) and any(map(names_web_address, value))


# In front of the app


LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_loopback(host: str) -> bool:
    """Whether a server that listens on a name or an address is reached from this machine only."""
    if host.lower().rstrip(".") in LOOPBACK:
        return True
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}  # as the server's own socket reads it
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in found)


def upload_limit(hosts: Collection[str]) -> int:
    """Bytes of a file: where only this machine reaches the app, inversions of full-size models can be sent, too."""
    return MAX_INVERSION_BYTES if hosts else MAX_PHOTO_BYTES


class Door:
    """Refuses requests for another host name, and those that are too large, with one sentence.

    Any web site can give its own name the address of this machine (DNS rebinding); the browser then lets its scripts
    read what an app answers here.
    """

    def __init__(self, app: Any, *, hosts: Sequence[str] = ()) -> None:
        """Wrap an app. `hosts` are its names without a port; none means any."""
        self.app, self.hosts = app, {name.lower().rstrip(".") for name in hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Look at the head of a request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = re.sub(r":\d*$", "", headers.get("host", "").strip().lower()).strip("[]").rstrip(".")
            if self.hosts and host not in self.hosts:
                words = (
                    f"This app answers only as {' or '.join(sorted(self.hosts))}, not as {host[:80]!r}. If the name is "
                    "a proxy's, start the app with it: `stylegan-inversion app --allow-host NAME`."
                )
                return await JSONResponse({"detail": words}, 403)(scope, receive, send)
            is_upload = scope["path"].endswith("/upload")
            limit = upload_limit(self.hosts) + 4_000_000 if is_upload else MAX_REQUEST_BYTES  # with what is around it
            words = f"The request is larger than {limit / 1e6:g} MB. Send a smaller file."
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length[:15]) > limit:
                return await JSONResponse({"detail": words}, 413)(scope, receive, send)
        begun, came = False, 0

        async def counted() -> Any:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if scope["type"] == "http" and came > limit:  # of a body that does not tell its length
                raise HTTPException(413, words)
            return message

        async def answer(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, answer)
        except Exception as e:  # such as arguments with other names, for which Gradio has no answer
            if begun or scope["type"] != "http":
                raise
            logger.warning("A request could not be read: %s", type(e).__name__)
            words = "The request cannot be read; `/gradio_api/info` says what each endpoint takes."
            await JSONResponse({"detail": words}, 422)(scope, receive, send)


def sweep(folder: Path, *, older_than: float) -> None:
    """Delete what Gradio forgets: uploads that broke off, what language models sent, and empty folders."""
    for path in sorted(folder.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):  # such as a folder that is not empty
            if time.time() - path.stat().st_ctime > older_than:
                path.rmdir() if path.is_dir() else path.unlink()
