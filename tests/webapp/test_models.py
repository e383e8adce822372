"""The models that visitors choose from."""

import dataclasses
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio")
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.storage import builtin_path
from stylegan_inversion.webapp import models as module
from stylegan_inversion.webapp.app import private_folder
from stylegan_inversion.webapp.models import LOADING, Model, Models, best_cached, load_model, sentence
from tests.fake_hub import hub_client, serve
from tests.webapp.conftest import until
from tests.webapp.marks import damaged_zips
from tests.webapp.tiny_app import tiny_model


@pytest.fixture(scope="module")
def tiny() -> Model:
    return tiny_model()


@pytest.fixture
def folder() -> Iterator[Path]:
    with private_folder() as folder:
        (Path(folder) / "upload").mkdir()
        yield Path(folder) / "upload"


def test_a_model_tells_what_it_can(tiny: Model) -> None:
    assert list(tiny.pipelines) == [name for name in METHODS if name in tiny.pipelines] and tiny.quick in METHODS
    assert tiny.groups["Directions"][0] in tiny.directions and set(tiny.groups) == {"Directions", "GANSpace", "SeFa"}
    assert "32 x 32 pixels" in tiny.note and "shows how the methods work" in tiny.note
    assert all(pipeline.generator is tiny.tuner.generator for pipeline in tiny.pipelines.values())


def test_visitors_have_what_is_built_in(tiny: Model) -> None:
    models = Models(tiny)
    assert [known.name for known in models.known()] == ["tiny", "faces64"]
    *_, last = models.load("faces64")
    assert last.model is not None and last.model is models.get("faces64") and last.model.resolution == 64
    assert [model.name for model in models.loaded()] == ["tiny", "faces64"] and models.get("") is tiny
    for name in ("e4e-ffhq-1024", "org/model", "../..", str(builtin_path("faces64"))):
        with pytest.raises(ModelNotFoundError, match=r"cannot be chosen here\. There is tiny and faces64\."):
            models.get(name)
    with pytest.raises(ModelNotFoundError, match="cannot be uploaded here"):
        models.add_zip("x")


def test_visitors_who_may_choose_any(tiny: Model, tmp_path: Path) -> None:
    models = Models(tiny, open=True)
    (full,) = [known for known in models.known() if known.name == "e4e-ffhq-1024"]
    assert "to download once" in sentence(full) and full.licence in sentence(full)
    with pytest.raises(ModelNotFoundError, match="is no repository on the Hub: write organisation/repository"):
        models.get(str(builtin_path("faces64")))
    with serve() as hub, hub_client(hub, tmp_path / "cache"):
        hub.add("org/model", builtin_path("faces64"))
        reports = list(models.load("org/model"))
        assert reports[-1].model is not None and reports[-1].model.resolution == 64
        with pytest.raises(ModelNotFoundError) as caught:
            models.get("org/nothing")
        assert str(tmp_path) not in str(caught.value)
    assert [model.name for model in models.loaded()] == ["tiny", "org/model"]


def test_a_download_ends_when_nobody_waits_for_it(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    models, cache = Models(tiny, open=True), tmp_path / "cache"
    with serve() as hub, hub_client(hub, cache):
        hub.add("org/model", builtin_path("faces64"))
        hub.pause = 0.05
        mine, other = models.load("org/model"), models.load("org/model")
        next(mine)
        until(lambda: "Downloading org/model: " in next(other).text)
        mine.close()
        assert "Downloading" in next(other).text  # somebody waits
        other.close()
        until(lambda: not any(thread.name == LOADING for thread in threading.enumerate()), 10)  # and not to its end
        blobs = [*cache.rglob("blobs/*")]
        assert sum(each.stat().st_size for each in blobs) < 5_000_000 and not [*cache.rglob("*.incomplete")]
        asked, hub.pause = hub.gets(".safetensors"), 0.0
        assert models.get("org/model").resolution == 64  # no lock is left
        assert hub.gets(".safetensors") > asked


def test_the_full_size_model_that_is_offered(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = Models(tiny, offers=True).offer()
    assert offered is not None and "1202 MB, to download once · non-commercial" in sentence(offered)
    assert [each.name for each in Models(tiny, offers=True).known()] == ["tiny", "faces64", offered.name]
    assert Models(tiny).offer() is None
    monkeypatch.setattr(module, "DEMONSTRATION", 16)
    assert Models(tiny, offers=True).offer() is None  # it is full-size itself


def test_an_uploaded_model(tiny: Model, folder: Path, tmp_path: Path) -> None:
    models = Models(tiny, open=True)
    tiny.tuner.save_pretrained(tmp_path / "model" / "mine")
    archive = shutil.make_archive(str(folder / "mine"), "zip", tmp_path / "model")
    name = models.add_zip(archive)
    model = models.get(name)
    assert model.resolution == 32 and model.note.startswith("The uploaded model") and len(name) > 30
    models.get("faces64")  # pushes it out
    with pytest.raises(ModelNotFoundError, match="The uploaded model is gone"):
        models.get(name)
    for content, match in (
        ({"a.json": "{}"}, r"There is no config\.json in the zip"),
        ({"config.json": "{}"}, "The zip holds no model"),
        ({f"{k}.json": "{}" for k in range(40)}, "A zip has 32 files and 2 GB at most"),
    ):
        with zipfile.ZipFile(folder / "bad.zip", "w") as bad:
            for part, text in content.items():
                bad.writestr(part, text)
        with pytest.raises((ValueError, CheckpointError), match=match) as caught:
            models.add_zip(str(folder / "bad.zip"))
        assert str(folder) not in str(caught.value) and "/tmp" not in str(caught.value)
    for data in (b"PK", *damaged_zips()):
        (folder / "no.zip").write_bytes(data)
        with pytest.raises(ValueError, match="This zip cannot be read"):
            models.add_zip(str(folder / "no.zip"))


def test_the_model_to_start_with(monkeypatch: pytest.MonkeyPatch) -> None:
    assert best_cached("cpu") == "faces64"
    cached = [dataclasses.replace(known, where="cached") for known in module.list_models()]
    monkeypatch.setattr(module, "list_models", lambda: cached)
    assert (best_cached("cuda"), best_cached("cpu")) == ("e4e-ffhq-1024", "faces64")
    cached[:] = [known for known in cached if known.name in ("e4e-cars-512", "psp-ffhq-1024")]
    assert best_cached("cuda:1") == "psp-ffhq-1024"  # a model of faces


def test_a_folder_keeps_its_place_to_itself(tmp_path: Path, tiny: Model) -> None:
    tiny.tuner.save_pretrained(tmp_path / "mine")
    model = load_model(tmp_path / "mine", device="cpu")
    assert model.name == "mine" and model.tuner.base_name is None
