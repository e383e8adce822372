import re
import shutil
from pathlib import Path

import pytest

from stylegan_inversion.demo import sample_photos
from stylegan_inversion.hub import builtin_path
from stylegan_inversion.preprocessing.image import load_image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


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


def test_the_model_card_says_the_same() -> None:
    card = (builtin_path("faces64") / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert block is not None
    compile(block.group(1), "README.md", "exec")


@pytest.mark.parametrize("path", re.findall(r"`((?:stylegan_inversion|recipes|tests)/[\w/.]+)`", README))
def test_the_files_that_the_readme_names_exist(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE))
def test_the_targets_that_the_readme_names_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
