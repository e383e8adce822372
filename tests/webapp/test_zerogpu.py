"""PTI in a forked process, as ZeroGPU runs it: a stand-in for its package forks, and sends pickles to and fro."""

import copy
import functools
import multiprocessing
import os
import pickle
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_inversion import InversionOutput, PTIPipeline
from stylegan_inversion.errors import DivergedError
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.webapp import zerogpu
from stylegan_inversion.webapp.model import make_model
from stylegan_inversion.webapp.sessions import Sessions

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ROOT = Path(__file__).parents[2]
FORK = multiprocessing.get_context("fork")
MANY = 100_000  # steps; nobody waits for them


class Spaces(ModuleType):
    """The package's one decorator for generator functions; it knows the seconds that were asked for."""

    def __init__(self) -> None:
        super().__init__("spaces")
        self.seconds: list[int] = []
        self.children: list[Any] = []

    def GPU(self, *, duration: Callable[..., int]) -> Callable[..., Any]:
        return lambda task: functools.partial(self._run, task, duration)

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
def gpu(spaces: Spaces, tmp_path: Path) -> zerogpu.BorrowedGPU:
    found = zerogpu.find_gpu(tmp_path)
    assert found is not None
    return found


def never(step: int, info: dict[str, Any]) -> bool:
    return False


def bytes_of(module: torch.nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def same(a: InversionOutput, b: InversionOutput) -> bool:
    images = [image.tobytes() for image in a.images] == [image.tobytes() for image in b.images]
    return images and torch.equal(a.w_plus, b.w_plus) and bytes_of(a.generator) == bytes_of(b.generator)


def test_only_on_zerogpu(tmp_path: Path, spaces: Spaces, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zerogpu.find_gpu(tmp_path) is not None
    assert zerogpu.own_device("auto") == "cpu" and zerogpu.own_device("mps") == "mps"
    assert zerogpu.own_cpu() == "CPU, and PTI on a borrowed GPU"

    def nowhere() -> None:
        assert zerogpu.find_gpu(tmp_path) is None
        assert zerogpu.own_device("auto") == "auto" and zerogpu.own_cpu() == "CPU"

    monkeypatch.setitem(sys.modules, "spaces", ModuleType("spaces"))  # this repository has a folder of that name
    nowhere()
    monkeypatch.setitem(sys.modules, "spaces", None)  # not installed
    nowhere()
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    monkeypatch.setenv("SPACES_ZERO_GPU", "0")
    nowhere()
    monkeypatch.delenv("SPACES_ZERO_GPU")
    nowhere()


def test_the_result_is_the_same_as_here(
    gpu: zerogpu.BorrowedGPU, pti: PTIPipeline, photo: Image.Image, tmp_path: Path
) -> None:
    before, parts = bytes_of(pti.generator), copy.copy(vars(pti))
    crop = pti.align(photo)
    reports: list[tuple[int, dict[str, Any]]] = []

    def on_step(step: int, info: dict[str, Any]) -> bool:
        reports.append((step, info))
        return False

    out = gpu.work(pti, crop, steps=6, num_w_steps=3, num_tuning_steps=3, pivot="w_plus")(on_step)
    direct = pti(crop, num_w_steps=3, num_tuning_steps=3, pivot="w_plus")
    assert same(out, direct) and not same(out, pti(crop, num_w_steps=3, num_tuning_steps=3))
    assert {**out.reports[0], "seconds": 0} == {**direct.reports[0], "seconds": 0}
    assert out.base is not None and out.base.generator is pti.generator and out.crops == [crop]
    assert out.generator is not pti.generator and out.generator.w_avg.device.type == "cpu"
    assert not any(p.requires_grad for p in out.generator.parameters()) and not out.generator.training
    step, info = reports[0]
    assert step == 1 and info["stage"] == "projection" and info["loss"] > 0
    assert info["y_hat"].shape == (1, 3, 32, 32) and -1 <= info["y_hat"].min() < info["y_hat"].max() <= 1
    assert bytes_of(pti.generator) == before and vars(pti) == parts and not pti.generator.w_avg.is_shared()
    assert not list(tmp_path.iterdir())
    edited = pti.edit(out, smile=2.0)
    assert edited.images[0].tobytes() == pti.edit(direct, smile=2.0).images[0].tobytes()


def test_an_encoder_goes_along(gpu: zerogpu.BorrowedGPU, pti: PTIPipeline, photo: Image.Image) -> None:
    config = PyramidEncoderConfig(32, 64, w_dim=16, widths=(4, 4, 8, 8), units=(1, 1, 1, 1), reduction=2)
    pti.encoders["psp"] = GradualStyleEncoder(config).eval().requires_grad_(False)
    crop = pti.align(photo)
    out = gpu.work(pti, crop, steps=2, num_w_steps=None, num_tuning_steps=2, pivot="psp")(never)
    assert same(out, pti(crop, num_tuning_steps=2, pivot="psp"))


def test_stop_keeps_the_best(gpu: zerogpu.BorrowedGPU, pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    asked = []

    def on_step(step: int, info: dict[str, Any]) -> bool:
        asked.append(step)
        return len(asked) > 1

    out = gpu.work(pti, pti.align(photo), steps=MANY, num_w_steps=MANY, num_tuning_steps=MANY)(on_step)
    report = out.reports[0]
    assert report["stopped_by"] == "callback" and asked[1] <= report["w_steps"] < 1000 and report["tuning_steps"] == 0
    assert not list(tmp_path.iterdir())


def test_the_work_ends_before_the_gpu_is_taken_away(
    gpu: zerogpu.BorrowedGPU, pti: PTIPipeline, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zerogpu, "gpu_seconds", lambda steps, resolution: zerogpu.START_SECONDS)
    out = gpu.work(pti, pti.align(photo), steps=MANY, num_w_steps=MANY)(never)
    assert out.reports[0]["stopped_by"] == "callback" and out.reports[0]["w_steps"] < 100


def test_leaving_ends_the_process(
    gpu: zerogpu.BorrowedGPU, spaces: Spaces, pti: PTIPipeline, photo: Image.Image, tmp_path: Path
) -> None:
    sessions, before = Sessions(), bytes_of(pti.generator)
    work = gpu.work(pti, pti.align(photo), steps=MANY, num_w_steps=MANY)
    reports = sessions.run(work, total=MANY, first_stage_steps=MANY, owner="anna", model="tiny")
    assert next(report for report in reports if report.step > 0).stage == "projection"
    (child,) = spaces.children
    assert child.is_alive()
    reports.close()
    child.join(30)
    deadline = time.monotonic() + 30
    while sessions._running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.is_alive() and not sessions._running and len(sessions) == 0
    assert bytes_of(pti.generator) == before and not list(tmp_path.iterdir())


def test_an_error_in_the_app_ends_the_process(
    gpu: zerogpu.BorrowedGPU, spaces: Spaces, pti: PTIPipeline, photo: Image.Image, tmp_path: Path
) -> None:
    def broken(step: int, info: dict[str, Any]) -> bool:
        raise KeyError("page")

    with pytest.raises(KeyError, match="page"):
        gpu.work(pti, pti.align(photo), steps=MANY, num_w_steps=MANY)(broken)
    assert not spaces.children[0].is_alive() and not list(tmp_path.iterdir())


def test_errors_come_back(
    gpu: zerogpu.BorrowedGPU, spaces: Spaces, pti: PTIPipeline, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    crop = pti.align(photo)
    with pytest.raises(ValueError, match="`num_w_steps` must be >= 1, got 0"):
        gpu.work(pti, crop, steps=1, num_w_steps=0)(never)
    with pytest.raises(RuntimeError, match="PTI failed in the process with the borrowed GPU:\nTraceback"):
        gpu.work(pti, crop, steps=1, nonsense=1)(never)
    monkeypatch.setattr(gpu, "_tune", lambda job: (step for step in ()))  # the process was killed
    with pytest.raises(RuntimeError, match="The process with the borrowed GPU ended without a result"):
        gpu.work(pti, crop, steps=1)(never)
    monkeypatch.undo()
    pti.generator.synthesis.const.data.fill_(float("nan"))
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    with pytest.raises(DivergedError, match="nan"):
        gpu.work(pti, crop, steps=2, num_w_steps=1, num_tuning_steps=1)(never)


def test_seconds_grow_with_steps_and_are_capped() -> None:
    for resolution in (64, 1024):
        seconds = [zerogpu.gpu_seconds(steps, resolution) for steps in (0, 1, 100, 400, 800, 2000)]
        assert seconds == sorted(seconds) and seconds[0] == zerogpu.START_SECONDS + zerogpu.LEAST_SECONDS
        assert len(set(seconds)) >= 4 and seconds[-1] <= zerogpu.LONGEST_SECONDS
    assert zerogpu.gpu_seconds(800, 64) < 60 < zerogpu.gpu_seconds(800, 1024)
    assert zerogpu.gpu_seconds(10**9, 64) == zerogpu.LONGEST_SECONDS


def test_the_app_borrows_for_pti_alone(
    spaces: Spaces, pti: PTIPipeline, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    from stylegan_inversion.webapp.actions import Actions
    from stylegan_inversion.webapp.models import Models

    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(zerogpu, "gpu_seconds", lambda *of: asked.append(of) or 60)
    actions = Actions(Models(make_model(pti, name="tiny")), Sessions(), SimpleNamespace(folder=tmp_path))
    actions.random_face(owner="anna")
    assert "on the CPU, and PTI on a borrowed GPU." in actions.models.first.note and not spaces.seconds
    *_, last = actions.run(pti.align(photo), "pti", owner="anna", num_w_steps=2, num_tuning_steps=1)
    assert asked == [(3, 32)] and spaces.seconds == [60]
    kept = actions.kept(last.token, owner="anna").output
    assert kept is last.output and kept.base is not None and kept.base.generator is pti.generator
    assert actions.edited(last.token, {"smile": 3.0}, owner="anna").generator is kept.generator


def test_the_package_comes_before_pytorch(tmp_path: Path) -> None:
    first = "import sys; print([name for name in ('torch', 'gradio') if name in sys.modules]); sys.exit(3)"
    (tmp_path / "spaces.py").write_text(first)
    ran = subprocess.run(
        [sys.executable, "app.py"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True
    )
    assert (ran.returncode, ran.stdout.strip()) == (3, b"[]")


def test_the_app_starts_on_the_cpu(spaces: Spaces, pti: PTIPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip("gradio")
    import stylegan_inversion.webapp.app as app

    devices = []
    monkeypatch.setattr(app, "load_model", lambda name, device: devices.append(device) or make_model(pti, name=name))
    monkeypatch.setattr(app.signal, "signal", lambda *args: None)
    monkeypatch.setattr(gradio.Blocks, "launch", lambda self, **options: devices.append("launched"))
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
    assert devices == ["cpu", "launched"]
