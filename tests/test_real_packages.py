"""Packages of the extra "app" beside ours: their real code, and what is said where it cannot be imported."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DETECT = """
import logging, sys
logging.basicConfig(format="%(levelname)s: %(message)s")
from stylegan_inversion.preprocessing import landmarks
for _ in range(2):
    print(type(landmarks.get_landmark_detector("auto")).__name__)
"""


@pytest.mark.parametrize("name", ["lpips", "facexlib"])
def test_its_code_and_ours_agree(name: str) -> None:
    if any(importlib.util.find_spec(each) is None for each in (name, "torchvision")):
        pytest.skip(f"needs {name} and torchvision")
    command = [sys.executable, "-m", "tests.real_packages", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and done.stdout == f"{name} agrees\n", done.stderr


def test_a_torchvision_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    """RuntimeError the first time, AttributeError the next; a warning besides."""
    for name in ("facexlib", "torchvision"):
        (tmp_path / name).mkdir()
    (tmp_path / "facexlib" / "__init__.py").write_text("")
    (tmp_path / "facexlib" / "detection.py").write_text("import torchvision\n")
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "import warnings\nwarnings.warn('no image extension')\n"
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    command = [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{DETECT}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.stdout.split() == ["BuiltinLandmarkDetector"] * 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) <= 2 and "Traceback" not in done.stderr
    assert all("The built-in face detector is used: facexlib cannot be imported (operator" in line for line in lines)
