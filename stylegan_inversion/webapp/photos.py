"""What a visitor may send: the one door for every file whose path stands in a request."""

import contextlib
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from stylegan_inversion.webapp.messages import gr

MAX_PHOTO_BYTES = 20_000_000
MAX_PATHS = 64  # in one request
NOT_UPLOADED = "This file was not uploaded here, is too large, or has expired. Upload it again."

_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)  # Windows has neither


class NotUploadedError(ValueError):
    """A path is not that of an upload. The sentence is the same whether there is such a file or not."""

    def __init__(self) -> None:
        super().__init__(NOT_UPLOADED)


class Upload(bytes):
    """A photo's file as it came, and where it lies."""

    path: Path


def open_upload(path: str, *, max_bytes: int | None = None) -> BinaryIO:
    """Open a file that was uploaded to this app. Nothing else on the machine is opened, waited for or touched.

    Opening counts as use: the file's time to be deleted begins anew.

    Args:
        path: As a visitor sends it.
        max_bytes: How large it may be. `None` leaves that to the limit on uploads.

    Raises:
        NotUploadedError: If it is larger, or no regular file in a folder inside `GRADIO_TEMP_DIR`, `Janitor`'s own.
    """
    try:
        real = Path(path).resolve(strict=True)
        folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve(strict=True)
        if folder not in real.parent.parents:  # directly in it lie uploads that are not whole yet
            raise NotUploadedError
        file = open(real, "rb", opener=lambda name, flags: os.open(name, flags | _NEVER_WAIT))
        with contextlib.ExitStack() as refused:
            refused.enter_context(file)
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or (max_bytes is not None and status.st_size > max_bytes):
                raise NotUploadedError
            os.utime(real)
            refused.pop_all()
        return file
    except (OSError, ValueError, RuntimeError, KeyError):  # KeyError: the app has ended; RuntimeError: a loop of links
        raise NotUploadedError from None


def names_other_files(content: Any) -> bool:
    """Whether any `{"path": ...}` in the JSON of a request is not that of an upload, whatever it is sent for."""
    waiting, paths = [content], set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            if isinstance(each.get("path"), str):
                paths.add(each["path"])
            waiting += each.values()
    if len(paths) > MAX_PATHS:
        return True
    try:
        for path in paths:
            open_upload(path).close()
    except NotUploadedError:
        return True
    return False


def photo_input(**settings: Any) -> Any:
    """A `gr.Image` that gives the file as it came: `load_image` knows more formats, limits and ways out than Gradio."""

    def read(payload: Any) -> Upload | None:
        if payload is None or not payload.path:
            return None
        try:
            with open_upload(payload.path, max_bytes=MAX_PHOTO_BYTES) as file:
                upload = Upload(file.read())
        except NotUploadedError as e:
            raise gr.Error(str(e), print_exception=False) from e
        upload.path = Path(file.name)
        return upload

    photo: Any = gr.Image(label="Photo", type="filepath", format="png", **settings)
    photo.preprocess = read
    return photo


def folder_input(**settings: Any) -> Any:
    """A `gr.File` that gives the paths of the files of one folder."""

    def read(payload: Any) -> list[Path]:
        paths = []
        try:
            for each in payload or []:
                with open_upload(each.path) as file:
                    paths.append(Path(file.name))
        except NotUploadedError as e:
            raise gr.Error(str(e), print_exception=False) from e
        return paths

    files: Any = gr.File(file_count="directory", **settings)
    files.preprocess = read
    return files
