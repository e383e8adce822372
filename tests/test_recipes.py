"""The YAML files of recipes/ load, and the scripts of faces64 run."""

import importlib
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stylegan_inversion import PTIPipeline
from stylegan_inversion.catalogue import catalogue
from stylegan_inversion.training.config import CONFIGS, load_config

RECIPES = Path(__file__).parents[1] / "recipes"
SCRIPTS = {"autoencoder": "AutoencoderConfig", "gan": "WarmGANConfig", "pretrain": "PretrainConfig"}


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.relative_to(RECIPES).as_posix())
def test_every_recipe_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = next(line for line in path.read_text().splitlines() if "--config" in line)
    assert f"--config recipes/{path.relative_to(RECIPES).as_posix()}" in command
    configs: Any = CONFIGS
    if ".py" in command:
        script = command.split(".py")[0].rpartition("/")[2]
        monkeypatch.syspath_prepend(RECIPES / "faces64")
        configs = [getattr(importlib.import_module(script), SCRIPTS[script])]
    assert load_config(["--config", str(path), "--data", "pictures"], configs).data == "pictures"


@pytest.mark.slow
def test_faces64_from_pictures_to_an_encoder(tmp_path: Path) -> None:
    """Two steps of each script, in their order."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)):
        Image.fromarray(pixels).save(pictures / f"{i}.png")

    def run(script: str, *arguments: str) -> None:
        command = [sys.executable, str(RECIPES / "faces64" / script), *arguments]
        subprocess.run(command, check=True, cwd=tmp_path, timeout=240)

    def train(script: str, recipe: str, *arguments: str) -> None:
        folders = ["--data", str(pictures), "--validation-data", str(pictures), "--output", f"runs/{recipe}"]
        short = ["--steps", "2", "--batch-size", "4", "--no-compile", "--cpu", "--trackers"]
        run(script, "--config", str(RECIPES / "faces64" / f"{recipe}.yaml"), *folders, *short, *arguments)

    small = ["--generator.w-dim", "32", "--generator.channel-max", "16", "--components", "8"]
    train("autoencoder.py", "autoencoder16", *small, "--generator.z-dim", "32")
    train("autoencoder.py", "autoencoder32", "--init", "runs/autoencoder16/last")
    sizes = ["--components", "8", "--flow-steps", "2", "--mapping-steps", "2", "--pairs", "64"]
    run("prior.py", "runs/autoencoder32/last", "--data", str(pictures), "--output", "runs/prior", *sizes)
    for recipe, init in (("gan_start", "prior"), ("gan", "gan_start/last"), ("gan_noise", "gan/last")):
        train("gan.py", recipe, "--init", f"runs/{init}", "--reconstruction.batch-size", "2")
    assert PTIPipeline.from_pretrained(tmp_path / "runs/gan_noise/last", perceptual="alex").crop_scale == 0.74
    model = tmp_path / "runs/gan_noise/last"
    widths = ["--encoder.widths", "16", "16", "16", "16", "--encoder.coarse-end", "2", "--encoder.middle-end", "4"]
    train("pretrain.py", "pretrain", "--model", str(model), "--teacher", str(model), *widths)
    shutil.rmtree(tmp_path / "runs")


def test_the_page_of_models_is_current() -> None:
    page = runpy.run_path(str(RECIPES / "zoo.py"))["page"]()
    assert (RECIPES.parent / "docs/zoo.md").read_text("utf-8") == page, "run: python recipes/zoo.py"
    assert all(f"| `{entry.name}` | " in page for entry in catalogue())
