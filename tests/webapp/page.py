"""What a visitor does on the page, in Chromium. Screenshots go to `STYLEGAN_INVERSION_SCREENSHOTS`, if that is set."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.webapp.checks import until

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
IN_CHROMIUM = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium or Chrome on this machine"),
]
WIDE, PHONE = {"width": 1400, "height": 1000}, {"width": 390, "height": 844}


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
    before = pictures(page)
    button(page, "Invert").click()
    until(lambda: len(now := pictures(page)) == 4 and now != before)  # those of the last one may still be there
    page.wait_for_selector("text=mean squared error")


def pictures(page: Any) -> list[str]:
    """Addresses of the faces and photos, before and after."""
    return page.locator("img[alt$=', before'], img[alt$=', after']").evaluate_all("all => all.map(x => x.src)")


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
