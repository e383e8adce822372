"""What stands in front of the app: other host names, requests that are too large, paths of other files, old files."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
from stylegan_inversion.errors import InvalidImageError  # noqa: E402
from stylegan_inversion.preprocessing.sources import LabelSource  # noqa: E402
from stylegan_inversion.webapp.app import private_folder  # noqa: E402
from stylegan_inversion.webapp.photos import (  # noqa: E402
    LOOPBACK,
    NOT_UPLOADED,
    is_loopback,
    read_photo,
    read_upload,
    sweep,
)
from tests.webapp.tiny_app import Served, serve, tiny_model  # noqa: E402


@pytest.fixture(scope="module")
def app() -> Iterator[Served]:
    with serve(tiny_model(), hosts=[*LOOPBACK, "Demo.example.org"]) as served:
        yield served


@pytest.fixture
def folder() -> Iterator[Path]:
    with private_folder() as folder:
        yield Path(folder)


def ask(app: Served, host: str) -> Any:
    return httpx.post(f"{app.url}/gradio_api/call/models", json={"data": []}, headers={"host": host})


def test_only_the_apps_own_names(app: Served) -> None:
    port = app.url.rpartition(":")[2]
    for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]", "demo.example.org", "localhost."):
        assert ask(app, f"{name}:{port}").status_code == ask(app, name).status_code == 200, name
    for host in ("evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::2]:1"):
        assert ask(app, host).status_code == 403
        assert "--allow-host NAME" in ask(app, host).json()["detail"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("127.1", True), ("0.0.0.0", False), ("no.such", False)],
)
def test_what_is_reached_from_this_machine_only(host: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if host == "no.such":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *given: (_ for _ in ()).throw(OSError()))
    assert is_loopback(host) is expected


def test_what_is_too_large_or_no_request(app: Served) -> None:
    large = httpx.post(f"{app.url}/gradio_api/call/models", content=b"x" * 31_000_000)
    assert large.status_code == 413 and "larger than 30 MB" in large.json()["detail"]
    sent = {"files": ("x.zip", b"x" * 26_000_000)}  # only this machine reaches this one
    assert httpx.post(f"{app.url}/gradio_api/upload", files=sent).status_code == 200
    unknown = httpx.post(f"{app.url}/gradio_api/call/v2/faces", content=(b" " * 1_000_000 for _ in range(31)))
    assert unknown.status_code == 413 and "larger than 30 MB" in unknown.json()["detail"]
    odd = httpx.post(f"{app.url}/gradio_api/call/v2/faces", json={"nobody": 1})
    assert odd.status_code == 422 and "/gradio_api/info" in odd.json()["detail"]


def test_only_uploads_are_opened(folder: Path, photo: Image.Image, tmp_path: Path) -> None:
    upload, other = folder / "hash" / "my photo.png", tmp_path / "other.png"
    upload.parent.mkdir()
    photo.save(upload)
    photo.save(other)
    opened = read_photo({"path": str(upload)})
    assert (opened.name, opened.path, opened.image.size) == ("my_photo", upload.resolve(), photo.size)
    (folder / "hash" / "link.png").symlink_to(other)
    os.mkfifo(folder / "hash" / "pipe")
    photo.save(folder / "partial.png")
    refused = [other, folder / "hash" / "link.png", folder / "hash" / "pipe", folder / "partial.png", folder / "hash"]
    for path in [*map(str, refused), f"{upload.parent}/../../x", "x\0y", "/dev/zero", "a" * 5000, "no such file"]:
        with pytest.raises(ValueError, match=NOT_UPLOADED[:30]):
            read_upload(path, max_bytes=10**6)
    with pytest.raises(ValueError, match="is too large"):
        read_upload(str(upload), max_bytes=10)


def test_a_label_map_passes_the_door_of_photos(folder: Path) -> None:
    path = folder / "hash" / "map.png"
    path.parent.mkdir(exist_ok=True)
    for shape, match in (((8000, 5001), "40 megapixels"), ((64, 64), "")):
        Image.new("L", shape, 3).save(path)
        with pytest.raises(InvalidImageError, match=match) if match else contextlib.nullcontext():
            photo = read_photo(str(path), LabelSource())
    assert photo.image.mode == "L" and photo.image.getextrema() == (3, 3)
    Image.new("L", (64, 64), 3).save(path, "GIF")
    with pytest.raises(InvalidImageError, match="GIF"):
        read_photo(str(path), LabelSource())
    with pytest.raises(ValueError, match="not uploaded"):
        read_photo(str(folder.parent / "samples" / "sample6.jpg"), LabelSource())


def test_old_files_go_and_the_folder_with_the_app(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "old").touch()
    sweep(folder, older_than=100.0)
    assert (folder / "a" / "old").exists()
    time.sleep(0.05)
    sweep(folder, older_than=0.01)
    assert not (folder / "a" / "old").exists() and os.environ["GRADIO_TEMP_DIR"] == str(folder)
    with private_folder() as inner:
        (Path(inner) / "face.png").touch()
    assert not Path(inner).exists() and os.environ["GRADIO_TEMP_DIR"] == str(folder)
