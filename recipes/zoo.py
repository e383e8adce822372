"""Write the page of the known models from the catalogue, `docs/zoo.md`, and with `--pictures` its `docs/zoo.jpg`.

usage: python recipes/zoo.py [--pictures]

A test compares the page with the catalogue. The pictures are of faces64, which needs no download.
"""

import argparse
from pathlib import Path

from PIL import Image

from stylegan_inversion import PTIPipeline
from stylegan_inversion.catalogue import CatalogueEntry, catalogue, list_models
from stylegan_inversion.demo import sample_photos
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.pipelines.receipts import mark
from stylegan_inversion.preprocessing.image import save_image

DOCS = Path(__file__).parents[1] / "docs"
SIDE = 160  # pixels of a picture in the sheet
HEAD = """# Model zoo

Every model that this package knows by name. Those with a size are fetched, checked and converted once, at the first
use; the others are got by hand from their source, and `stylegan-inversion convert FILE FOLDER` makes a model of one.
The licence is what the copy and its origin say, and no legal advice. `python recipes/zoo.py` writes this page from the
package's `catalogue.json`; `stylegan-inversion models` lists the same, with what is on this disk.

## Built in

`faces64` ({size}, {licence}) needs no download: 64 x 64 pixels, with the encoders of e4e, pSp and
StyleFeatureEditor. From left to right: the photo, e4e, pSp, PTI (`preset="balanced"`), as the generator draws them.

![Three portraits, and how e4e, pSp and PTI draw them with faces64](zoo.jpg)

```bash
stylegan-inversion invert photo.jpg --model faces64 --method e4e --edit smile=2
```
"""
GROUPS = {  # kinds of the catalogue -> the command for an entry of the kind
    "Encoders, with their generators": {kind: f"invert photo.jpg --method {kind} --model {{}}" for kind in ENCODERS},
    "Generators": {"generator": "invert photo.jpg --model {}"},
    "Networks for losses and measures": {
        "identity": "evaluate FOLDER --identity {}",
        "moco": "train --loss.moco 0.5 --moco {} ...",
    },
    "Directions": {"direction": 'pipe.load_direction("{}", "NAME")', "ganspace": 'pipe.load_components("{}")'},
    "Not read": {"unread": ""},
}


def page() -> str:
    """The page's text."""
    known = {model.name: model for model in list_models()}
    built_in = known["faces64"]
    parts = [HEAD.format(size=f"{(built_in.size or 0) / 1e6:.0f} MB", licence="for non-commercial research")]
    for title, commands in GROUPS.items():
        rows = [_row(entry, commands[entry.kind]) for entry in catalogue() if entry.kind in commands]
        parts.append(
            "\n".join([f"## {title}", "", "| name | what | size | licence | use |", "|---|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


def _row(entry: CatalogueEntry, command: str) -> str:
    if entry.kind == "psp" and entry.name != f"psp-{entry.domain}":
        command = "translate picture.png --model {}"  # it reads other pictures
    use = f"`{'' if '(' in command else 'stylegan-inversion '}{command.format(entry.name)}`" if command else ""
    if entry.edit:
        name = f"{entry.edit}_1" if entry.kind == "ganspace" else entry.edit
        use = f"`--edit {name}=1`: it comes with every generator of {entry.domain}"
    if not entry.fetchable:
        use = f"{entry.note or ''} By hand, from {entry.source}.".strip() if command else str(entry.note)
    size = (entry.about or "unknown") if entry.fetchable else "by hand"
    return f"| `{entry.name}` | {entry.description} | {size} | {entry.licence} | {use} |"


def pictures() -> None:
    """Invert three portraits by each method, and draw the sheet."""
    pipe = PTIPipeline.from_pretrained("faces64", detector="builtin")
    photos = [path for path in sorted((sample_photos()[0].parent / "portraits").glob("*.jpg"))][:3]
    sheet = Image.new("RGB", (4 * SIDE, len(photos) * SIDE))
    for y, photo in enumerate(photos):
        crop = pipe.align(photo)
        drawn = [*(pipe.encoder_pipeline(name)(crop) for name in ("e4e", "psp")), pipe(crop, preset="balanced")]
        for x, picture in enumerate([crop.image, *(out.images[0] for out in drawn)]):
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x * SIDE, y * SIDE))
    save_image(sheet, DOCS / "zoo.jpg", quality=90, xmp=mark("edited"))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true", help="draw zoo.jpg again, too (a minute or two)")
    if parser.parse_args().pictures:
        pictures()
    (DOCS / "zoo.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
