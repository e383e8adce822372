"""The page as a visitor meets it, in Chromium."""

import re
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stylegan_inversion import InversionOutput
from stylegan_inversion.webapp.marking import read_mark
from tests.webapp.checks import until
from tests.webapp.conftest import Open
from tests.webapp.page import IN_CHROMIUM, button, invert, pictures, settle, shoot, source, tab, upload
from tests.webapp.tiny_app import Served

pytestmark = IN_CHROMIUM
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


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
    empty = page.locator(".icon-button-wrapper:not(:has(button, a))")  # Gradio's, a white speck on every picture
    assert empty.count() and not empty.locator("visible=true").count()
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
