from pathlib import Path

import numpy as np
from PIL import Image

from stylegan_inversion.evaluation.report import plot_editability
from stylegan_inversion.preprocessing.image import load_image

RED, BLUE = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (64, 64), "blue")


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
