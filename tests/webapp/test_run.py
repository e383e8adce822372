"""How visitors share the machine: whose turn it is to tune, and what their results may take of its memory."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.webapp import run
from stylegan_inversion.webapp.app import private_folder
from stylegan_inversion.webapp.models import Model, Models
from stylegan_inversion.webapp.photos import EXAMPLES
from stylegan_inversion.webapp.run import finish
from stylegan_inversion.webapp.studio import Studio, Visit
from tests.conftest import make_generator
from tests.webapp.marks import EDITED, read_mark

ENDLESS = {"num_tuning_steps": 10**5, "pivot": "e4e"}
SHORT = {"num_tuning_steps": 1, "pivot": "e4e"}


@pytest.fixture
def studio(model: Model) -> Iterator[Studio]:
    with private_folder():
        studio = Studio(Models(model))
        yield studio
        studio.close()


@pytest.fixture
def crop(model: Model, photo: Image.Image) -> Crop:
    return model.tuner.align(photo)


def test_the_one_who_came_first_is_next_and_each_waits_once(studio: Studio, crop: Crop) -> None:
    greedy, other = Visit(), Visit()
    running = studio.tune(greedy, crop, **ENDLESS)
    next(running)
    waiting = studio.tune(Visit(greedy.key), crop, **SHORT)  # another call of the same client
    theirs = studio.tune(other, crop, **SHORT)
    assert "Waiting" in next(waiting).words and "Waiting" in next(theirs).words
    with pytest.raises(ValueError, match="A photo of yours waits to be sharpened already"):
        next(studio.tune(Visit(greedy.key), crop, **SHORT))
    waiting.close()  # cancelled: there is room for another
    again = studio.tune(Visit(greedy.key), crop, **SHORT)
    assert "Waiting" in next(again).words
    running.close()
    assert "Waiting" in next(again).words  # the other one came first
    assert finish(theirs) is other.out is not None
    assert finish(again) is not None


def test_a_stop_gives_the_best_there_is(studio: Studio, model: Model, crop: Crop) -> None:
    quick = model.pipelines["e4e"](crop)
    for before in (None, quick):
        visit = Visit(out=before)
        reports = studio.tune(visit, crop, pivot="w", num_w_steps=1000)
        while not next(reports).preview:
            pass
        visit.end()
        assert finish(reports) is visit.out is not None
        assert visit.out.reports[0]["l2"] <= quick.reports[0]["l2"]


def test_the_oldest_results_go_when_memory_is_short(
    studio: Studio, model: Model, crop: Crop, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = [Visit() for _ in range(3)]
    own = sum(tensor.nbytes for tensor in model.tuner.generator.state_dict().values())
    monkeypatch.setattr(run, "MAX_HELD", 2 * own + 1000)
    for visit in visits:
        assert finish(studio.tune(visit, crop, **SHORT)) is visit.out
    outs = [visit.out for visit in visits if visit.out]
    assert not [*outs[0].generator.synthesis.parameters()]
    for work in (
        lambda: studio.edit(visits[0], outs[0], {"smile": 1.0}),
        lambda: studio.between(visits[1], outs[1], outs[0], "gif", 2),  # in whatever state it is kept
        lambda: studio.file(visits[0], outs[0], "inversion"),
    ):
        with pytest.raises(ValueError, match="newer ones of other visitors took its memory"):
            work()
    for visit, out in zip(visits[1:], outs[1:]):
        assert studio.edit(visit, out, {"smile": 1.0}).images
    path = Path(studio.file(visits[2], model.pipelines["e4e"](crop), "inversion"))
    monkeypatch.setattr(run, "MAX_HELD", 0)
    studio.open_inversion(visits[2], str(path))
    reports = studio.tune(visits[2], crop, pivot="w", num_w_steps=1000)
    while not next(reports).preview:
        visits[2].out = None
    visits[2].end()
    assert finish(reports) and model.pipelines["e4e"](crop).images  # the model itself stays
    monkeypatch.setattr(run, "MAX_HELD", 5 * photo.width * photo.height)
    path = Path(visits[0].publish(b"", "x.png"))
    photo.save(path)
    studio.take(visits[0], str(path))
    assert studio.crop(visits[0]).image.size == (32, 32)
    studio.take(visits[1], str(path))
    with pytest.raises(ValueError, match="Invert the photo again"):
        studio.crop(visits[0])
    assert studio.crop(visits[1]).image.size == (32, 32)


def test_a_result_counts_once_and_an_example_is_made_again(
    studio: Studio, model: Model, crop: Crop, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = sum(tensor.nbytes for tensor in model.tuner.generator.state_dict().values())
    monkeypatch.setattr(run, "MAX_HELD", 2 * own)
    visit, other, memory, generator = Visit(), Visit(), run.Memory(), make_generator()
    studio.example(visit, EXAMPLES[0])
    [*studio.tune(visit, studio.crop(visit), **SHORT)]
    studio.example(other, EXAMPLES[0])
    assert visit.out is other.out and visit.out is not None
    for _ in range(3):
        memory.hold(generator)
    assert [*generator.synthesis.parameters()]
    monkeypatch.setattr(run, "MAX_HELD", 0)
    with pytest.raises(ValueError, match="took its memory"):
        finish(studio.tune(Visit(), crop, **SHORT)).generator.synthesis(crop)
    with pytest.raises(ValueError, match="took its memory"):
        studio.edit(visit, visit.out, {"smile": 1.0})
    studio.example(other, EXAMPLES[0])
    assert other.out is not None and studio.edit(other, other.out, {"smile": 1.0}).images


def test_copies_in_s_take_no_memory_and_go_with_their_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, generator, count = run.Memory(), make_generator(), sum(make_generator().config.style_sizes)
    own = sum(tensor.nbytes for tensor in generator.state_dict().values())
    monkeypatch.setattr(run, "MAX_HELD", own + 5 * 8 * count)
    styled = [generator.with_styles(torch.full((count,), k)) for k in (1.0, 2.0, 3.0, 4.0, 5.0)]
    for each in styled:
        memory.hold(each, generator)
    assert not any(run.is_gone(each) for each in (generator, *styled))
    memory.hold(last := generator.with_styles(torch.full((count,), 6.0)), generator)
    assert [run.is_gone(each) for each in (*styled, last, generator)] == [True, *[False] * 6]
    memory.hold(make_generator())
    assert all(run.is_gone(each) for each in (*styled, last, generator))


def test_a_deletion_while_others_write(studio: Studio) -> None:
    class Growing(set[str]):
        def __iter__(self) -> Iterator[str]:  # another thread goes on meanwhile
            for each in super().__iter__():
                self.add(f"{each}, too")
                yield each

    visit, other = Visit(), Visit(files=Growing(["theirs"]))
    path = visit.publish(b"mine", "me.jpg")
    assert visit.forget() == 1 and not Path(path).exists() and "theirs" in other.files


def test_the_preview_says_what_it_is(photo: Image.Image, tmp_path: Path) -> None:
    text = run.status("Sharpening", preview=photo)
    found = re.search(r"base64,([^\"]+)", text)
    assert found is not None
    (tmp_path / "preview.jpg").write_bytes(base64.b64decode(found[1]))
    assert read_mark(tmp_path / "preview.jpg") == EDITED
