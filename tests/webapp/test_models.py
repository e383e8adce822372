"""The models that visitors choose from."""

import dataclasses
import threading
from pathlib import Path

import pytest

pytest.importorskip("gradio")
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.storage import builtin_path
from stylegan_inversion.webapp import models as module
from stylegan_inversion.webapp.models import LOADING, Model, Models, best_cached, load_model, sentence
from tests.fake_hub import hub_client, serve
from tests.webapp.conftest import until
from tests.webapp.tiny_app import tiny_model


@pytest.fixture(scope="module")
def tiny() -> Model:
    return tiny_model()


def test_a_model_tells_what_it_can(tiny: Model) -> None:
    assert list(tiny.pipelines) == [name for name in METHODS if name in tiny.pipelines] and tiny.quick in METHODS
    assert list(tiny.directions)[: len(tiny.named)] == tiny.named and {"ganspace_1", "sefa_1"} < set(tiny.directions)
    assert "32 x 32 pixels" in tiny.note and "shows how the methods work" in tiny.note
    assert all(pipeline.generator is tiny.tuner.generator for pipeline in tiny.pipelines.values())


def test_visitors_have_what_is_built_in(tiny: Model) -> None:
    models = Models(tiny)
    assert [known.name for known in models.known()] == ["tiny", "faces64"]
    assert "Loading faces64" in next(models.load("faces64")).words
    assert models.get("faces64") is models.get("faces64") and models.get("faces64").resolution == 64
    assert [model.name for model in models.loaded()] == ["tiny", "faces64"] and models.get("") is tiny
    for name in ("e4e-ffhq-1024", "org/model", "../..", str(builtin_path("faces64"))):
        with pytest.raises(ModelNotFoundError, match=r"cannot be chosen here\. There is tiny and faces64\."):
            models.get(name)


def test_visitors_who_may_choose_any(tiny: Model, tmp_path: Path) -> None:
    models = Models(tiny, open=True)
    (full,) = [known for known in models.known() if known.name == "e4e-ffhq-1024"]
    assert "to download once" in sentence(full) and full.licence in sentence(full)
    with pytest.raises(ModelNotFoundError, match="is no repository on the Hub: write organisation/repository"):
        models.get(str(builtin_path("faces64")))
    with serve() as hub, hub_client(hub, tmp_path / "cache"):
        hub.add("org/model", builtin_path("faces64"))
        assert models.get("org/model").resolution == 64
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
        until(lambda: "Downloading org/model: " in next(other).words)
        mine.close()
        until(lambda: "Downloading" in next(other).words)  # who waits begins anew
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
