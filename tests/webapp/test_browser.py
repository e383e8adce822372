"""What a visitor does on the page, in Chromium. Screenshots go to `STYLEGAN_INVERSION_SCREENSHOTS`, if that is set."""

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stylegan_inversion import InversionOutput
from tests.webapp.conftest import until
from tests.webapp.marks import EDITED, read_mark
from tests.webapp.tiny_app import Served

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium or Chrome on this machine"),
]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SAVES = ("Save photo as JPEG", "Save photo as PNG", "Save face as PNG", "Save animation (GIF)", "Save all (zip)")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, app: Served) -> Iterator[Open]:
    """Each call is another visitor. In the end nothing was wrong in the console, and nothing left the machine."""
    contexts, wrong = [], []

    def new(viewport: dict[str, int] = WIDE, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        here = (app.url, "data:", "blob:")
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(here) else wrong.append(asked.url))
        page.goto(app.url)
        says(page, "An example.")
        page.wait_for_selector("#result img")
        return page

    yield new
    for context in contexts:
        context.close()
    assert not wrong


def shoot(page: Any, name: str) -> None:
    folder = os.environ.get("STYLEGAN_INVERSION_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(600)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def says(page: Any, words: str) -> None:
    page.wait_for_function("words => document.querySelector('.status')?.textContent.includes(words)", arg=words)


def drop(page: Any, path: Path) -> None:
    page.locator("#photos input[type=file]").set_input_files(path)
    says(page, "Sharper version ready")


def sources(page: Any, where: str = "#result") -> list[str]:
    return page.locator(f"{where} img").evaluate_all("all => all.map(x => x.src)")


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).locator("visible=true").first.click()


def save(page: Any, name: str, folder: Path) -> Path:
    with page.expect_download() as download:
        press(page, name)
    download.value.save_as(folder / download.value.suggested_filename)
    return folder / download.value.suggested_filename


def test_from_the_photo_to_the_files(open_page: Open, path: Path, tmp_path: Path, photo: Image.Image) -> None:
    page = open_page()
    shoot(page, "01-start")
    assert page.locator("#photos input[type=file]").get_attribute("accept") == "image/jpeg,image/png,image/webp"
    example = sources(page)
    drop(page, path)  # nothing is clicked
    until(lambda: sources(page) != example)
    before = sources(page)
    press(page, "Smile")
    until(lambda: sources(page)[1] != before[1])
    assert sources(page)[0] == before[0]
    shoot(page, "02-edited")
    page.get_by_role("slider", name=re.compile("Smile")).first.focus()
    edited = sources(page)
    page.keyboard.press("ArrowLeft")  # no mouse needed
    until(lambda: sources(page)[1] != edited[1])
    saved = {name: save(page, name, tmp_path) for name in SAVES}
    assert saved[SAVES[0]].name == "my_photo-edited.jpg"
    assert [read_mark(saved[name]) for name in SAVES[:4]] == [EDITED] * 4
    with Image.open(saved[SAVES[1]]) as image:
        assert image.size == photo.size and image.format == "PNG"
    with zipfile.ZipFile(saved[SAVES[4]]) as archive:
        archive.extractall(tmp_path / "all")
    assert "smile" in InversionOutput.load(tmp_path / "all").edits
    edited = sources(page)
    press(page, "Reset")
    until(lambda: sources(page)[1] != edited[1])
    press(page, "Delete my data now")
    says(page, "Deleted: your photo")
    assert not page.get_by_role("button", name=SAVES[0]).is_enabled()


def test_before_and_after_are_in_register(open_page: Open, photo: Image.Image, tmp_path: Path) -> None:
    page = open_page()
    for width, height in ((240, 320), (320, 240), (300, 300)):
        photo.resize((width, height)).save(tmp_path / f"{width}.png")
        old = sources(page)
        drop(page, tmp_path / f"{width}.png")
        until(lambda old=old: sources(page) != old)  # type: ignore[misc]
        page.wait_for_timeout(300)
        a, b = (each.bounding_box() for each in page.locator("#result img").all())
        assert all(abs(a[side] - b[side]) <= 2 for side in ("x", "y", "width", "height")), (a, b)


def test_a_click_chooses_the_face(open_page: Open, path: Path) -> None:
    page = open_page()
    drop(page, path)
    says(page, "2 faces: click one in the photo.")
    page.get_by_role("tab", name="Whole photo").click()
    first, whole = sources(page), page.locator("#whole img")
    box = whole.bounding_box()
    left, top = (box["width"] - 320) / 2, (box["height"] - 240) / 2  # a small photo is shown at its own size
    whole.click(position={"x": left + 250, "y": top + 100})
    until(lambda: sources(page) != first)
    says(page, "Sharper version ready")
    shoot(page, "03-other-face")


def test_an_old_result_is_marked_as_such(open_page: Open, path: Path, app: Served) -> None:
    page = open_page()
    page.locator("#photos input[type=file]").set_input_files(path)
    page.wait_for_selector(".status.stale", state="attached")
    says(page, "Sharper version ready")
    assert not page.locator(".status.stale").count()
    path.with_name("no.png").write_bytes(path.read_bytes()[:200])
    page.locator("#photos input[type=file]").first.set_input_files(path.with_name("no.png"))
    says(page, "damaged or incomplete")
    assert page.locator(".status.stale").count() and not page.get_by_role("button", name=SAVES[1]).is_enabled()


def test_stop(open_page: Open, path: Path, app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = type(app.model.tuner).plan
    monkeypatch.setattr(
        type(app.model.tuner),
        "plan",
        lambda self, *given, **named: plan(self, *given, **named)._replace(num_tuning_steps=9999),
    )
    page = open_page()
    page.locator("#photos input[type=file]").set_input_files(path)
    says(page, "of 9999")
    before = sources(page)
    press(page, "Older") if page.get_by_role("button", name="Older").count() else press(page, "Smile")
    until(lambda: sources(page) != before)  # the sliders are live meanwhile
    shoot(page, "04-sharpening")
    press(page, "Stop, keep what there is")
    says(page, "Sharper version ready")


def test_a_reload_and_two_visitors(open_page: Open, path: Path) -> None:
    page, other = open_page(), open_page()
    drop(page, path)
    mine = page.locator("#result img").first.evaluate("x => x.naturalWidth")
    assert sources(other) != sources(page)
    page.reload()
    says(page, "Your last result is back.")
    until(lambda: page.locator("#result img").first.evaluate("x => x.naturalWidth") == mine)
    press(page, "Smile")
    other.reload()
    says(other, "An example.")


def test_compare_and_play(open_page: Open, path: Path) -> None:
    page = open_page()
    drop(page, path)
    assert not page.get_by_role("tab", name="Draw", exact=True).count()  # the model reads photos
    page.get_by_role("tab", name="Compare methods").click()
    press(page, "Compare")
    page.wait_for_selector("text=Done.")
    shoot(page, "05-compared")
    page.locator("#compared button img").nth(1).click()
    says(page, "This method's result.")
    page.get_by_role("tab", name="Play").click()
    assert not page.get_by_role("button", name="Mix").is_enabled()
    press(page, "One from my photo")
    press(page, "Another at random")
    until(lambda: page.get_by_role("button", name="Mix").is_enabled())
    page.get_by_label("Features").check()
    press(page, "Mix")
    until(lambda: page.get_by_role("button", name="Edit the result").is_enabled())
    shoot(page, "06-played")
    press(page, "Edit the result")
    says(page, "The mixture")


def test_on_a_phone(open_page: Open, path: Path) -> None:
    page = open_page(PHONE, has_touch=True, is_mobile=True)

    def width() -> int:
        return page.evaluate("document.documentElement.scrollWidth")

    assert width() <= 390
    photos, camera = (page.locator(each).bounding_box() for each in ("#photos", "#photos [aria-label*=camera]"))
    assert camera["y"] + camera["height"] <= photos["y"] + photos["height"]  # nothing is cut off
    shoot(page, "07-phone")
    drop(page, path)
    assert width() <= 390
    page.get_by_role("slider", name=re.compile("Smile")).first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    top = page.locator("#result").bounding_box()["y"]
    assert -300 < top < 500  # the face stays in sight
    shoot(page, "08-phone-done")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(scheme: str, open_page: Open, path: Path) -> None:
    axe = (Path(pytest.importorskip("axe_core_python").__file__).parent / "axe.min.js").read_text()
    page = open_page(color_scheme=scheme)
    found: list[str] = []

    def check(where: str) -> None:
        page.wait_for_timeout(500)  # colours fade in
        page.evaluate(axe)
        for each in page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]:
            parts = [node["html"][:150] for node in each["nodes"][:3]]
            found.append(f"{where}: {each['impact']} {each['id']} ({each['help']}) {parts}")
        shoot(page, f"09-{scheme}-{where}")

    check("start")
    drop(page, path)
    for name in ("More changes", "Model"):
        page.locator(".label-wrap", has_text=name).first.click()
    check("done")
    for name in ("Whole photo", "What the model draws", "Compare methods", "Play"):
        page.get_by_role("tab", name=name).click()
        check(name)
    assert page.evaluate("document.documentElement.lang") == "en"
    assert not found, "\n".join(found)
