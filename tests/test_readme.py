import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from stylegan_inversion.demo import sample_photos
from stylegan_inversion.editing.directions import load_directions
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.storage import builtin_path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [  # tests/test_full_size.py runs the one of the full-size model
    block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "e4e-ffhq-1024" not in block
]


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two blocks as they stand, but for the number of steps."""
    shutil.copy(sample_photos()[0], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    assert "progress=True" in BLOCKS[0]
    names: dict[str, object] = {}
    exec(BLOCKS[0].replace("progress=True", "num_w_steps=3, num_tuning_steps=2"), names)
    assert load_image("edited.png").size == load_image("photo.jpg").size
    exec(BLOCKS[1], names)
    assert (tmp_path / "folder" / "config.json").exists()


def test_the_api_of_the_readme_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block as it stands, but for the port."""
    pytest.importorskip("gradio")
    from stylegan_inversion.webapp.models import load_model
    from tests.webapp.tiny_app import serve

    (block,) = [block for block in BLOCKS if "gradio_client" in block]
    shutil.copy(sample_photos()[0], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    names: dict[str, Any] = {}
    assert "http://127.0.0.1:7860" in block
    with serve(load_model("faces64")) as app:
        try:
            exec(block.replace("http://127.0.0.1:7860", app.url), names)
            assert load_image(names["photo"]).size == load_image("photo.jpg").size
            assert load_image(names["drawn"]).size == (64, 64) and names["report"]["face_count"] >= 1
        finally:
            if "client" in names:
                names["client"].close()


def test_the_model_card_says_the_same() -> None:
    card = (builtin_path("faces64") / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert block is not None
    compile(block.group(1), "README.md", "exec")
    directions = load_directions(builtin_path("faces64") / "directions")
    shares = re.search(
        r"every step for (\d+) % \(smile\), (\d+) % \(age\), (\d+) % \(yaw\) and (\d+) % \(gender\)", card
    )
    assert shares is not None
    for name, share in zip(("smile", "age", "yaw", "gender"), shares.groups(), strict=True):
        found = re.search(r"([\d.]+)% of 500", directions[name].description)
        assert found is not None and abs(float(found.group(1)) - float(share)) < 1
    for folder, text in re.findall(r"\| `(\w+)/`.*\| ([\d.]+) MB", card):
        size = sum(path.stat().st_size for path in (builtin_path("faces64") / folder).rglob("*.safetensors"))
        assert size / 1e6 == pytest.approx(float(text), abs=0.1)


@pytest.mark.parametrize("path", re.findall(r"`((?:stylegan_inversion|recipes|tests)/[\w/.]+)`", README))
def test_the_files_that_the_readme_names_exist(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE))
def test_the_targets_that_the_readme_names_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
