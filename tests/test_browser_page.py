"""The page that runs in the browser alone, in Chromium, against what Python makes of the same photos."""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stylegan_inversion import E4EPipeline
from stylegan_inversion.storage import builtin_path
from tests.test_spaces import script
from tests.webapp.marks import EDITED, read_mark

pytest.importorskip("onnxscript")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium or Chrome on this machine"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm on this machine, which gives the runtime"),
]
PORTRAITS = builtin_path("samples") / "portraits"
STRENGTHS = {"smile": 3.0, "age": -2.0, "yaw": 2.0}

# Keeps the codes that the page's worker finds.
LISTEN = """window.codes = [];
const Plain = Worker;
window.Worker = class extends Plain {
    constructor(...given) {
        super(...given);
        this.addEventListener("message", ({ data: { result } }) => result?.w_plus && codes.push([...result.w_plus]));
    }
};"""
PIXELS = """canvas => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
    copy.drawImage(canvas, 0, 0);
    return Array.from(copy.getImageData(0, 0, canvas.width, canvas.height).data);
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("browser") / "page"
    script.assemble_browser(target)
    return target


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def context(folder: Path) -> Iterator[Any]:
    """A browser that has loaded the page, and whose server has gone since: all that follows is offline."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(120_000)
        context.url = f"http://127.0.0.1:{server.server_port}/"
        page = context.new_page()
        page.goto(context.url)
        says(page, "An example.")
        page.close()
        server.shutdown()
        server.server_close()
        yield context
        browser.close()


@pytest.fixture
def page(context: Any) -> Iterator[Any]:
    wrong: list[str] = []
    page = context.new_page()
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.add_init_script(LISTEN)
    page.goto(context.url)
    says(page, "An example.")
    yield page
    page.close()
    assert not wrong


def says(page: Any, words: str) -> None:
    page.locator("#status", has_text=words).wait_for()


def shoot(page: Any, name: str) -> None:
    shots = os.environ.get("STYLEGAN_INVERSION_SCREENSHOTS")
    if shots:
        page.screenshot(path=Path(shots) / f"{name}.png", full_page=True)


def slide(page: Any, *, rest: bool = True, **strengths: float) -> None:
    for name, strength in strengths.items():
        move = "(slider, [to, rest]) => { slider.value = to; slider.oninput(); if (rest) slider.onchange(); }"
        page.locator(f"#edit-{name}").evaluate(move, [strength, rest])


def picture(page: Any) -> np.ndarray:
    page.wait_for_timeout(1500)
    return np.array(page.locator("#picture").evaluate(PIXELS), dtype=int)


@pytest.fixture(scope="module")
def pipe() -> E4EPipeline:
    return E4EPipeline.from_pretrained("faces64", detector="builtin")


def make_photo(name: str, folder: Path) -> Path:
    """A portrait as it is, turned in a large photo, and with an edge of the photo across the face's crop."""
    if name == "portrait":  # of the first, a coordinate lies between two hundredths, to which both round
        return PORTRAITS / "portrait2.jpg"
    with Image.open(PORTRAITS / "portrait1.jpg") as photo:
        turned = photo.rotate(7, expand=True, resample=Image.Resampling.BICUBIC).resize((1500, 1500))
        made = turned if name == "turned" else photo.crop((150, 60, 330, 260))
    made.save(folder / f"{name}.png")
    return folder / f"{name}.png"


@pytest.mark.parametrize("name", ["portrait", "turned", "edge"])
def test_the_page_gives_what_python_gives(name: str, page: Any, pipe: E4EPipeline, tmp_path: Path) -> None:
    path = make_photo(name, tmp_path)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("#file").set_input_files(path)
    says(page, "Move a slider.")
    slide(page, **STRENGTHS)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG").click()
    with Image.open(download.value.path()) as saved:
        got = np.asarray(saved.convert("RGB"), dtype=int)
    out = pipe(path)
    codes = page.evaluate("codes")
    assert len(codes) == 2 and np.abs(codes[-1] - out.w_plus.numpy().ravel()).max() < 1e-3  # the example's is the first
    (pasted,) = pipe.paste_back(pipe.edit(out, **STRENGTHS), detail="add")
    difference = np.abs(got - np.asarray(pasted, dtype=int))
    changed = (np.asarray(pasted) != np.asarray(out.crops[0].photo)).any(axis=2)
    assert changed.mean() > 0.02 and difference.max() <= 2 and difference[changed].mean() < 0.1
    assert read_mark(download.value.path()) == EDITED
    assert all(url.startswith("blob:") for url in asked), asked


def test_the_view_follows_the_slider(page: Any, context: Any) -> None:
    original = picture(page)
    slide(page, smile=2.5), picture(page)
    slide(page, smile=3.3, rest=False), picture(page)
    slide(page, smile=2.8, rest=False)  # between two drawn faces
    moving = picture(page)
    slide(page, smile=2.8)
    still = picture(page)
    assert np.abs(still - original).max() > 20 and np.abs(moving - still).max() <= 4
    shoot(page, "browser-wide")
    button = page.get_by_role("button", name="Show the original")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true" and (picture(page) == original).all()
    page.get_by_label("Yaw").focus()
    page.keyboard.press("ArrowLeft")
    assert button.get_attribute("aria-pressed") == "false" and np.abs(picture(page) - original).max() > 20
    page.get_by_role("button", name="Reset").click()
    assert page.get_by_label("Smile").input_value() == "0" and (picture(page) == original).all()
    assert page.get_by_role("button", name="Save as JPEG").is_disabled()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    shoot(page, "browser-phone")


def test_several_faces(page: Any) -> None:
    page.locator("#file").set_input_files(builtin_path("samples") / "sample1.jpg")
    says(page, "Move a slider.")
    choice, codes = page.get_by_label("Face"), page.evaluate("codes")
    assert choice.locator("option").all_inner_texts() == ["1, the largest", "2", "3"]
    choice.select_option("2")
    says(page, "Move a slider.")
    page.wait_for_timeout(1500)
    assert len(page.evaluate("codes")) == len(codes) + 1
    slide(page, age=3.0)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JPEG").click()
    assert download.value.suggested_filename == "sample1-edited.jpeg"
    assert read_mark(download.value.path()) == EDITED


def test_what_is_refused(page: Any, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "gray").save(tmp_path / "grey.png")
    Image.new("L", (8000, 5100)).save(tmp_path / "huge.png")
    Image.new("RGB", (300, 8)).save(tmp_path / "flat.png")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "notes.txt").write_text("no picture")
    sentences = {
        "grey.png": "No face was found in the photo.",
        "huge.png": "The photo has 41 megapixels; at most 40 are read. Shrink it first.",
        "flat.png": "The photo is too small: 300 x 8 pixels.",
        "phone.heic": "This is a HEIC photo or a video, which this browser cannot read.",
        "notes.txt": "This file is not a picture that the browser can read.",
    }
    for name, sentence in sentences.items():
        page.locator("#file").set_input_files(tmp_path / name)
        says(page, sentence)
        assert page.get_by_label("Smile").is_disabled()
    page.locator("#file").set_input_files(PORTRAITS / "portrait3.jpg")
    says(page, "Move a slider.")
    assert page.get_by_label("Smile").is_enabled()
