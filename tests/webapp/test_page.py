"""What the page's handlers answer, without a browser; `test_browser.py` has the rest."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

gr = pytest.importorskip("gradio")
from stylegan_inversion import PTIPipeline, cli  # noqa: E402
from stylegan_inversion.editing.directions import Direction  # noqa: E402
from stylegan_inversion.preprocessing.align import around  # noqa: E402
from stylegan_inversion.webapp import run, studio  # noqa: E402
from stylegan_inversion.webapp.app import launch_options, private_folder  # noqa: E402
from stylegan_inversion.webapp.editor import Editor, handler  # noqa: E402
from stylegan_inversion.webapp.models import Model, Models, load_model, make_model, words_of  # noqa: E402
from stylegan_inversion.webapp.photos import EXAMPLES, Photo  # noqa: E402
from stylegan_inversion.webapp.play import CompareTab, DrawTab, PlayTab, RedrawTab  # noqa: E402
from stylegan_inversion.webapp.studio import Studio, Visit  # noqa: E402
from tests.pipelines.test_domains import no_detector, official_e4e, scene  # noqa: E402
from tests.pipelines.test_tasks_of_psp import make_picture, official_psp  # noqa: E402
from tests.webapp.marks import EDITED, GENERATED, read_mark  # noqa: E402


@pytest.fixture
def editor(model: Model) -> Iterator[Editor]:
    with private_folder(), gr.Blocks():
        yield Editor(Studio(Models(model)))


def show(editor: Editor, work: str, *values: Any) -> dict[Any, Any]:
    """What the page shows in the end."""
    *_, last = handler(editor, getattr(editor, work))(*values)
    return last


@pytest.fixture
def upload(editor: Editor, photo: Image.Image) -> dict[str, Any]:
    path = Path(os.environ["GRADIO_TEMP_DIR"]) / "hash" / "me.png"
    path.parent.mkdir()
    photo.save(path)
    return {"path": str(path)}


def size(path: Any) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_a_page_opens_filled_and_a_reload_brings_the_result_back(editor: Editor, upload: dict[str, Any]) -> None:
    page = editor._open("")
    visit = page[editor.visit]
    assert visit.out is not None and page[editor.key] == "" and "An example." in page[editor.status]
    before, after = page[editor.result]
    assert size(before) == size(after)  # in register
    assert page[editor.sliders[0]]["label"] == words_of(editor._names(editor.studio.model(visit))[0] or "")[0]
    news = show(editor, "_take", visit, upload)
    again = editor._open(news[editor.key])
    assert "Your last result is back." in again[editor.status] and again[editor.visit].out is visit.out
    del visit, page, news, again  # as when its time to live is over
    assert "has expired" in editor._open("x" * 43)[editor.status]


def test_a_saved_picture_is_drawn_again(
    editor: Editor, upload: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tab, visit = RedrawTab(editor), Visit()
    show(editor, "_take", visit, upload)
    show(editor, "_tune", visit, "fast")
    editor._chip(visit, 0)
    saved = editor._save(visit, "jpeg")[1]
    *reports, last = handler(tab, tab._redraw)(visit, {"path": saved}, upload)
    assert "It is the same picture, pixel for pixel." in last[tab.status] and reports
    assert size(last[tab.result]) == size(saved)
    empty, wrong = handler(tab, tab._redraw)(visit, {"path": upload["path"]}, upload)
    assert "The picture has no receipt" in wrong[tab.status] and empty[tab.result] is None
    *_, wrong = handler(tab, tab._redraw)(visit, None, upload)
    assert "Drop both: a picture that was saved here" in wrong[tab.status]
    monkeypatch.setattr(studio, "listener", lambda *given: lambda step, info: True)  # as if it was stopped at once
    *_, wrong = handler(tab, tab._redraw)(visit, {"path": saved}, upload)
    assert "The run was stopped" in wrong[tab.status]


def test_a_photo_is_inverted_at_once_then_tuned(editor: Editor, upload: dict[str, Any], photo: Image.Image) -> None:
    stale = editor._new(Visit())
    visit = stale[editor.visit]
    assert "stale" in stale[editor.status] and visit.out is None
    assert "stale" in editor._edit(visit, 1.0)[editor.status]  # nothing to move yet
    news = show(editor, "_take", visit, upload)
    assert visit.strengths == {} and "2 faces: click one" in news[editor.hint] and "stale" not in news[editor.status]
    assert news[editor.save["jpeg"]]["interactive"] and size(news[editor.whole]) == photo.size
    quick = visit.out
    last = show(editor, "_tune", visit)
    assert "Sharper version ready" in last[editor.status] and visit.out is not quick
    assert "about" in last[editor.sharpen["best"]]["value"]
    assert show(editor, "_tune", visit) == {editor.visit: visit}  # only once by itself; never nothing
    assert "Sharper version ready" in show(editor, "_tune", visit, "fast")[editor.status]
    tuned = visit.out
    visit.begin()
    visit.out = tuned  # as if a quick answer had a generator of its own, like SFE's: it is sharp already
    assert "Ready to edit" in show(editor, "_tune", visit)[editor.status]
    smile = editor._chip(visit, 0)
    assert smile[editor.sliders[0]] > 0 and smile[editor.result][1] != last[editor.result][1]
    edited = editor._edit(visit, *[0.0] * len(editor.sliders))
    assert size(edited[editor.result][0]) == size(edited[editor.result][1]) and visit.strengths == {}
    for kind, suffix in (("jpeg", "me-edited.jpg"), ("png", "me-edited.png"), ("gif", "me-animated.gif")):
        assert Path(editor._save(visit, kind)[1]).name == suffix
    files = visit.files
    assert "Deleted: your photo" in editor._forget(visit)[editor.status]
    assert not any(Path(file).exists() for file in [*files, upload["path"]])


def test_a_click_in_the_photo_chooses_a_face(editor: Editor, upload: dict[str, Any]) -> None:
    visit = Visit()
    show(editor, "_take", visit, upload)
    first = visit.out
    for x, y, face in ((250.0, 100.0, 1), (5.0, 235.0, 1), (120.0, 120.0, 0)):
        show(editor, "_face", visit, SimpleNamespace(index=(x, y), target=editor.photo))
        assert visit.face == face
    assert visit.out is not first


def test_what_cannot_be_done_is_said(editor: Editor, upload: dict[str, Any]) -> None:
    visit = editor._new(Visit())[editor.visit]
    Path(upload["path"]).write_bytes(b"no picture")
    news = show(editor, "_take", visit, upload)
    assert "not an image" in news[editor.status] and "stale" in news[editor.status]  # it stays to be read
    assert news[editor.stop]["visible"] is False and news[editor.hint] == ""
    assert news[editor.save["png"]]["interactive"] is False and visit.photo is None
    with pytest.raises(ValueError, match="There is no inversion here"):
        editor._save(visit, "jpeg")
    assert "cannot be chosen here" in show(editor, "_load", visit, "org/model")[editor.status]


def test_another_model_inverts_the_photo_anew(editor: Editor, upload: dict[str, Any]) -> None:
    visit = Visit()
    show(editor, "_take", visit, upload)
    news = show(editor, "_load", visit, "faces64")
    assert visit.model == "faces64" and visit.out is not None and visit.out.images[0].size == (64, 64)
    assert news[editor.sliders[1]]["label"] == "Younger / older" and "64 x 64 pixels" in news[editor.note]


def test_too_large_a_turn_is_said(editor: Editor, upload: dict[str, Any]) -> None:
    visit = Visit(model="faces64")
    show(editor, "_take", visit, upload)
    place = editor._names(editor.studio.model(visit)).index("yaw")
    for value, said in ((3.0, ""), (-5.0, "Turns beyond 4 ")):
        news = editor._edit(visit, *[value if k == place else 0.0 for k in range(len(editor.sliders))])
        assert news[editor.notice]["visible"] is bool(said) and news[editor.notice]["value"].startswith(said)
    news = editor._chip(visit, 2 * place)
    assert news[editor.sliders[place]] == 4.0 and not news[editor.notice]["visible"]  # a button never goes too far


def test_the_methods_are_compared(editor: Editor, upload: dict[str, Any]) -> None:
    tab, visit = CompareTab(editor), Visit()
    show(editor, "_take", visit, upload)
    *_, shown, last = handler(tab, tab._compare)(visit)
    assert len(shown[tab.gallery]) == 4 and "Done" in last[tab.status]  # SFE apart, all methods
    assert all(
        "100% in the photo" in words for _, words in shown[tab.gallery]
    )  # without an edit it is the photo itself
    tab.editor.tabs = gr.Tabs()
    tab._adopt(visit, SimpleNamespace(index=1))
    assert visit.out is visit.compared[2]
    visit.face = 1
    with pytest.raises(ValueError, match="of another photo or model"):
        tab._adopt(visit, SimpleNamespace(index=0))


def test_a_new_photo_ends_the_run_of_the_old_one(editor: Editor, upload: dict[str, Any]) -> None:
    visit = Visit()
    show(editor, "_take", visit, upload)
    reports = editor.studio.tune(visit, editor.studio.crop(visit), num_tuning_steps=10**5, pivot="e4e")
    next(reports)
    editor._new(visit)
    assert run.finish(reports) is None and visit.out is None
    for thread in threading.enumerate():
        if thread.name == "inversion":
            thread.join(30)
            assert not thread.is_alive()


def test_a_stop_keeps_the_better_result_and_frees_the_place(editor: Editor, upload: dict[str, Any]) -> None:
    visit, other = Visit(), Visit()
    show(editor, "_take", visit, upload)
    show(editor, "_take", other, upload)
    reports = editor.studio.tune(visit, editor.studio.crop(visit), num_tuning_steps=10**5, pivot="e4e")
    next(reports)
    waiting = editor.studio.tune(other, editor.studio.crop(other), preset="fast")
    assert "Waiting: somebody else" in next(waiting).words
    assert visit.end() and not visit.end()
    assert run.finish(reports) is visit.out and visit.out is not None
    assert run.finish(waiting) is other.out is not None


def test_what_the_page_says_of_a_run_that_gives_nothing_new(editor: Editor, upload: dict[str, Any]) -> None:
    visit, other = Visit(), Visit()
    for each in (visit, other):
        show(editor, "_take", each, upload)
    quick = visit.out
    quick.reports[0]["l2"] = 0.0  # nothing is nearer
    running = handler(editor, editor._tune)(visit, "best")
    while "Sharpening" not in next(running)[editor.status]:
        pass
    waiting = handler(editor, editor._tune)(other)
    assert "Waiting" in next(waiting)[editor.status]
    other.end()
    *_, last = waiting
    assert "Stopped before it began" in last[editor.status] and not last[editor.stop]["visible"]
    visit.end()
    *_, last = running
    assert visit.out is quick and "The earlier result stays" in last[editor.status]
    visit.model = "nobody/nothing"
    last = show(editor, "_tune", visit, "fast")
    assert "cannot be chosen here" in last[editor.status] and not last[editor.stop]["visible"]
    assert (
        "cannot be chosen here" in show(editor, "_take", visit, upload)[editor.status]
    )  # such as an upload that is gone


def test_of_two_photos_at_once_the_later_stays(
    editor: Editor, upload: dict[str, Any], photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Path(upload["path"]).with_name("later.png")
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(later)
    visit, news, take = Visit(), [], editor.studio.take

    def slow(*arguments: Any) -> None:
        if not news:
            news.append(None)
            news.append(show(editor, "_take", visit, {"path": str(later)}))  # before the first is read
        take(*arguments)

    monkeypatch.setattr(editor.studio, "take", slow)
    assert show(editor, "_take", visit, upload) == {editor.status: gr.skip()}  # shows nothing of the first
    assert "Ready to edit" in news[1][editor.status] and visit.photo is not None and visit.photo.name == "later"
    assert visit.out is not None and visit.out.crops[0].photo is visit.photo.image


def test_a_result_that_was_given_up_has_expired(
    editor: Editor, upload: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = Visit()
    key = show(editor, "_take", visit, upload)[editor.key]
    monkeypatch.setattr(run, "MAX_HELD", 0)
    assert "took its memory" in show(editor, "_take", Visit(), upload)[editor.status]
    page = editor._open(key)
    assert "has expired" in page[editor.status] and page[editor.visit].out is not None


@pytest.mark.parametrize("margin", [0.0, 0.3, 1e4])
def test_the_part_around_a_face(margin: float, model: Model, photo: Image.Image) -> None:
    crop = model.tuner.align(photo)
    part = around(crop, margin, 100)
    assert max(part.photo.size) <= 100 and part.quad is not None and crop.quad is not None
    scale = part.photo.width / (photo.width if margin > 1 else part.photo.width)
    if margin > 1:
        assert abs((part.quad[2] - part.quad[0]) - scale * (crop.quad[2] - crop.quad[0])).max() < 1


def test_examples_are_there_and_the_options_record_nothing(editor: Editor) -> None:
    visit = Visit()
    for example in EXAMPLES:
        editor.studio.example(visit, example)
        assert visit.out is not None
    options = launch_options()
    assert not options["enable_monitoring"] and not options["run_history"] and not options["show_error"]


def of_official_file(checkpoint: dict[str, Any], folder: Path) -> Model:
    torch.save(checkpoint, folder / "official.pt")
    assert cli.main(["convert", str(folder / "official.pt"), str(folder / "model")]) == 0
    return load_model(folder / "model")


def test_a_model_of_cars(tmp_path: Path, upload: dict[str, Any], model: Model) -> None:
    """No face is looked for; the page opens with what the model draws, and all pictures are in register."""
    cars = of_official_file(official_e4e("cars_encode", styles=12), tmp_path)
    cars.tuner._detector = no_detector
    scene(700, 400).save(upload["path"])
    with private_folder(), gr.Blocks():
        editor = Editor(Studio(Models(cars)))
        page = editor._open("")
        assert "The model drew this at random" in page[editor.status] and not page[editor.examples]["visible"]
        words = [page[editor.note], page[editor.save["face"]]["value"], page[editor.close]["label"]]
        assert "64 x 48" in words[0] and "face" not in "".join(words).lower()
        assert page[editor.sliders[0]]["visible"]  # its own or those that were found
        shutil.copytree(Path(upload["path"]).parent, Path(os.environ["GRADIO_TEMP_DIR"], "hash"))
        here = {"path": str(Path(os.environ["GRADIO_TEMP_DIR"], "hash", "me.png"))}
        visit = page[editor.visit]
        news = show(editor, "_take", visit, here)
        assert visit.faces == [] and size(news[editor.whole]) == (700, 400)
        assert visit.out is not None and visit.out.images[0].size == (64, 48)
        moved = editor._edit(visit, *[0.2] * len(editor.sliders))
        for pair in (editor.result, editor.drawn):
            assert size(moved[pair][0]) == size(moved[pair][1])
        assert size(moved[editor.drawn][0]) == (512, 384) and moved[editor.result][0] != moved[editor.result][1]
        tab = CompareTab(editor)
        *_, shown, _ = handler(tab, tab._compare)(visit)
        assert len(shown[tab.gallery]) == 2 and "person" not in str(shown[tab.gallery])


@pytest.mark.parametrize("task", ["celebs_sketch_to_face", "celebs_seg_to_face", "ffhq_frontalize"])
def test_a_model_of_drawings(task: str, tmp_path: Path, upload: dict[str, Any]) -> None:
    channels = {"celebs_sketch_to_face": 1, "celebs_seg_to_face": 19}.get(task, 3)
    drawing = of_official_file(official_psp(task, channels), tmp_path)
    make_picture(channels).save(upload["path"])
    assert drawing.quick is None and drawing.drawing is not None
    assert drawing.drawing.generator is drawing.tuner.generator
    editor = Editor(Studio(Models(drawing)))
    tab = DrawTab(editor)
    page = editor._open("")
    assert "draws" in page[editor.mark] and "Open the tab Draw" in page[editor.status]
    visit, read, drawn = tab._draw(page[editor.visit], upload, 3)
    assert len(drawn) == 3 and (size(read)[0] > size(read)[1]) == (channels == 19)  # with the legend
    assert read_mark(Path(drawn[0])) == (EDITED if channels == 3 else GENERATED)
    if channels == 3:
        assert drawing.reads == "frontalization" and page[tab.count]["value"] == 1
    editor.tabs = gr.Tabs()
    visit.photo = Photo(make_picture(1), "another")
    news = tab._adopt(visit, SimpleNamespace(index=2))
    assert visit.photo is news[editor.photo] is None
    assert visit.out is not None and visit.out.images[0] is visit.translated[2].images[0]
    assert size(news[editor.result][0]) == size(news[editor.result][1])
    assert "No photo shows" in show(editor, "_tune", visit, "fast")[editor.status]
    show(editor, "_load", visit, "faces64")
    with pytest.raises(ValueError, match="draw again"):
        tab._adopt(visit, SimpleNamespace(index=2))
    Path(upload["path"]).write_bytes(b"no picture")
    with pytest.raises(ValueError, match="not an image"):
        tab._draw(visit, upload, 3)
    visit.forget()
    assert not Path(upload["path"]).exists()


def test_what_comes_too_late_is_not_kept(editor: Editor, upload: dict[str, Any], model: Model) -> None:
    """Of a drawing that a deletion ends, of one that was not drawn, and of a photo's edit with another model."""
    visit, tab, play, translate = Visit(), DrawTab(editor), PlayTab(editor), editor.studio.translate
    show(editor, "_take", visit, upload)
    steps = handler(editor, editor._load)(visit, "faces64")
    while "Reading" not in (page := next(steps))[editor.status]:
        pass
    assert "64 x 64" in page[editor.note] and visit.out is None  # of the first model
    assert "Choose" in editor._edit(visit, *[0.1] * len(editor.sliders))[editor.status]
    visit.begin()
    assert [*steps] == [{editor.status: gr.skip()}]
    show(editor, "_take", visit, upload)
    pictures, editor._pictures = editor._pictures, lambda visit: (pictures(visit), visit.begin())[0]
    assert editor._edit(visit, *[0.1] * len(editor.sliders)) == {editor.status: gr.skip()}
    tab._given(visit, upload)
    editor.studio.translate = lambda *given, **options: (translate(*given, **options), visit.forget())[0]
    with pytest.raises(ValueError, match="Ended"):
        tab._draw(visit, upload, 2)
    with pytest.raises(ValueError, match="Ended"):
        play._put(lambda visit: visit.begin(), 0, visit)
    assert visit.translated is None and visit.played == {} and not Path(upload["path"]).exists()


def test_directions_in_s(editor: Editor, upload: dict[str, Any], model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have sliders with ends, their copies take no memory, and an animation begins without them."""
    count = sum(model.tuner.generator.config.style_sizes)
    tuner = PTIPipeline(**model.tuner.components)
    tuner.directions = {"hat": Direction.from_vector("hat", torch.arange(1.0, count + 1), space="s", unit=0.5)}
    editor.studio.models.first = made = make_model(tuner, name="tiny")
    low, high = made.range_of("hat")
    assert low == -high and 0 < high < 100
    visit = Visit()
    show(editor, "_take", visit, upload)
    assert visit.out is not None and editor._names(made)[0] == "hat"
    edited = editor.studio.edit(visit, visit.out, {"hat": high})
    assert (
        edited.images[0].tobytes() != visit.out.images[0].tobytes() and edited.generator.unstyled is visit.out.generator
    )
    frames = editor.studio._between(visit, edited.unedited, edited, 3)
    assert frames[0].tobytes() == visit.out.images[0].tobytes() and frames[2].tobytes() == edited.images[0].tobytes()
    monkeypatch.setattr(editor.studio, "_animated", lambda visit, pictures, *_: pictures)
    part = around(visit.out.crops[0], 1.0, 640)
    for out, frame in zip((visit.out, edited), editor.studio.animation(visit, edited, "gif", 2)):
        assert np.array_equal(frame, editor.studio.pasted(out, part))
