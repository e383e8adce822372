"""The figure: originals, reconstructions and edits of all methods side by side. Pictures in, one picture out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stylegan_inversion.preprocessing.image import save_image

CELL = 128  # pixels a side of one picture
GAP = 4
GROUP_GAP = 14
HEADER = 30
_MISSING = "#eeeeee"


@dataclass(frozen=True)
class Column:
    """One column: what stands above it, and above its group, and a picture for each row or `None`."""

    group: str
    title: str
    pictures: Sequence[Image.Image | None]


def draw_figure(columns: Sequence[Column], *, cell: int = CELL) -> Image.Image:
    """Put columns side by side under two lines of headers; neighbours of one group share the upper one.

    Args:
        columns: All of the same number of rows. A missing picture leaves a grey square.
        cell: Side of a picture in pixels; pictures of another size are enlarged or reduced to it (Lanczos).

    Raises:
        ValueError: If there is no column, or they differ in length.
    """
    lengths = {len(column.pictures) for column in columns}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"`columns` must have the same number of pictures, at least one, got {sorted(lengths)}.")
    lefts: list[int] = []
    x = GAP
    for before, column in zip([None, *columns], columns):
        if before is not None:
            x += cell + (GAP if before.group == column.group else GROUP_GAP)
        lefts.append(x)
    width, rows = lefts[-1] + cell + GAP, lengths.pop()
    sheet = Image.new("RGB", (width, 2 * HEADER + rows * (cell + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=20)
    for i, (left, column) in enumerate(zip(lefts, columns)):
        if i == 0 or columns[i - 1].group != column.group:
            last = next((k for k in range(i, len(columns)) if columns[k].group != column.group), len(columns)) - 1
            right = lefts[last] + cell
            if column.group:
                pen.text(((left + right) / 2, HEADER / 2), column.group, fill="black", font=font, anchor="mm")
                pen.line([(left, HEADER), (right - 1, HEADER)], fill="#999999")
        title = _fit(column.title, cell, font)
        pen.text((left + cell / 2, 1.5 * HEADER), title, fill="black", font=font, anchor="mm")
        for row, picture in enumerate(column.pictures):
            place = (left, 2 * HEADER + row * (cell + GAP))
            if picture is None:
                sheet.paste(_MISSING, (*place, place[0] + cell, place[1] + cell))
            else:
                sheet.paste(picture.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS), place)
    return sheet


def save_figure(columns: Sequence[Column], path: Path, *, cell: int = CELL) -> None:
    """Draw the columns and write them as a PNG, which loses nothing."""
    save_image(draw_figure(columns, cell=cell), path)


def _fit(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if text.endswith("…") else text[:-1] + "…"
    return text
