"""The page as a visitor meets it, in Chromium. Screenshots go to `STYLEGAN_INVERSION_SCREENSHOTS`, if that is set."""

import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stylegan_inversion import InversionOutput
from stylegan_inversion.webapp.marking import read_mark
from tests.webapp.checks import until
from tests.webapp.tiny_app import Served

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium or Chrome on this machine"),
]

WIDE, PHONE = {"width": 1400, "height": 1000}, {"width": 390, "height": 844}
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
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


def is_here(url: str, app: Served) -> bool:
    return url.startswith((app.url, "data:", "blob:"))


@pytest.fixture
def path(photo: Image.Image, tmp_path: Path) -> Path:
    photo.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def shoot(page: Any, name: str) -> None:
    folder = os.environ.get("STYLEGAN_INVERSION_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(600)  # what moves or loads
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def button(page: Any, name: str) -> Any:
    """The one of this name that is shown."""
    return page.get_by_role("button", name=name, exact=True).locator("visible=true").first


def upload(page: Any, path: Path) -> None:
    page.locator("input[type=file][accept*=image]").first.set_input_files(path)
    page.wait_for_selector("text=2 faces were found: click on one.")
    page.wait_for_selector("img[alt='Aligned face']")


def invert(page: Any) -> None:
    button(page, "Invert").click()
    page.wait_for_selector("text=mean squared error")
    until(lambda: len(pictures(page)) == 4)


def pictures(page: Any) -> list[str]:
    """Addresses of the faces and photos, before and after."""
    return page.locator("img[alt$=', before'], img[alt$=', after']").evaluate_all("all => all.map(x => x.src)")


def choose_pti(page: Any, *, steps: int) -> None:
    page.get_by_text("PTI · nearest to the photo").click()
    page.get_by_role("button", name="PTI's settings").click()
    boxes = [page.get_by_label(f"number input for Steps of the {stage}") for stage in ("pivot", "tuning")]

    def are_set() -> bool:
        for box in boxes:
            box.fill(str(steps))
            box.press("Tab")
        settle(page)
        return all(box.input_value() == str(steps) for box in boxes)

    settle(page)
    until(are_set)


def settle(page: Any) -> None:
    """Let the page draw what was opened: Gradio sets all that it holds once more, a frame after it is there."""
    page.wait_for_timeout(100)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    settle(page)


def source(page: Any, alt: str) -> str | None:
    """Address of the shown picture of this name, if there is one now."""
    shown = page.locator(f"img[alt='{alt}']").locator("visible=true").evaluate_all("all => all.map(x => x.src)")
    return shown[0] if shown else None


def test_from_the_photo_to_the_download(open_page: Open, path: Path, tmp_path: Path) -> None:
    page = open_page()
    shoot(page, "01-start")
    upload(page, path)
    shoot(page, "02-faces")
    first = source(page, "Aligned face")
    page.locator("img[alt='Faces found']").click(position=at(page, 250, 100))
    until(lambda: source(page, "Aligned face") != first)
    assert page.get_by_label("Face 2").is_checked()
    second = source(page, "Aligned face")
    page.get_by_label("Face 1").check()
    until(lambda: source(page, "Aligned face") != second)
    shoot(page, "03-other-face")

    invert(page)
    shoot(page, "04-inverted")
    before = pictures(page)
    smile = page.get_by_role("slider", name="Smile").first
    smile.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    until(lambda: pictures(page) != before)
    until(lambda: page.get_by_label("number input for Smile").input_value() == "1")
    page.wait_for_timeout(500)
    shoot(page, "05-edited")
    edited = pictures(page)
    assert edited[0] == before[0] and edited[1] != before[1] and edited[2] == before[2] and edited[3] != before[3]

    got = {}
    assert not button(page, "PTI's delta").is_enabled()  # an encoder tunes nothing
    for name in ("Photo", "Face", "Latents", "Animation", "Everything (zip)"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).locator("visible=true").last.click()
        got[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(got[name])
    names = [each.name for each in got.values()]
    assert names[:3] == ["edited-photo.png", "edited-face.png", "latents.safetensors"] and names[3].endswith(".gif")
    assert [read_mark(got[name]) for name in ("Photo", "Face", "Animation")] == [EDITED] * 3
    with Image.open(got["Photo"]) as image:
        assert image.size == (320, 240)
    with zipfile.ZipFile(got["Everything (zip)"]) as archive:
        archive.extractall(tmp_path / "everything")
    assert InversionOutput.load(tmp_path / "everything").edits == {"smile": pytest.approx(1.0)}

    button(page, "Reset the sliders").click()
    until(lambda: page.get_by_label("number input for Smile").input_value() == "0")
    until(lambda: pictures(page)[1] not in (edited[1], before[1]))  # drawn anew
    button(page, "Delete my data now").click()
    page.wait_for_selector("text=Deleted: your photo, 1 result and all files.")
    page.wait_for_selector("text=How it works")
    until(lambda: not pictures(page) and source(page, "Aligned face") is None)
    shoot(page, "06-deleted")


def test_an_example(open_page: Open, path: Path) -> None:
    page = open_page()
    page.locator(".gallery-item").last.click()
    page.wait_for_selector("img[alt='Aligned face']")
    example = source(page, "Aligned face")
    invert(page)
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    upload(page, path)  # one of one's own is read as before
    until(lambda: source(page, "Aligned face") not in (None, example))
    invert(page)


def at(page: Any, x: float, y: float) -> dict[str, float]:
    """Where a pixel of the tiny photo is within the picture of the faces."""
    box = page.locator("img[alt='Faces found']").bounding_box()
    scale = min(box["width"] / 320, box["height"] / 240)
    left, top = (box["width"] - 320 * scale) / 2, (box["height"] - 240 * scale) / 2
    return {"x": left + x * scale, "y": top + y * scale}


@pytest.fixture
def unhurried(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """PTI with pauses: it goes on for long enough, and leaves the processor to the browser."""
    perceptual = app.model.pti.perceptual
    distance = perceptual.distance

    def slow(*features: Any) -> Any:
        time.sleep(0.1)
        return distance(*features)

    monkeypatch.setattr(perceptual, "distance", slow)


@pytest.mark.usefixtures("unhurried")
def test_pti_with_stop_and_with_cancel(open_page: Open, path: Path, app: Served) -> None:
    page, others = open_page(), owners(app)
    upload(page, path)
    choose_pti(page, steps=1000)
    button(page, "Invert").click()
    page.wait_for_selector("text=/step \\d+ of 2000/")
    page.wait_for_selector("text=/s left at most/")
    until(lambda: len(pictures(page)) == 4)
    shoot(page, "07-pti")
    button(page, "Stop, keep the best").click()
    page.wait_for_selector("text=stopped, best state kept")
    taken = re.search(r"(\d+) \+ (\d+) steps", page.locator("[role=status]").locator("visible=true").first.inner_text())
    assert taken is not None and int(taken[1]) + int(taken[2]) < 2000 and button(page, "Invert").is_enabled()
    with page.expect_download() as download:
        button(page, "PTI's delta").click()
    assert download.value.suggested_filename == "pti-delta.safetensors"
    shoot(page, "08-pti-stopped")
    assert len(owners(app) - others) == 1
    smile = page.get_by_role("slider", name="Smile").first
    before = pictures(page)
    smile.focus()
    page.keyboard.press("PageUp")
    until(lambda: pictures(page)[1] != before[1])

    button(page, "Invert").click()
    page.wait_for_selector("text=/step \\d+ of 2000/")
    kept = len(app.sessions)
    button(page, "Cancel").click()
    until(lambda: not app.sessions._running and button(page, "Invert").is_enabled())
    page.wait_for_selector("text=Reset the sliders")  # the last result is there again
    assert len(app.sessions) == kept and len(owners(app) - others) == 1
    before = pictures(page)
    smile.focus()
    page.keyboard.press("PageUp")
    until(lambda: len(now := pictures(page)) == 4 and now[1] != before[1])
    shoot(page, "09-pti-cancelled")


@pytest.mark.usefixtures("unhurried")
def test_invert_right_after_cancel(open_page: Open, path: Path) -> None:
    page = open_page()
    upload(page, path)
    choose_pti(page, steps=1000)
    for _ in range(4):  # as quick as a click can be
        page.get_by_text("PTI · nearest to the photo").click()
        button(page, "Invert").click()
        page.wait_for_selector("text=/step \\d+ of 2000/")
        button(page, "Cancel").click()
        until(lambda: button(page, "Invert").is_enabled())
        page.get_by_text("e4e · at once").click()
        invert(page)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("slowness", [1, 8])
def test_compare_all_methods(slowness: int, open_page: Open, path: Path) -> None:
    page = open_page()
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slowness})
    upload(page, path)
    tab(page, "Compare the methods")
    shoot(page, "10-compare-start")
    button(page, "Compare").click()
    page.wait_for_selector("text=Done. Move the slider to edit all of them.")
    names = ("e4e", "pSp", "PTI", "e4e, edited", "pSp, edited", "PTI, edited")
    until(lambda: all(source(page, name) for name in names))
    until(lambda: page.locator("img[alt='Photo']").locator("visible=true").count() == 2)  # on the left, too
    cells = page.locator(".figures td").all_inner_texts()
    assert [cells[i] for i in (0, 4, 8)] == ["e4e", "pSp", "PTI"] and len(cells) == 12
    assert all(re.fullmatch(r"-?\d+\.\d+", text.strip()) for i, text in enumerate(cells) if i % 4)
    shoot(page, "11-compared")
    before = {name: source(page, name) for name in names}
    page.get_by_role("slider", name="Strength").first.focus()
    page.keyboard.press("Home")
    until(lambda: all(source(page, name) != before[name] for name in names[3:]))
    assert all(source(page, name) == before[name] for name in names[:3])
    shoot(page, "12-compared-other-edit")


def test_play(open_page: Open) -> None:
    page = open_page()
    tab(page, "Play")
    button(page, "Mix").click()
    page.wait_for_selector("text=Fill place A first: take the edited face, or a random one.")
    shoot(page, "13-play-error")
    for i, place in enumerate("AB"):
        page.get_by_role("button", name="Random face").nth(i).click()
        until(lambda place=place: source(page, f"Face {place}"))  # type: ignore[misc]
    assert source(page, "Face A") != source(page, "Face B")
    button(page, "Mix").click()
    until(lambda: source(page, "A with styles of B"))
    button(page, "Animate from A to B").click()
    until(lambda: source(page, "From A to B and back"))
    until(lambda: button(page, "Download the animation").is_enabled())
    shoot(page, "14-play")
    with page.expect_download() as download:
        button(page, "Download the animation").click()
    assert download.value.suggested_filename.endswith(".gif")
    button(page, "Open in “Edit a photo”").click()
    page.wait_for_selector("text=A mixture of two faces, ready to be edited")
    until(lambda: len(pictures(page)) == 4)
    before = pictures(page)
    page.get_by_role("slider", name="Smile").first.focus()
    page.keyboard.press("PageUp")
    until(lambda: pictures(page)[1] != before[1])
    shoot(page, "15-play-opened")


@pytest.mark.usefixtures("unhurried")
def test_two_visitors_at_once(open_page: Open, path: Path, tmp_path: Path, app: Served) -> None:
    anna, bert = open_page(), open_page()
    before = owners(app)
    Image.new("RGB", (320, 240), "red").save(tmp_path / "red.png")
    upload(anna, path)
    upload(bert, tmp_path / "red.png")
    for page in (anna, bert):
        choose_pti(page, steps=1000)
    button(anna, "Invert").click()
    anna.wait_for_selector("text=/step \\d+ of 2000/")
    button(bert, "Invert").click()
    bert.wait_for_selector("text=Waiting for a free place · 1 before you")
    shoot(bert, "16-waiting")
    button(bert, "Cancel").click()
    bert.wait_for_selector("text=How it works")
    bert.get_by_text("e4e · at once").click()
    invert(bert)  # while her tuning goes on
    assert anna.locator("text=/step \\d+ of 2000/").count() == 1
    button(anna, "Stop, keep the best").click()
    anna.wait_for_selector("text=stopped, best state kept")
    both = owners(app) - before
    assert len(both) == 2
    assert not set(pictures(anna)) & set(pictures(bert))
    button(anna, "Delete my data now").click()
    anna.wait_for_selector("text=Deleted: your photo")
    assert len(both & owners(app)) == 1
    shown = pictures(bert)
    bert.get_by_role("slider", name="Smile").first.focus()
    bert.keyboard.press("PageUp")
    until(lambda: pictures(bert)[1] != shown[1])


@pytest.mark.usefixtures("unhurried")
def test_who_deletes_while_waiting_has_left_the_queue(open_page: Open, path: Path, app: Served) -> None:
    anna, bert, others = open_page(), open_page(), owners(app)
    for page in (anna, bert):
        upload(page, path)
        choose_pti(page, steps=1000)
    button(anna, "Invert").click()
    anna.wait_for_selector("text=/step \\d+ of 2000/")
    button(bert, "Invert").click()
    bert.wait_for_selector("text=Waiting for a free place")
    button(bert, "Delete my data now").click()
    bert.wait_for_selector("text=Deleted: your photo, 0 results and all files.")
    button(anna, "Stop, keep the best").click()
    anna.wait_for_selector("text=stopped, best state kept")
    anna.wait_for_timeout(1000)
    assert len(owners(app) - others) == 1 and not app.sessions._running


def owners(app: Served) -> set[str]:
    """Who has results."""
    return {entry.owner for entry in app.sessions._entries.values() if entry.owner}


def overflow(page: Any) -> int:
    """Pixels that the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def test_on_a_phone(open_page: Open, path: Path) -> None:
    page = open_page(PHONE, has_touch=True, is_mobile=True)
    assert overflow(page) <= 0
    shoot(page, "17-phone")
    upload(page, path)
    invert(page)
    assert overflow(page) <= 0
    shoot(page, "18-phone-inverted")
    for name in ("Compare the methods", "Play"):
        found = page.get_by_role("tab", name=name)
        if not found.is_visible():  # behind the three dots
            page.locator(".overflow-menu > button").click()
            page.locator(".overflow-dropdown").get_by_text(name).click()
        else:
            found.click()
        settle(page)
        assert overflow(page) <= 0
        shoot(page, f"19-phone-{name.split()[0].lower()}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(scheme: str, open_page: Open, path: Path) -> None:
    folder = Path(pytest.importorskip("axe_core_python", reason="pip install axe-core-python").__file__).parent
    axe = (folder / "axe.min.js").read_text()
    page = open_page(color_scheme=scheme)
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    found: list[str] = []

    def check(where: str) -> None:
        page.wait_for_timeout(400)  # colours fade in
        page.evaluate(axe)
        for each in page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]:
            if each["impact"] in ("serious", "critical"):
                parts = [node["html"][:150] for node in each["nodes"][:3]]
                found.append(f"{where}: {each['impact']} {each['id']} ({each['help']}) {parts}")
        shoot(page, f"20-{scheme}-{where}")

    check("start")
    upload(page, path)
    invert(page)
    check("inverted")
    for title in ("GANSpace", "SeFa", "Model"):
        page.get_by_role("button", name=re.compile(f"^{title}")).click()
    page.get_by_text("PTI · nearest to the photo").click()
    page.get_by_role("button", name="PTI's settings").click()
    check("opened")
    tab(page, "Compare the methods")
    check("compare")
    button(page, "Compare").click()
    page.wait_for_selector("text=Done. Move the slider")
    check("compared")
    tab(page, "Play")
    check("play")
    for i, place in enumerate("AB"):
        page.get_by_role("button", name="Random face").nth(i).click()
        until(lambda place=place: source(page, f"Face {place}"))  # type: ignore[misc]
    button(page, "Mix").click()
    until(lambda: source(page, "A with styles of B"))
    check("played")
    assert not found, "\n".join(found)


def test_everything_can_be_named_and_reached(open_page: Open, path: Path) -> None:
    page = open_page()
    assert page.evaluate("document.documentElement.lang") == "en" and page.title() == "StyleGAN inversion"
    upload(page, path)
    invert(page)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('img')].filter(x => x.checkVisibility() && !x.alt && !x.closest('button')"
        " && !x.src.startsWith('data:')).map(x => x.outerHTML)"
    )
    assert not unnamed
    before = pictures(page)
    button(page, "Invert").focus()
    page.keyboard.press("Enter")  # no mouse needed
    until(lambda: len(now := pictures(page)) == 4 and now[1] != before[1])
    status = page.locator("[role=status]").locator("visible=true")
    assert any("Done" in text for text in status.all_inner_texts())
