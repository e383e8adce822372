"""Finding a model: built in, in a folder, on the Hub."""

from pathlib import Path
from typing import Any

import pytest

from stylegan_inversion import hub
from stylegan_inversion.errors import ModelNotFoundError
from tests.fake_hub import hub_client, serve
from tests.hub_parts import Tiny, TinyConfig, assert_same, state


def model_folder(folder: Path) -> Path:
    hub.write_config({"width": 4}, folder)
    return folder


def record_downloads(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Let the Hub answer with a folder; the arguments of each call go to the list."""
    calls = []

    def download(*args: Any, **kwargs: Any) -> Path:
        calls.append((args, kwargs))
        return folder

    monkeypatch.setattr(hub, "download_snapshot", download)
    return calls


def test_builtin_models_are_those_with_a_config() -> None:
    names = hub.builtin_models()
    assert "faces64" in names and "samples" not in names
    assert all((hub.builtin_path(name) / "config.json").is_file() for name in names)


def test_find_a_builtin_model() -> None:
    assert hub.find_model("faces64") == hub.builtin_path("faces64")
    assert hub.find_model("faces64", subfolder="generator") == hub.builtin_path("faces64/generator")


def test_a_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "faces64")
    model_folder(tmp_path / "org" / "repo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download_snapshot", None)  # not called
    assert hub.find_model("faces64") == Path("faces64")
    assert hub.find_model("org/repo") == Path("org/repo")
    assert hub.find_model(tmp_path / "faces64") == tmp_path / "faces64"


@pytest.mark.parametrize("name", ["faces65", "./org/repo", "/org/repo", "~/repo", "a/b/c", "repo/", "", "generator"])
def test_an_unknown_name_names_the_known_ones(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"No model '{name}': it is not a folder.*faces64"):
        hub.find_model(name)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no config.json, so it is not a model saved by this package\."):
        hub.find_model(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"faces64.absent holds no config.json"):
        hub.find_model("faces64", subfolder="absent")


@pytest.mark.parametrize("subfolder", ["..", "../..", "a/../../b", "/etc", "a\\..\\..", "C:\\", "C:"])
def test_a_subfolder_stays_inside(subfolder: str, tmp_path: Path) -> None:
    model_folder(tmp_path)
    inside = model_folder(tmp_path / "a" / "b")
    for name in (inside, "faces64", "org/repo"):
        with pytest.raises(
            ValueError, match=r"`subfolder` must be a relative path inside the model, without '\.\.', got"
        ):
            hub.find_model(name, subfolder=subfolder)


@pytest.mark.parametrize("subfolder", ["a/b", "a/b/", "./a/b", "a\\b"])
def test_spellings_of_a_subfolder(subfolder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model_folder(tmp_path / "a" / "b")
    assert hub.find_model(tmp_path, subfolder=subfolder) == expected
    calls = record_downloads(monkeypatch, tmp_path)
    assert hub.find_model("org/repo", subfolder=subfolder) == expected
    assert calls[0][1]["patterns"] == ["a/b/*.json", "a/b/*model.safetensors"]


# --- the Hub


def test_what_the_hub_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_downloads(monkeypatch, tmp_path)
    model_folder(tmp_path)
    found = hub.find_model(
        "org/repo", revision="v1", token="t", cache_dir=tmp_path / "c", local_files_only=True, force_download=True
    )
    assert found == tmp_path
    ((args, options),) = calls
    assert args == ("org/repo",) and "faces64" in options.pop("otherwise")
    assert options == {
        "patterns": ["*.json", "*model.safetensors"],
        "revision": "v1",
        "token": "t",
        "cache_dir": tmp_path / "c",
        "local_files_only": True,
        "force_download": True,
    }


def test_round_trip_through_a_hub(tmp_path: Path) -> None:
    hub.save_module(Tiny(TinyConfig()), tmp_path / "source" / "encoder")
    model_folder(tmp_path / "source")
    (tmp_path / "source" / "code.py").write_text("raise SystemExit\n")
    with serve() as fake, hub_client(fake, tmp_path / "cache"):
        fake.add("org/tiny", tmp_path / "source")
        with pytest.raises(
            ModelNotFoundError, match=r"'org/tiny' is not in the cache, .* or a built-in model: .*faces64"
        ):
            hub.find_model("org/tiny", local_files_only=True)
        encoder, root = hub.find_model("org/tiny", subfolder="encoder"), hub.find_model("org/tiny")
        with pytest.raises(ModelNotFoundError, match=r"'org/tiny' has no revision 'v9'\."):
            hub.find_model("org/tiny", revision="v9")
        with pytest.raises(ModelNotFoundError, match="The Hub has no repository 'org/absent'"):
            hub.find_model("org/absent")
        assert hub.find_model("org/tiny", subfolder="encoder", local_files_only=True) == encoder
    assert root == encoder.parent and tmp_path / "cache" in root.parents
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert files == ["config.json", "encoder/config.json", "encoder/model.safetensors"]  # and no code
    ours, theirs = (hub.load_module(Tiny, TinyConfig, path) for path in (encoder, tmp_path / "source" / "encoder"))
    assert_same(state(ours), state(theirs))


def test_a_mere_folder_does_not_hide_a_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces64").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.find_model("faces64") == hub.builtin_path("faces64")
    hub.write_config({}, tmp_path / "faces64")
    assert hub.find_model("faces64") == Path("faces64")


def test_which_files_of_a_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_downloads(monkeypatch, model_folder(tmp_path))
    hub.find_model("org/repo", variant="fp16")
    assert calls[0][1]["patterns"] == ["*.json", "*model.fp16.safetensors", "*directions/model.safetensors"]
