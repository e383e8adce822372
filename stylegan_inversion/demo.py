"""Invert and edit the bundled photos, and draw one sheet with all results."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stylegan_inversion import storage
from stylegan_inversion.batch import Record, invert_photos
from stylegan_inversion.editing.directions import MAX_STRENGTH
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.pipelines.receipts import mark, save_picture
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.image import load_image, save_image

CELL = 200  # pixels a side of one picture in the sheet
MARGIN = 6
LABEL = 22


def sample_photos() -> list[Path]:
    """Paths of the photos that ship with the package."""
    return sorted(storage.builtin_path("samples").glob("*.jpg"))


def run_demo(
    output: str | Path,
    *,
    photos: Sequence[str | Path] | None = None,
    model: str = "faces64",
    device: str = "auto",
) -> list[Record]:
    """Invert photos, move each along every direction as far as a photo bears it, paste back, draw a sheet.

    It takes the first method of `METHODS` that answers at once, or PTI if the model has no encoder.

    The sheet shows the photos around the face, and below each row what the generator drew.

    Args:
        output: Folder, made if needed; gets a folder for each photo, and `sheet.png`.
        photos: Paths. `None` means the bundled photos.
        model: Name or folder of the model.
        device: Where to run.

    Returns:
        A record for each photo.
    """
    output = Path(output)
    tuner = PTIPipeline.from_pretrained(model, device=device)
    quick = next((name for name, method in METHODS.items() if method.encoder in tuner.pivots), None)
    pipeline = tuner.encoder_pipeline(quick) if quick else tuner
    records, rows = [], []
    for record, out in invert_photos(pipeline, photos or sample_photos(), output, options={"progress": True}):
        records.append(record)
        if out is None or record.folder is None:
            continue
        crop = out.crops[0]
        pasted, drawn = [("photo", around(crop, crop.photo))], [("inverted", out.images[0])]
        for name, direction in pipeline.directions.items():
            limit = direction.photo_limit or MAX_STRENGTH
            for strength in (max(min(end, limit), -limit) for end in direction.strength_range or (-3.0, 3.0)):
                edited = pipeline.edit(out, **{name: strength})
                label = f"{name}{strength:+g}"
                save_picture(edited, Path(record.folder) / f"{label}.png", picture="drawn")
                save_picture(edited, Path(record.folder) / f"photo_{label}.jpg")
                photo = load_image(Path(record.folder) / f"photo_{label}.jpg")
                pasted.append((label, around(crop, photo)))
                drawn.append((label, edited.images[0]))
        rows += [pasted, drawn]
    if rows:
        save_image(draw_sheet(rows), output / "sheet.png", xmp=mark("edited"))
    return records


def around(crop: Crop, photo: Image.Image) -> Image.Image:
    """Cut an upright square around the face out of a photo, somewhat larger than the crop."""
    assert crop.quad is not None
    x, y = crop.quad.mean(0)
    reach = 0.65 * float(np.hypot(*(crop.quad[3] - crop.quad[0])))
    box = (round(x - reach), round(y - reach), round(x + reach), round(y + reach))
    return photo.crop(box)


def draw_sheet(rows: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Draw labelled pictures, a row for each photo."""
    columns = max(len(row) for row in rows)
    step_x, step_y = CELL + MARGIN, CELL + LABEL + MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, len(rows) * step_y + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for y, row in enumerate(rows):
        for x, (label, picture) in enumerate(row):
            left, top = MARGIN + x * step_x, MARGIN + y * step_y
            pen.text((left + CELL // 2, top + LABEL // 2), label, fill="black", font=font, anchor="mm")
            sheet.paste(picture.resize((CELL, CELL), Image.Resampling.LANCZOS), (left, top + LABEL))
    return sheet
