import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from stylegan_inversion.webapp.models import Model
    from tests.webapp.tiny_app import Served


@pytest.fixture(scope="module")
def model() -> "Model":
    """A tiny model that has every method."""
    from tests.webapp.tiny_app import tiny_model

    return tiny_model()


@pytest.fixture(scope="module")
def app() -> "Iterator[Served]":
    """One running app for all tests of a file, with a tiny model that has every method."""
    pytest.importorskip("gradio")
    from tests.webapp.tiny_app import serve, tiny_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        with serve(tiny_model()) as served:
            yield served


@pytest.fixture
def path(photo: Image.Image, tmp_path: Path) -> Path:
    photo.save(tmp_path / "my photo.png")
    return tmp_path / "my photo.png"


@pytest.fixture
def file(path: Path) -> Any:
    return pytest.importorskip("gradio_client").handle_file(path)


@pytest.fixture
def connect(app: "Served", tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Each call is another program that uses the app."""
    gradio_client = pytest.importorskip("gradio_client")
    clients: list[Any] = []

    def client() -> Any:
        clients.append(gradio_client.Client(app.url, verbose=False, download_files=tmp_path / f"client{len(clients)}"))
        return clients[-1]

    yield client
    for each in clients:
        each.close()


def until(condition: Callable[[], Any], seconds: float = 90.0) -> None:
    """Wait, and let others run meanwhile; fails if it takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
