"""The methods in a forked process, as ZeroGPU runs them: a stand-in for its package forks, and sends pickles."""

import multiprocessing
import os
import pickle
import runpy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

gr = pytest.importorskip("gradio")
from stylegan_inversion import InversionOutput  # noqa: E402
from stylegan_inversion.editing.directions import Direction  # noqa: E402
from stylegan_inversion.pipelines.play import interpolate_outputs  # noqa: E402
from stylegan_inversion.webapp import app, studio, zerogpu  # noqa: E402
from stylegan_inversion.webapp.editor import Editor, handler  # noqa: E402
from stylegan_inversion.webapp.models import Model, Models  # noqa: E402
from stylegan_inversion.webapp.photos import EXAMPLES  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ROOT = Path(__file__).parents[2]
FORK = multiprocessing.get_context("fork")


class Spaces(ModuleType):
    """The package's one decorator for generator functions; it knows the seconds that were asked for."""

    def __init__(self) -> None:
        super().__init__("spaces")
        self.seconds: list[int] = []
        self.children: list[Any] = []

    def GPU(self, *, duration: Callable[..., int]) -> Callable[..., Any]:
        return lambda task: partial(self._run, task, duration)

    def _run(self, task: Callable[..., Any], duration: Callable[..., int], *args: Any) -> Iterator[Any]:
        self.seconds.append(duration(*args))
        here, there = FORK.Pipe()
        closed = FORK.Event()
        child = FORK.Process(target=self._child, args=(task, pickle.dumps(args), there, closed), daemon=True)
        child.start()
        there.close()
        self.children.append(child)
        try:
            while True:
                assert here.poll(60), "the process is stuck"
                ended, value = here.recv()
                if ended:
                    return
                yield value
        except EOFError:  # it was killed
            return
        finally:
            closed.set()
            child.join(30)
            here.close()

    @staticmethod
    def _child(task: Callable[..., Any], args: bytes, pipe: Any, closed: Any) -> None:
        values = task(*pickle.loads(args))
        for value in values:
            if closed.is_set():
                values.close()
                break
            pipe.send((False, value))
        pipe.send((True, None))


@pytest.fixture
def spaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spaces]:
    spaces = Spaces()
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    yield spaces
    assert not any(child.is_alive() for child in spaces.children)


@pytest.fixture
def gpu(spaces: Spaces, model: Model, monkeypatch: pytest.MonkeyPatch) -> zerogpu.BorrowedGPU:
    monkeypatch.setattr(zerogpu, "_held", {})
    found = zerogpu.find_gpu()
    assert found is not None
    found.hold(model)
    return found


def bytes_of(module: torch.nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def same(a: InversionOutput, b: InversionOutput) -> bool:
    images = [image.tobytes() for image in a.images] == [image.tobytes() for image in b.images]
    return images and torch.equal(a.w_plus, b.w_plus) and bytes_of(a.generator) == bytes_of(b.generator)


def test_only_on_zerogpu(spaces: Spaces, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zerogpu.find_gpu() is not None
    monkeypatch.setitem(sys.modules, "spaces", ModuleType("spaces"))  # this repository has a folder of that name
    assert zerogpu.find_gpu() is None
    monkeypatch.setitem(sys.modules, "spaces", None)  # not installed
    assert zerogpu.find_gpu() is None
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    monkeypatch.delenv("SPACES_ZERO_GPU")
    assert zerogpu.find_gpu() is None


def test_the_results_are_the_same_as_here(
    gpu: zerogpu.BorrowedGPU, model: Model, photo: Image.Image, spaces: Spaces
) -> None:
    before, crop = bytes_of(model.tuner.generator), model.tuner.align(photo)
    quick = gpu.run(model, partial(model.pipelines["e4e"], crop))
    assert same(quick, model.pipelines["e4e"](crop)) and quick.generator is model.tuner.generator
    assert same(gpu.run(model, partial(model.tuner.edit, quick, smile=2.0)), model.tuner.edit(quick, smile=2.0))
    reports: list[tuple[int, dict[str, Any]]] = []

    def hear(step: int, info: dict[str, Any]) -> bool:
        return bool(reports.append((step, info)))

    options: dict[str, Any] = {"num_w_steps": 3, "num_tuning_steps": 3, "pivot": "w_plus"}
    out = gpu.run(model, partial(model.tuner, crop, callback=hear, **options), hear, steps=6)
    assert same(out, model.tuner(crop, **options)) and out.generator is not model.tuner.generator
    assert out.base is not None and out.base.generator is model.tuner.generator and out.crops[0].photo is crop.photo
    step, info = reports[0]
    assert step == 1 and info["stage"] == "projection" and info["y_hat"].shape == (1, 3, 32, 32)
    edited = gpu.run(model, partial(model.tuner.edit, out, smile=2.0))
    assert same(edited, model.tuner.edit(out, smile=2.0)) and edited.generator is out.generator
    frames = gpu.run(model, partial(interpolate_outputs, quick, edited, steps=2))
    assert [each.tobytes() for each in frames] == [quick.images[0].tobytes(), edited.images[0].tobytes()]
    assert bytes_of(model.tuner.generator) == before and len(spaces.seconds) == 5


def test_no_weights_go_along(
    gpu: zerogpu.BorrowedGPU, model: Model, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []
    work = gpu._work
    monkeypatch.setattr(gpu, "_work", lambda *job: jobs.append(job) or work(*job))
    crop = model.tuner.align(photo)
    quick = gpu.run(model, partial(model.pipelines["e4e"], crop))
    assert len(pickle.dumps(jobs[0])) < photo.width * photo.height * 3 + 20_000  # the photo, which an encoder reads
    styles = torch.ones(sum(model.tuner.generator.config.style_sizes))
    monkeypatch.setitem(model.tuner.directions, "hat", Direction.from_vector("hat", styles, space="s"))
    out, here = (do(partial(model.tuner.edit, quick, hat=9.0)) for do in (partial(gpu.run, model), lambda work: work()))
    assert out.images[0].tobytes() == here.images[0].tobytes() != quick.images[0].tobytes()
    assert out.generator.unstyled is model.tuner.generator  # a copy that shares them is made here
    assert len(pickle.dumps(jobs[1])) < len(pickle.dumps(jobs[0])) + 20_000


def test_a_stop_and_an_error(gpu: zerogpu.BorrowedGPU, model: Model, photo: Image.Image) -> None:
    crop = model.tuner.align(photo)

    def tune(on_step: Callable[..., bool], **options: Any) -> InversionOutput:
        options = {"num_tuning_steps": 100_000, "pivot": "e4e", **options}
        return gpu.run(model, partial(model.tuner, crop, callback=on_step, **options), on_step, steps=100_000)

    assert tune(lambda step, info: step > 2).reports[0]["stopped_by"] == "callback"

    def fail(step: int, info: dict[str, Any]) -> bool:
        raise ConnectionError("the visitor left")

    with pytest.raises(ConnectionError):
        tune(fail)
    with pytest.raises(ValueError, match="`preset` must be one of"):
        tune(fail, preset="x")


def test_its_own_errors_are_said(gpu: zerogpu.BorrowedGPU, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(*job: Any) -> Iterator[Any]:
        yield None
        raise gr.Error("You have exceeded your ZeroGPU quota. Try again in 1:00:00.", print_exception=False)

    monkeypatch.setattr(gpu, "_work", spent)
    with app.private_folder(), gr.Blocks() as demo:
        page = Editor(studio.Studio(Models(model), gpu=gpu))
        page.tabs, page.file, page.delete = gr.Tabs(), gr.DownloadButton(), gr.Button()
        page.connect(demo)
        visit = page._open("")[page.visit]
        *_, last = handler(page, page._tune)(visit, "fast")
        monkeypatch.setattr(studio, "DEMONSTRATION", 16)
        page.studio._examples.clear()
        (opened,) = next(each.fn for each in demo.fns.values() if each.targets[0][1] == "load")(studio.Visit(), "")
    for shown in (last, opened):
        assert "<span>You have exceeded your ZeroGPU quota" in shown[page.status]


def test_a_process_that_is_killed(gpu: zerogpu.BorrowedGPU, model: Model, photo: Image.Image, spaces: Spaces) -> None:
    def kill(step: int, info: dict[str, Any]) -> bool:
        os.kill(spaces.children[-1].pid, 9)
        return False

    endless = partial(model.tuner, model.tuner.align(photo), callback=kill, num_tuning_steps=100_000, pivot="e4e")
    with pytest.raises(RuntimeError, match="ended without a result"):
        gpu.run(model, endless, kill, steps=9)


def test_opening_an_example_again_borrows_none(
    gpu: zerogpu.BorrowedGPU, model: Model, spaces: Spaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio, "DEMONSTRATION", 16)
    work, visit = studio.Studio(Models(model)), studio.Visit()
    work.example(visit, EXAMPLES[1])
    work.gpu = gpu
    work.example(other := studio.Visit(), EXAMPLES[1])
    assert visit.out is other.out is not None and "smile" in other.strengths
    edited = work.edit(other, other.out, other.strengths)
    assert edited.edits == other.strengths and not spaces.seconds
    work.edit(other, other.out, {"smile": 1.0})
    assert len(spaces.seconds) == 1


@pytest.mark.parametrize(("steps", "resolution", "seconds"), [(50, 64, 25), (800, 1024, 120), (0, 1024, 25)])
def test_how_long_it_is_borrowed(steps: int, resolution: int, seconds: int) -> None:
    assert zerogpu.gpu_seconds(steps, resolution) == seconds


def test_what_is_too_slow_for_the_cpu_borrows_it(
    gpu: zerogpu.BorrowedGPU, model: Model, photo: Image.Image, spaces: Spaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = studio.Studio(Models(model), gpu=gpu)
    visit, crop = studio.Visit(), model.tuner.align(photo)
    work.edit(visit, work.invert(visit, crop, "e4e"), {"smile": 1.0})
    assert not spaces.seconds  # a small model does not
    list(work.tune(visit, crop, pivot="e4e", num_tuning_steps=2))
    assert visit.out is not None and len(spaces.seconds) == 1
    monkeypatch.setattr(studio, "DEMONSTRATION", 16)
    out = work.edit(visit, work.invert(visit, crop, "e4e"), {"smile": 1.0})
    assert len(spaces.seconds) == 3
    with app.private_folder():
        work.animation(visit, out, "gif", 3)
        work.mix(visit, out, work.random_face(visit, 0, 0.7), "pose", 1.0)
    assert len(spaces.seconds) == 6


def test_the_app_starts_on_the_cpu(spaces: Spaces, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[Any] = []
    monkeypatch.setattr(app, "load_model", lambda name, device: devices.append(device) or model)
    monkeypatch.setattr(app.signal, "signal", lambda *args: None)
    monkeypatch.setattr(app, "start", lambda demo, **options: devices.append("started"))
    monkeypatch.setattr(app.gr.Blocks, "block_thread", lambda self: None)
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
    assert devices == ["cpu", "started"]
