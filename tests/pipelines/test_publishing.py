from collections.abc import Iterator
from pathlib import Path

import pytest

from stylegan_inversion import PTIPipeline, cli
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.pipelines import publish
from stylegan_inversion.pipelines.publish import check_folder, push_folder
from tests.fake_hub import FakeHub, hub_client, serve

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    with serve() as hub, hub_client(hub, tmp_path / "cache") as patch:
        patch.setenv("HF_TOKEN", "write")
        yield hub


@pytest.fixture
def folder(pti: PTIPipeline, tmp_path: Path) -> Path:
    return pti.save_pretrained(tmp_path / "model")


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_push(folder: Path, fake_hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".hidden.json").write_text("{}")
    (folder / "code.py").write_text("")
    before = state(folder)
    assert cli.main(["push", str(folder), "org/mine", "--message", "first"]) == 0
    assert capsys.readouterr().out.startswith(fake_hub.url)
    files = fake_hub.repositories["org/mine"]
    assert set(files) == set(before) - {".hidden.json", "code.py"}
    # The card that `save_pretrained` wrote for the folder speaks of the repository now, and only there.
    assert b'PTIPipeline.from_pretrained("org/mine")' in files["README.md"]
    assert state(folder) == before and f'from_pretrained("{folder}")' in before["README.md"].decode()
    loaded = PTIPipeline.from_pretrained("org/mine")
    assert loaded.directions.keys() == {"smile", "age"}


def test_cards(folder: Path, fake_hub: FakeHub) -> None:
    (folder / "README.md").unlink()
    push_folder(folder, "org/mine", license="mit")
    files = fake_hub.repositories["org/mine"]
    assert b"license: mit" in files["README.md"] and not (folder / "README.md").exists()
    (folder / "README.md").write_text('mine: from_pretrained("other/one")')
    push_folder(folder, "org/mine")
    assert b"mine" not in files["README.md"].split(b"\n")[0]  # the one that is there stays
    push_folder(folder, "org/other")
    assert fake_hub.repositories["org/other"]["README.md"] == b'mine: from_pretrained("other/one")'
    push_folder(folder, "org/other", overwrite_card=True)
    assert b"library_name" in fake_hub.repositories["org/other"]["README.md"]


def test_without_links(folder: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(publish.Path, "symlink_to", refuse)
    before = state(folder)
    push_folder(folder, "org/mine")
    assert b'from_pretrained("org/mine")' in fake_hub.repositories["org/mine"]["README.md"] and state(folder) == before


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
    with pytest.raises(CheckpointError, match="is not a folder, so there is nothing to upload"):
        push_folder(folder / "absent", "org/mine")
    assert not fake_hub.log
