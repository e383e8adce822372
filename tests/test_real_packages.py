"""Packages of the extra "app" beside ours: their real code, and what is said where it cannot be imported."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_its_code_and_ours_agree() -> None:
    if any(importlib.util.find_spec(each) is None for each in ("facexlib", "torchvision")):
        pytest.skip("needs facexlib and torchvision")
    command = [sys.executable, "-m", "tests.real_packages"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and done.stdout == "facexlib agrees\n", done.stderr
