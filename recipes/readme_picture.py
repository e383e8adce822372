"""The row of pictures on top of the README: a bundled portrait and four edits, each pasted back.

usage: python recipes/readme_picture.py [docs/edits.jpg]
"""

import argparse
from pathlib import Path

from PIL import Image

from stylegan_inversion import PTIPipeline, storage
from stylegan_inversion.pipelines.receipts import mark
from stylegan_inversion.preprocessing.image import save_image

PHOTO = "samples/portraits/portrait1.jpg"
EDITS = ({}, {"smile": -4.0}, {"age": 4.0}, {"yaw": 4.0}, {"yaw": -5.0})
SIDE = 206  # pixels of the photo, and of the picture: nothing is resized


def main() -> None:
    """Invert with PTI, edit, cut the same square out of each photo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=Path("docs/edits.jpg"))
    args = parser.parse_args()
    pipeline = PTIPipeline.from_pretrained("faces64", device="cpu", detector="builtin")
    out = pipeline(storage.builtin_path(PHOTO), preset="fast", seed=0)
    x, y = out.crops[0].quad.mean(0)
    left, top = round(x - SIDE / 2), round(y - SIDE / 2)
    row = Image.new("RGB", (len(EDITS) * (SIDE + 4) - 4, SIDE), "white")
    for i, edit in enumerate(EDITS):
        photo = pipeline.paste_back(pipeline.edit(out, **edit))[0]
        row.paste(photo.crop((left, top, left + SIDE, top + SIDE)), (i * (SIDE + 4), 0))
    save_image(row, args.path, quality=90, xmp=mark("edited"))


if __name__ == "__main__":
    main()
