import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from stylegan_inversion.webapp.janitor import Janitor
from stylegan_inversion.webapp.models import Models
from stylegan_inversion.webapp.sessions import Sessions

if TYPE_CHECKING:
    from stylegan_inversion.webapp.actions import Actions
    from stylegan_inversion.webapp.models import Model
    from tests.webapp.tiny_app import Served

Connect = Callable[..., Any]
Open = Callable[..., Any]
Visit = Callable[..., Any]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Served]":
    """One running app for all tests of a file, with a tiny model that has every method."""
    pytest.importorskip("gradio")
    from tests.webapp.tiny_app import serve, tiny_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.delenv("GRADIO_TEMP_DIR", raising=False)
        with serve(tiny_model(), tmp_path_factory.mktemp("server")) as served:
            yield served


@pytest.fixture
def model(app: "Served") -> "Model":
    """The model that the app serves."""
    return app.model


@pytest.fixture
def actions(tmp_path: Path) -> "Iterator[Actions]":
    """The work behind the app, on the tiny model, without a server."""
    pytest.importorskip("gradio")
    from stylegan_inversion.webapp.actions import Actions
    from tests.webapp.tiny_app import tiny_model

    with Janitor(tmp_path / "files") as janitor:
        yield Actions(Models(tiny_model()), Sessions(), janitor)


@pytest.fixture(scope="module")
def connect(app: "Served", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connect]:
    """A program that uses the app: always the same one, or another one if `connect(new=True)`."""
    gradio_client = pytest.importorskip("gradio_client")
    clients: list[Any] = []

    def client(*, new: bool = False) -> Any:
        if new or not clients:
            folder = tmp_path_factory.mktemp("client")
            clients.append(gradio_client.Client(app.url, verbose=False, download_files=folder))
        return clients[-1 if new else 0]

    yield client
    for each in clients:
        each.close()


@pytest.fixture
def visit(app: "Served") -> Iterator[Visit]:
    """Each call is another visitor of the page."""
    from tests.webapp.visitor import Visitor

    visitors: list[Visitor] = []

    def visitor(**options: Any) -> Visitor:
        visitors.append(Visitor(app.url, **options))
        return visitors[-1]

    yield visitor
    for each in visitors:
        each.close()


@pytest.fixture
def file(photo: Image.Image, tmp_path: Path) -> Any:
    photo.save(tmp_path / "photo.png")
    return pytest.importorskip("gradio_client").handle_file(tmp_path / "photo.png")


@pytest.fixture
def steps(app: "Served", monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each step of PTI was taken."""
    taken: list[float] = []
    perceptual = app.model.pti.perceptual
    distance = perceptual.distance

    def counted(*features: Any) -> Any:
        taken.append(time.monotonic())
        return distance(*features)

    monkeypatch.setattr(perceptual, "distance", counted)
    return taken


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.webapp.page import CHROMIUM, playwright

    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, app: "Served") -> Iterator[Open]:
    """Each call is another visitor. In the end nothing was wrong in the console, and nothing left the machine."""
    from tests.webapp.page import WIDE

    contexts, wrong = [], []

    def new(viewport: dict[str, int] = WIDE, **options: Any) -> Any:
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.on("console", lambda said: wrong.append(f"{said.text} {said.location}") if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if is_here(asked.url, app) else wrong.append(asked.url))
        page.on("requestfailed", lambda asked: wrong.append(f"failed: {asked.url}") if "/theme" in asked.url else None)
        page.goto(app.url)
        page.wait_for_selector("text=How it works")
        return page

    yield new
    for context in contexts:
        context.close()
    assert not wrong


def is_here(url: str, app: "Served") -> bool:
    return url.startswith((app.url, "data:", "blob:"))


@pytest.fixture
def path(photo: Image.Image, tmp_path: Path) -> Path:
    photo.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"
