"""Step 2 of faces64: the sample photos, from the npm package @vladmandic/face-api 1.7.15 (MIT).

    python recipes/faces64/samples.py                          # fetches the package with `npm pack`
    python recipes/faces64/samples.py --npm-package DIR        # or takes an unpacked one

Writes stylegan_inversion/builtin/samples/sample1.jpg ... sample6.jpg: upright, sRGB, at most 1280 pixels a side,
without EXIF (the originals say where they were taken) and other metadata. Photos that are there are kept; `--force`
makes them again.
"""

import argparse
import logging
import shutil
from pathlib import Path

from face_tools import fetch_package
from PIL import Image

from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.storage import builtin_path

logger = logging.getLogger("samples")
LONGER_SIDE = 1280


def main() -> None:
    """Copy the photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npm-package", type=Path, help="unpacked npm package; fetched if not given")
    parser.add_argument("--output", type=Path, default=builtin_path("samples"))
    parser.add_argument("--force", action="store_true", help="make photos again that are there")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.output.mkdir(parents=True, exist_ok=True)
    names = [f"sample{number}.jpg" for number in range(1, 7)]
    todo = [name for name in names if arguments.force or not (arguments.output / name).is_file()]
    if not todo:
        logger.info("Nothing to do: %s holds all photos. --force makes them again.", arguments.output)
        return
    package = arguments.npm_package or fetch_package()
    for name in todo:
        photo = load_image(package / "demo" / name)  # drops all metadata
        photo.thumbnail((LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)
        photo.save(arguments.output / name, quality=92, optimize=True)
        logger.info("%s: %d x %d, %d KB", name, *photo.size, (arguments.output / name).stat().st_size // 1000)
    shutil.copyfile(package / "LICENSE", arguments.output / "LICENSE")


if __name__ == "__main__":
    main()
