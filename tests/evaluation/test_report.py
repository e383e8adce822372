from pathlib import Path

import numpy as np
from PIL import Image

from stylegan_inversion.evaluation.report import (
    CELL,
    GAP,
    GROUP_GAP,
    HEADER,
    Column,
    plot_editability,
    save_figure,
    save_grid,
)
from stylegan_inversion.preprocessing.image import load_image

RED, BLUE = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (64, 64), "blue")


def test_every_picture_has_its_place(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    columns = [
        Column("", "a title that is far too long for it", [RED, BLUE]),
        Column("e4e", "inversion", [BLUE, None]),
        Column("e4e", "b", [RED, noise]),
    ]
    save_figure(columns, tmp_path / "figure.png")
    sheet = load_image(tmp_path / "figure.png")
    lefts = [GAP, GAP + CELL + GROUP_GAP, GAP + 2 * CELL + GROUP_GAP + GAP]
    tops = [2 * HEADER, 2 * HEADER + CELL + GAP]
    assert sheet.size == (lefts[2] + CELL + GAP, tops[1] + CELL + GAP + GAP)
    pixels = [[sheet.getpixel((left + 16, top + 16)) for left in lefts] for top in tops]
    red, blue, grey = (255, 0, 0), (0, 0, 255), (238, 238, 238)
    assert pixels[0] == [red, blue, red] and pixels[1][:2] == [blue, grey]
    enlarged = noise.resize((CELL, CELL), Image.Resampling.LANCZOS)
    assert sheet.crop((lefts[2], tops[1], lefts[2] + CELL, tops[1] + CELL)).tobytes() == enlarged.tobytes()
    heads = np.asarray(sheet)[: 2 * HEADER]
    assert (heads[HEADER + 2 :, lefts[0] : lefts[0] + CELL] < 100).any()  # the title, which ends in its column
    assert (heads[HEADER + 2 :, lefts[0] + CELL + 1 : lefts[1] - 1] == 255).all()
    assert (heads[: HEADER - 1, lefts[1] :] < 100).any()  # "e4e", over both of its columns
    assert (heads[: HEADER - 1, : lefts[1]] == 255).all()
    rule = heads[HEADER, :, 0]
    assert (rule[lefts[1] : lefts[2] + CELL - 1] == 0x99).all() and (rule[: lefts[1]] == 255).all()
    save_grid([Image.new("RGB", (512, 512), "red")] * 9, tmp_path / "grid.png")
    assert load_image(tmp_path / "grid.png").size == (8 * 256, 2 * 256)


def test_each_method_is_drawn_in_its_colour(tmp_path: Path) -> None:
    def method(gain: float) -> dict[str, object]:
        curve = {"move": [0, gain, 2 * gain], "identity": [0.9, 0.8, 0.7], "identity_to_reconstruction": [1, 0.9, 0.8]}
        return {"n": 2, "curve": curve, "move_at_level": {"mean": gain, "standard_error": None}}

    entry = {"metrics": {"l2": {"mean": 0.1, "standard_error": None}}}
    summary = {
        "methods": {"a": entry, "b": entry, "failed": {"metrics": {"l2": None}}},
        "edits": {
            "smile": {"level": 0.85, "methods": {"a": method(1.0), "b": method(2.0)}},
            "age": {"level": None, "methods": {}},
        },
    }
    config = {"methods": {name: {"label": name} for name in summary["methods"]}, "identity": "builtin"}
    plot_editability(summary, config, tmp_path / "plot.png")
    pixels = np.asarray(load_image(tmp_path / "plot.png")).astype(int)
    assert pixels.shape[1] > 1500
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (abs(pixels - colour).max(axis=2) < 3).sum() > 500
