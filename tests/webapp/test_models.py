import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_inversion import PTIPipeline, catalogue, hub
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.webapp import models as module
from stylegan_inversion.webapp.models import LoadReport, Model, Models, make_model
from tests.fake_hub import FakeHub, hub_client, serve


@pytest.fixture
def first(pti: PTIPipeline) -> Model:
    return make_model(pti, name="first", licence="mit")


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    with serve() as served, hub_client(served, tmp_path / "cache"):
        yield served


class Loader:
    """In place of `load_model`: counts, waits if asked to, and fails for names that begin with "bad"."""

    def __init__(self, pti: PTIPipeline) -> None:
        self.pti = pti
        self.loaded: list[str] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, name: str, *, device: str, detector: Any) -> Model:
        self.loaded.append(name)
        assert device == "cpu" and detector is self.pti.detector
        assert self.go.wait(20)
        if name.startswith("bad"):
            raise CheckpointError(f"{name} is damaged")
        return Model(name, {"pti": self.pti}, {})


@pytest.fixture
def loader(pti: PTIPipeline, monkeypatch: pytest.MonkeyPatch, fake_hub: FakeHub) -> Loader:
    loader = Loader(pti)
    monkeypatch.setattr(module, "load_model", loader)
    return loader


def test_the_first_model_is_there(first: Model, loader: Loader) -> None:
    models = Models(first, device="cpu")
    assert models.get("first") is first and models.first is first and models.loaded() == [first]
    (report,) = models.load("first")
    assert report == LoadReport(1.0, first.note, first) and not loader.loaded


def test_others_are_loaded_once_and_kept(first: Model, loader: Loader) -> None:
    models = Models(first, device="cpu")
    loaded = models.get("faces64")
    assert loaded.name == "faces64" and models.get("faces64") is loaded and loader.loaded == ["faces64"]
    assert models.loaded() == [first, loaded]


def test_two_who_ask_get_one_model(first: Model, loader: Loader) -> None:
    models = Models(first, device="cpu", open=True)
    loader.go.clear()
    got: list[Model] = []
    threads = [threading.Thread(target=lambda: got.append(models.get("org/one"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert not got and models.loaded() == [first]
    loader.go.set()
    for thread in threads:
        thread.join(20)
    assert len(got) == 4 and len({id(model) for model in got}) == 1 and loader.loaded == ["org/one"]


def test_the_one_not_used_for_longest_goes(first: Model, loader: Loader) -> None:
    models = Models(first, open=True, device="cpu", capacity=3)
    for name in ("org/a", "org/b", "org/a", "org/c", "org/a", "org/b", "first"):
        assert models.get(name).name == name
    assert loader.loaded == ["org/a", "org/b", "org/c", "org/b"] and models.first is first
    assert [model.name for model in models.loaded()] == ["first", "org/a", "org/b"]
    with pytest.raises(ValueError, match="`capacity` must be >= 2, the first model and one more, got 1"):
        Models(first, capacity=1)


def test_one_that_fails_can_be_tried_again(first: Model, loader: Loader) -> None:
    models = Models(first, open=True, device="cpu")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="bad/one is damaged"):
            models.get("bad/one")
    with pytest.raises(CheckpointError, match="bad/one is damaged"):
        list(models.load("bad/one"))
    assert loader.loaded == ["bad/one"] * 3 and models.loaded() == [first]


def test_what_visitors_may_not_choose(first: Model, loader: Loader, tmp_path: Path) -> None:
    closed = Models(first, device="cpu")
    for name in ("org/one", "stylegan2-ffhq-1024", str(tmp_path), "", "../first"):
        with pytest.raises(
            ModelNotFoundError, match=r"cannot be chosen here\. There is first and faces64; for others, run"
        ):
            closed.get(name)
    with pytest.raises(ModelNotFoundError, match="cannot be chosen here"):
        next(closed.load("org/one"))
    with pytest.raises(ModelNotFoundError, match=r"Models cannot be uploaded here\. There is first and faces64"):
        closed.add_folder([])
    assert not loader.loaded


def test_folders_of_this_machine_cannot_be_chosen(
    first: Model, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "secret").mkdir(parents=True)
    models = Models(first, open=True, device="cpu")
    for name in ("runs/secret", str(tmp_path), "~/model", "../x", "a/b/c", "C:\\x", ""):
        with pytest.raises(ModelNotFoundError, match="is no repository on the Hub, which is written organisation/rep"):
            models.get(name)
    assert not loader.loaded


def test_choices(first: Model, pti: PTIPipeline, fake_hub: FakeHub, tmp_path: Path) -> None:
    closed, opened = Models(first), Models(first, open=True)
    assert closed.choices() == [
        ("first · 32 px · MIT", "first"),
        (f"faces64 · {size_of('faces64')} MB built in · non-commercial research", "faces64"),
    ]
    fake_hub.add("org/mine", pti.save_pretrained(tmp_path / "model"))
    PTIPipeline.from_pretrained("org/mine")
    choices = opened.choices()
    assert choices[:2] == closed.choices() and closed.choices() == choices[:2]
    assert choices[2][1] == "org/mine" and choices[2][0].endswith(" MB cached · see its page")
    entries = {entry.name: entry for entry in catalogue.catalogue()}
    fetched = [name for _, name in choices[3:]]
    assert {"e4e-ffhq-1024", "psp-ffhq-1024", "stylegan2-ffhq-1024"} <= set(fetched)
    assert all(entries[name].fetchable for name in fetched)  # what is listed can be had
    (label,) = [label for label, name in choices if name == "stylegan2-ffhq-1024"]
    assert "381 MB to download once · non-commercial" in label


def size_of(name: str) -> str:
    files = hub.builtin_path(name).rglob("*")
    return f"{sum(path.stat().st_size for path in files if path.is_file()) / 1e6:.0f}"


def test_reports_of_a_load(first: Model, loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.01)
    models = Models(first, open=True, device="cpu")
    loader.go.clear()
    reports = models.load("org/one")
    assert next(reports) == LoadReport(None, "Loading org/one …", None)
    models._others["org/one"].hear(30_000_000, 120_000_000)
    while (report := next(reports)).share is None:
        pass
    assert report == LoadReport(0.25, "Downloading org/one: 30 of 120 MB", None)
    reports.close()  # the visitor leaves, and the load goes on
    loader.go.set()
    *_, last = models.load("org/one")
    assert last.model is models.get("org/one") and last.share == 1.0 and loader.loaded == ["org/one"]


def test_a_model_from_the_hub(
    first: Model, pti: PTIPipeline, fake_hub: FakeHub, tmp_path: Path, photo: Image.Image
) -> None:
    fake_hub.add("org/mine", pti.save_pretrained(tmp_path / "model"))
    models = Models(first, open=True, device="cpu")
    heard: list[tuple[int, int]] = []
    hear = module._Load.hear

    def listen(self: module._Load, done: int, total: int) -> None:
        heard.append((done, total))
        hear(self, done, total)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Load, "hear", listen)
        *_, last = models.load("org/mine")
    model = last.model
    assert model is not None and model.name == "org/mine" and model.pti.detector is first.pti.detector
    assert torch.equal(model.pti.generator.synthesis.const, pti.generator.synthesis.const)
    assert heard and all(0 <= done <= total for done, total in heard) and heard[-1][0] == heard[-1][1] > 10_000
    with pytest.raises(ModelNotFoundError, match="The Hub has no repository 'org/none'"):
        models.get("org/none")
    with pytest.raises(ModelNotFoundError, match="The Hub has no repository 'public-data/e4e'"):
        models.get("e4e-ffhq-1024")


def test_errors_name_no_folder_of_this_machine(
    first: Model, pti: PTIPipeline, fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pti.save_pretrained(tmp_path / "model")
    weights = [path for path in folder.rglob("*.safetensors") if path.parent.name == "generator"]
    (folder / "config.json").write_text("{")
    fake_hub.add("org/config", folder)
    models = Models(first, open=True, device="cpu")
    with pytest.raises(CheckpointError, match=r"^org/config/config\.json cannot be read as JSON: Expecting"):
        models.get("org/config")
    pti.save_pretrained(folder)
    assert weights
    weights[0].write_bytes(b"junk" * 10)
    fake_hub.add("org/weights", folder)
    with pytest.raises(CheckpointError, match=r"^org/weights/generator/model\.safetensors cannot be read"):
        list(models.load("org/weights"))
    (folder / "config.json").unlink()
    fake_hub.add("org/none", folder)
    with pytest.raises((ModelNotFoundError, CheckpointError), match="org/none") as caught:
        models.get("org/none")
    assert str(tmp_path) not in str(caught.value) and "snapshots" not in str(caught.value)

    def load(name: str, **_: Any) -> Model:
        raise ValueError(
            f"'{tmp_path}/a b/x.pt', {tmp_path}/c/y.pt and C:\\Users\\me\\z.pt: see https://example.org/a/b and/or ask"
        )

    monkeypatch.setattr(module, "load_model", load)
    with pytest.raises(ValueError, match=r"y\.pt and z\.pt: see https://example\.org/a/b and/or ask") as value_error:
        models.get("org/other")
    assert str(tmp_path) not in str(value_error.value)


def test_an_uploaded_folder(first: Model, pti: PTIPipeline, tmp_path: Path, fake_hub: FakeHub) -> None:
    folder = pti.save_pretrained(tmp_path / "mine", license="mit")
    files = [path for path in folder.rglob("*") if path.is_file()]
    models = Models(first, open=True, device="cpu")
    name = models.add_folder(files)
    model = models.get(name)
    for path in files:
        path.unlink()
    assert model.name == name and len(name) == len("upload-") + 32 and model.licence == "MIT"
    assert model.note.startswith("The uploaded model draws") and name not in model.note
    assert models.get(name) is model and model.pti.detector is first.pti.detector
    assert name not in [known for _, known in models.choices()] and models.loaded() == [first]
    other = models.get("faces64")
    assert models.get("faces64") is other
    with pytest.raises(
        ModelNotFoundError, match=r"The uploaded model is gone, others took its place\. Upload it again"
    ):
        models.get(name)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (
            lambda folder: spoil(folder / "generator", resolution=64),
            r"no model: generator/model\.safetensors does not fit",
        ),
        (lambda folder: spoil(folder, crop_scale=[]), r"no model: config\.json: `crop_scale` must be a number"),
        (lambda folder: spoil(folder, pti={"tuning": {"num_steps": -1}}), r"no model: config\.json: bad settings"),
    ],
)
def test_an_uploaded_folder_that_does_not_fit(
    damage: Callable[[Path], None], match: str, first: Model, pti: PTIPipeline, tmp_path: Path
) -> None:
    folder = pti.save_pretrained(tmp_path / "mine")
    damage(folder)
    models = Models(first, open=True, device="cpu")
    with pytest.raises(CheckpointError, match=match) as caught:
        models.add_folder([path for path in folder.rglob("*") if path.is_file()])
    assert tempfile.gettempdir() not in str(caught.value) and models.loaded() == [first]


def test_an_uploaded_folder_lies_with_the_files_of_the_app(
    first: Model, pti: PTIPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, place = pti.save_pretrained(tmp_path / "mine"), tmp_path / "place"
    place.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(place))
    seen: list[Path] = []

    def load(folder: Path, **options: Any) -> Model:
        seen.append(folder)
        return first

    monkeypatch.setattr("stylegan_inversion.webapp.models.load_model", load)
    Models(first, open=True, device="cpu").add_folder([path for path in folder.rglob("*") if path.is_file()])
    assert seen[0].is_relative_to(place) and not any(place.iterdir())


def spoil(folder: Path, **fields: Any) -> None:
    hub.write_config({**hub.read_config(folder), **fields}, folder)
