"""The card of a model, and a folder on the Hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from stylegan_inversion import E4EPipeline, PTIPipeline, cli, storage
from stylegan_inversion.demo import sample_photos
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.pipelines.card import write_card
from stylegan_inversion.pipelines.loading import check_folder, push_to_hub
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.preprocessing.sources import LabelSource, to_config
from tests.fake_hub import FakeHub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client


@pytest.fixture
def fake_hub(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setenv("HF_TOKEN", "write")
    return fake_hub


@pytest.fixture
def folder(pti: PTIPipeline, tmp_path: Path) -> Path:
    return pti.save_pretrained(tmp_path / "model")


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def header(card: Path) -> Mapping[str, Any]:
    text = card.read_text("utf-8")
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_of_a_real_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = E4EPipeline.from_pretrained("faces64")
    card = pipe.save_pretrained(tmp_path / "my-model") / "README.md"
    load_image(sample_photos()[0]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    text = card.read_text("utf-8")
    block = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert block is not None
    exec(block[1], {})
    assert load_image("edited.png").size == load_image("photo.jpg").size
    assert "# my-model\n" in text and "64 x 64 pixels" in text and "arXiv:2102.02766" in text
    assert "| `e4e_encoder/` | e4e's encoder | `model.safetensors` " in text and "0.74 times the side of FFHQ's" in text
    for name, direction in pipe.directions.items():
        assert direction.strength_range is not None
        assert f"| `{name}` | {direction.strength_range[0]:+.3g} to {direction.strength_range[1]:+.3g} |" in text
    assert "## Limits" in text and "not stated" in text
    found = header(card)
    assert found["library_name"] == "stylegan-inversion" and found["pipeline_tag"] == "image-to-image"
    assert {"gan-inversion", "stylegan2", "e4e"} <= set(found["tags"])
    assert found["license"] == "other" and "metrics" not in found and "model-index" not in found


def test_what_is_given(pti: PTIPipeline, folder: Path) -> None:
    metrics = {"l2": 0.0416, "lpips": 0.08}
    card = write_card(folder, name="org/mine", license="cc-by-nc-4.0", metrics=metrics, overwrite=True)
    found = header(card)
    assert found["license"] == "cc-by-nc-4.0" and found["metrics"] == ["l2", "lpips"]
    (result,) = found["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == metrics
    text = card.read_text("utf-8")
    assert 'PTIPipeline.from_pretrained("org/mine")' in text and "# mine\n" in text
    assert "| lpips | 0.08 |" in text and "Weights: cc-by-nc-4.0." in text
    assert "| `age` | not measured |" in text
    card.write_text("mine")  # which stays
    pti.save_pretrained(folder, metrics={"l2": 0.5})
    assert card.read_text() == "mine"
    pti.save_pretrained(folder, metrics={"l2": 0.5}, overwrite_card=True)
    assert "| l2 | 0.5 |" in card.read_text()


def test_other_snippets(pti: PTIPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pti.directions = {}
    folder = pti.save_pretrained(tmp_path / "model")
    text = (folder / "README.md").read_text("utf-8")
    assert 'out.images[0].save("inverted.png")' in text and "## Directions" not in text
    storage.write_config({**storage.read_config(folder), "source": to_config(LabelSource(5))}, folder)
    assert 'pipe.translate("picture.png")' in write_card(folder, overwrite=True).read_text("utf-8")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        write_card(tmp_path)
    monkeypatch.chdir(folder)
    assert "\n# model\n" in write_card(Path(), overwrite=True).read_text("utf-8")


def test_push(
    folder: Path, fake_hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".hidden.json").write_text("{}")
    (folder / "code.py").write_text("")
    before = state(folder)
    monkeypatch.chdir(folder.parent)  # another way to write the folder than the card's
    assert cli.main(["push", folder.name, "org/mine", "--message", "first"]) == 0
    assert capsys.readouterr().out.startswith(fake_hub.url)
    files = fake_hub.repositories["org/mine"]
    assert set(files) == set(before) - {".hidden.json", "code.py"}
    # The card that `save_pretrained` wrote for the folder speaks of the repository now, and only there.
    assert b'PTIPipeline.from_pretrained("org/mine")' in files["README.md"]
    assert state(folder) == before and f'from_pretrained("{folder}")' in before["README.md"].decode()
    assert PTIPipeline.from_pretrained("org/mine").directions.keys() == {"smile", "age"}


def test_cards_of_a_push(folder: Path, fake_hub: FakeHub) -> None:
    (folder / "README.md").unlink()
    (folder / "LICENSE").write_text("mine")
    more = {"base_model": "org/base", "datasets": ["org/data"], "license_name": "my-own"}
    push_to_hub(folder, "org/mine", card=more)
    files = fake_hub.repositories["org/mine"]
    found = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert {name: found[name] for name in more} == more and found["license_link"] == "LICENSE"
    assert b"![Drawn at random; below, row by row, smile +5](gallery.jpg)" in files["README.md"]
    assert load_image(files["gallery.jpg"]).size == (4 * 32, 2 * 32)  # and what has a range
    assert files["README.md"].count(b"@") == 2 and b"roich2022pivotal" in files["README.md"]
    push_to_hub(folder, "org/licensed", license="mit")
    assert b"license: mit" in fake_hub.repositories["org/licensed"]["README.md"]
    assert not (folder / "README.md").exists()
    (folder / "README.md").write_text('mine: from_pretrained("other/one")')
    push_to_hub(folder, "org/mine")
    assert b"mine" not in files["README.md"].split(b"\n")[0]  # the one that is there stays
    push_to_hub(folder, "org/other")
    assert fake_hub.repositories["org/other"]["README.md"] == b'mine: from_pretrained("other/one")'
    push_to_hub(folder, "org/other", overwrite_card=True)
    assert b"library_name" in fake_hub.repositories["org/other"]["README.md"]


def test_nothing_is_sent_of_a_damaged_model(
    folder: Path, fake_hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = folder / "generator" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    assert cli.main(["push", str(folder), "org/mine"]) == 2
    assert "cannot be read as safetensors" in capsys.readouterr().err
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        check_folder(folder)
    (weights.parent / "model.fp16.safetensors").write_bytes(whole)
    check_folder(folder)  # a model of one variant only
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        push_to_hub(folder / "absent", "org/mine")
    assert not fake_hub.log


def test_a_pull_request(folder: Path, fake_hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["push", str(folder), "org/theirs", "--create-pr", "--dataset", "org/data", "--overwrite-card"]) == 0
    )
    assert capsys.readouterr().out == f"{fake_hub.url}/org/theirs/discussions/1\n"
    assert b"- org/data" in fake_hub.pulls["org/theirs"]["README.md"] and not fake_hub.repositories["org/theirs"]
