import sys
from pathlib import Path

import numpy as np
import pytest

from stylegan_inversion.errors import MissingDependencyError
from stylegan_inversion.evaluation.plot import check_matplotlib, plot_editability
from stylegan_inversion.preprocessing.image import load_image


def test_matplotlib_is_asked_for_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    check_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"The plot needs matplotlib\. Install .*\[evaluate\]"):
        check_matplotlib()


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
    labels = {"a": "A", "b": "B", "failed": "C"}
    config = {"methods": {name: {"label": label} for name, label in labels.items()}, "identity": "builtin"}
    plot_editability(summary, config, tmp_path / "plot.png")
    pixels = np.asarray(load_image(tmp_path / "plot.png")).astype(int)
    assert pixels.shape[1] > 1500
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (abs(pixels - colour).max(axis=2) < 3).sum() > 500
