"""The row of pictures on top of the README: a bundled photo and three edits, each pasted back.

usage: python recipes/readme_picture.py [docs/edits.jpg]
"""

import argparse
from pathlib import Path

from PIL import Image

from stylegan_inversion import PTIPipeline
from stylegan_inversion.demo import sample_photos
from stylegan_inversion.preprocessing.image import save_image

PHOTO, FACE = 2, 2  # of the bundled photos, and of the faces in it
EDITS = ({}, {"smile": 4.0}, {"age": 5.0}, {"yaw": -6.0})
SIDE = 280  # pixels of the photo, and of the picture: nothing is resized


def main() -> None:
    """Invert with PTI, edit, cut the same square out of each photo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=Path("docs/edits.jpg"))
    args = parser.parse_args()
    pipeline = PTIPipeline.from_pretrained("faces64", device="cpu", detector="builtin")
    out = pipeline(sample_photos()[PHOTO], face=FACE, preset="fast", seed=0)
    x, y = out.crops[0].quad.mean(0)
    left, top = round(x - SIDE / 2), round(y - SIDE / 2)
    row = Image.new("RGB", (len(EDITS) * (SIDE + 4) - 4, SIDE), "white")
    for i, edit in enumerate(EDITS):
        photo = pipeline.paste_back(pipeline.edit(out, **edit))[0]
        row.paste(photo.crop((left, top, left + SIDE, top + SIDE)), (i * (SIDE + 4), 0))
    save_image(row, args.path, quality=90)


if __name__ == "__main__":
    main()
