import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from stylegan_inversion import E4EPipeline, PTIPipeline, hub
from stylegan_inversion.demo import sample_photos
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.pipelines.publish import write_card
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.preprocessing.sources import LabelSource, to_config


def header(card: Path) -> Mapping[str, Any]:
    text = card.read_text("utf-8")
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def run_snippet(card: Path) -> None:
    block = re.search(r"```python\n(.*?)```", card.read_text("utf-8"), flags=re.DOTALL)
    assert block is not None
    exec(block[1], {})


def test_the_card_of_a_real_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = E4EPipeline.from_pretrained("faces64").save_pretrained(tmp_path / "my-model")
    load_image(sample_photos()[0]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    run_snippet(folder / "README.md")
    assert load_image("edited.png").size == load_image("photo.jpg").size
    text = (folder / "README.md").read_text("utf-8")
    assert "# my-model\n" in text and "64 x 64 pixels" in text and "arXiv:2102.02766" in text
    assert "| `e4e_encoder/` | e4e's encoder | 7.2 M |" in text and "0.74 times the side of FFHQ's" in text
    for name, direction in E4EPipeline.from_pretrained("faces64").directions.items():
        assert direction.strength_range is not None
        assert f"| `{name}` | {direction.strength_range[0]:+.3g} to {direction.strength_range[1]:+.3g} |" in text
    assert "## Limits" in text and "not stated" in text
    found = header(folder / "README.md")
    assert found["library_name"] == "stylegan-inversion" and found["pipeline_tag"] == "image-to-image"
    assert {"gan-inversion", "stylegan2", "e4e"} <= set(found["tags"])
    assert found["license"] == "other" and "metrics" not in found and "model-index" not in found


def test_what_is_given(pti: PTIPipeline, tmp_path: Path) -> None:
    folder = pti.save_pretrained(tmp_path / "model")
    card = write_card(
        folder, name="org/mine", license="cc-by-nc-4.0", metrics={"l2": 0.0416, "lpips": 0.08}, overwrite=True
    )
    found = header(card)
    assert found["license"] == "cc-by-nc-4.0" and found["metrics"] == ["l2", "lpips"]
    (result,) = found["model-index"][0]["results"]
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [("l2", 0.0416), ("lpips", 0.08)]
    text = card.read_text("utf-8")
    assert 'PTIPipeline.from_pretrained("org/mine")' in text and "# mine\n" in text
    assert "| lpips | 0.08 |" in text and "Weights: cc-by-nc-4.0." in text
    assert "| `age` | not measured |" in text
    card.write_text("mine")
    assert write_card(folder, name="org/mine") == card and card.read_text() == "mine"


def test_other_snippets(pti: PTIPipeline, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pti.directions = {}
    folder = pti.save_pretrained(tmp_path / "model")
    text = (folder / "README.md").read_text("utf-8")
    assert 'out.images[0].save("inverted.png")' in text and "## Directions" not in text
    config = hub.read_config(folder)
    hub.write_config({**config, "source": to_config(LabelSource(5))}, folder)
    text = write_card(folder, overwrite=True).read_text("utf-8")
    assert 'pipe.translate("picture.png")' in text


def test_folders_that_are_no_pipeline(pti: PTIPipeline, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        write_card(tmp_path)
    folder = pti.save_pretrained(tmp_path / "model")
    (folder / "generator" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        write_card(folder, overwrite=True)
