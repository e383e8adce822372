"""Packages of the extra "app" beside ours: their real code, and what is said where it cannot be imported."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["lpips", "facexlib"])
def test_its_code_and_ours_agree(name: str) -> None:
    if any(importlib.util.find_spec(each) is None for each in (name, "torchvision")):
        pytest.skip(f"needs {name} and torchvision")
    command = [sys.executable, "-m", "tests.real_packages", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and done.stdout == f"{name} agrees\n", done.stderr
