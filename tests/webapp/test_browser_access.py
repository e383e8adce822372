"""The page for everyone: on a phone, without colours that are hard to read, without a mouse."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.webapp.checks import until
from tests.webapp.conftest import Open
from tests.webapp.page import IN_CHROMIUM, PHONE, button, invert, pictures, settle, shoot, source, tab, upload

pytestmark = IN_CHROMIUM


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
