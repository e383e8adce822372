from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylegan_inversion.evaluation.figure import GAP, GROUP_GAP, HEADER, Column, draw_figure, save_figure
from stylegan_inversion.preprocessing.image import load_image

RED, BLUE = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (64, 64), "blue")


def test_every_picture_has_its_place(tmp_path: Path) -> None:
    columns = [
        Column("", "photo", [RED, BLUE]),
        Column("e4e", "inversion", [BLUE, None]),
        Column("e4e", "b", [RED] * 2),
    ]
    save_figure(columns, tmp_path / "figure.png", cell=32)
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    sheet = load_image(tmp_path / "figure.png")
    lefts = [GAP, GAP + 32 + GROUP_GAP, GAP + 32 + GROUP_GAP + 32 + GAP]
    tops = [2 * HEADER, 2 * HEADER + 32 + GAP]
    assert sheet.size == (lefts[2] + 32 + GAP, tops[1] + 32 + GAP + GAP)
    pixels = [[sheet.getpixel((left + 16, top + 16)) for left in lefts] for top in tops]
    red, blue, grey = (255, 0, 0), (0, 0, 255), (238, 238, 238)
    assert pixels == [[red, blue, red], [blue, grey, red]]
    heads = np.asarray(sheet)[: 2 * HEADER]
    assert (heads[HEADER + 2 :, lefts[0] : lefts[0] + 32] < 100).any()  # "photo"
    assert (heads[: HEADER - 1, lefts[1] :] < 100).any()  # "e4e", over both of its columns
    assert (heads[: HEADER - 1, : lefts[1]] == 255).all()
    rule = heads[HEADER, :, 0]
    assert (rule[lefts[1] : lefts[2] + 31] == 0x99).all() and (rule[: lefts[1]] == 255).all()


def test_a_title_stays_in_its_column() -> None:
    sheet = draw_figure([Column("", "a title that is far too long", [RED]), Column("", "", [RED])], cell=48)
    assert (np.asarray(sheet)[: 2 * HEADER, GAP + 48 + 1 :] == 255).all()


def test_a_picture_is_enlarged_smoothly_and_without_loss() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    sheet = draw_figure([Column("", "", [picture])], cell=32)
    place = (GAP, 2 * HEADER, GAP + 32, 2 * HEADER + 32)
    assert sheet.crop(place).tobytes() == picture.resize((32, 32), Image.Resampling.LANCZOS).tobytes()
    same = draw_figure([Column("", "", [picture])], cell=16)
    assert same.crop((GAP, 2 * HEADER, GAP + 16, 2 * HEADER + 16)).tobytes() == picture.tobytes()


def test_columns_of_different_length() -> None:
    for columns in ([], [Column("", "", [])], [Column("", "", [RED]), Column("", "", [])]):
        with pytest.raises(ValueError, match="`columns` must have the same number of pictures, at least one, got"):
            draw_figure(columns)
