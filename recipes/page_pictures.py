"""Make the README's pictures of the web app, on a desktop and a phone: `docs/page.jpg`, `docs/page-phone.jpg`.

    python recipes/page_pictures.py

Needs `pip install '.[app,dev]'` and Chromium. It opens the page as a visitor does and waits for the example.
"""

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from stylegan_inversion.webapp.app import build_app, launch_options, private_folder, start
from stylegan_inversion.webapp.models import Models, load_model
from stylegan_inversion.webapp.studio import Studio

VIEWS = {"page": (1280, 860, 900), "page-phone": (390, 844, 390)}  # window, and width of the picture in pixels
DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Write both pictures, below 100 kB each."""
    with private_folder(), sync_playwright() as runner:
        demo = build_app(Studio(Models(load_model("faces64", device="cpu"))))
        url = start(demo, server_name="127.0.0.1", quiet=True, **launch_options())
        browser = runner.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        for name, (width, height, shown) in VIEWS.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(url)
            page.wait_for_function(
                "document.querySelector('.status')?.textContent.includes('An example.')", timeout=60_000
            )
            page.wait_for_timeout(1500)  # pictures fade in
            with Image.open(io.BytesIO(page.screenshot())) as image:
                picture = image.convert("RGB").resize((shown, round(shown * height / width)), Image.Resampling.LANCZOS)
            picture.save(DOCS / f"{name}.jpg", quality=82, optimize=True)
        browser.close()
        demo.close(verbose=False)


if __name__ == "__main__":
    main()
