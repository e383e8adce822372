"""ZeroGPU: the Hugging Face Spaces that have no GPU of their own but borrow one for seconds.

There a function that `spaces.GPU` decorates runs in a forked process that sees a GPU. What it yields is sent back; what
it leaves in that process's memory is lost to the app. The process holds the models that were loaded before it was
forked and loads others by their names, so that a job carries no weights but those nobody else has: a tuned generator,
an uploaded model. The app itself stays on the CPU: `torch.cuda.is_available()` is true in it, but only GPU functions
have one. Both ends are this app: no pickle here comes from outside.

Facts: https://huggingface.co/docs/hub/spaces-zerogpu and the package `spaces` 0.51 (Apache-2.0). Own code.
"""

import contextvars
import dataclasses
import importlib
import math
import os
import pickle
import queue
import secrets
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylegan_inversion.errors import StyleGANInversionError
from stylegan_inversion.pipelines.output import Base, InversionOutput
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.webapp.models import TUNED, UPLOAD, Model, load_model, make_model
from stylegan_inversion.webapp.run import OnStep

START_SECONDS = 15  # for the process, CUDA and the way there and back
LEAST_SECONDS = 10  # for the steps: the first one takes the longest
LONGEST_SECONDS = 120  # in all; a visitor has a few minutes a day
SEND_SECONDS = 0.1  # between two reports from the process at least

_held: dict[str, Model] = {}  # by name; a forked process finds what the app had loaded before


def gpu_seconds(steps: int, resolution: int) -> int:
    """How long to borrow a GPU for, with room to spare: a job that ends earlier gives it back."""
    a_step = 0.03 + 0.12 * (resolution / 1024) ** 2
    return min(START_SECONDS + max(math.ceil(steps * a_step), LEAST_SECONDS), LONGEST_SECONDS)


def find_gpu() -> "BorrowedGPU | None":
    """The GPU that can be borrowed; `None` everywhere but on ZeroGPU. To be called before the app is launched."""
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):  # as the package tells
        return None
    try:
        spaces = importlib.import_module("spaces")
    except ImportError:
        return None
    return BorrowedGPU(spaces) if hasattr(spaces, "GPU") else None  # a mere folder of that name can be imported, too


@dataclass(frozen=True, eq=False)
class _Job:
    """What the process gets. Bytes are pickles: of tensors, multiprocessing would share the app's own memory."""

    model: str
    method: str  # "" edits
    seconds: int
    networks: bytes | None = None  # of a model that the process cannot load by its name
    crop: Crop | None = None
    output: bytes | None = None  # to edit, without what the model has
    options: dict[str, Any] = field(default_factory=dict)
    stop: str = ""


@dataclass(frozen=True, eq=False)
class _Step:
    """What the process tells now and then; `picture` is (1, 3, R, R), uint8."""

    step: int
    stage: str
    loss: float
    picture: np.ndarray

    @property
    def info(self) -> dict[str, Any]:
        y_hat = torch.from_numpy(self.picture).float() / 127.5 - 1
        return {"stage": self.stage, "loss": self.loss, "y_hat": y_hat}


class BorrowedGPU:
    """Runs the methods in a process that has a GPU for a while."""

    def __init__(self, spaces: Any) -> None:
        """Announce the function, which ZeroGPU wants before the launch."""
        self._work = spaces.GPU(duration=_seconds_of)(_work)

    def hold(self, model: Model) -> None:
        """Have a model in the processes that are forked from now on."""
        _held[model.name] = model

    def invert(self, model: Model, method: str, crop: Crop) -> InversionOutput:
        """What `model.pipelines[method](crop)` gives."""
        return self._run(model, method, lambda step, info: False, crop=crop)

    def edit(self, model: Model, out: InversionOutput, strengths: Mapping[str, float]) -> InversionOutput:
        """What `model.tuner.edit(out, **strengths)` gives."""
        shared = out.generator is model.tuner.generator
        bare = dataclasses.replace(out, crops=[], base=None, generators=[] if shared else out.generators)
        edited = self._run(model, "", lambda step, info: False, output=pickle.dumps(bare), options=dict(strengths))
        return dataclasses.replace(edited, crops=out.crops, base=out.base, generators=out.generators)

    def tune(self, model: Model, crop: Crop, on_step: OnStep, *, steps: int, **options: Any) -> InversionOutput:
        """What `model.tuner(crop, callback=on_step, **options)` gives."""
        return self._run(model, TUNED, on_step, steps, crop=crop, options=options)

    def _run(self, model: Model, method: str, on_step: OnStep, steps: int = 0, **parts: Any) -> InversionOutput:
        networks = _pack(model) if model.name.startswith(UPLOAD) else None
        stop = Path(tempfile.gettempdir()) / f"stop-{secrets.token_hex(16)}"  # a note for the process
        seconds = gpu_seconds(steps, model.resolution)
        reports = self._work(_Job(model.name, method, seconds, networks, stop=str(stop), **parts))
        output: InversionOutput | None = None
        try:
            for report in reports:
                if isinstance(report, Exception):
                    raise report
                if isinstance(report, bytes):
                    output = pickle.loads(report)
                elif on_step(report.step, report.info):
                    stop.touch()
        finally:
            reports.close()
            stop.unlink(missing_ok=True)
        if output is None:
            raise RuntimeError("The process with the borrowed GPU ended without a result.")
        generators = output.generators or [model.tuner.generator]
        base = Base(model.tuner.generator, model.tuner.base_name)
        return dataclasses.replace(output, crops=[parts["crop"]] if method else [], base=base, generators=generators)


def in_request(work: Callable[[OnStep], InversionOutput]) -> Callable[[OnStep], InversionOutput]:
    """The work for another thread, in the context of this request: it is this visitor's quota that it uses."""
    context = contextvars.copy_context()
    return lambda on_step: context.run(work, on_step)


def _seconds_of(job: _Job) -> int:
    return job.seconds


def _pack(model: Model) -> bytes:
    encoders = {name: each.encoder for name, each in model.pipelines.items() if name != TUNED}  # type: ignore[attr-defined]
    return pickle.dumps({**model.tuner.components, "encoders": encoders, "detector": "builtin"})


# In the process


def _work(job: _Job) -> Iterator[_Step | bytes | Exception]:
    """Steps now and then, and at the end the output or an error. Closing it ends the work in a step."""
    reports: queue.SimpleQueue[_Step | bytes | Exception] = queue.SimpleQueue()
    closed = threading.Event()
    work = threading.Thread(target=_do, args=(job, reports.put, closed), daemon=True)
    work.start()
    try:
        while True:
            report = reports.get()
            yield report
            if not isinstance(report, _Step):
                return
    finally:
        closed.set()
        work.join()


def _do(job: _Job, send: Callable[[_Step | bytes | Exception], None], closed: threading.Event) -> None:
    end, sent = time.monotonic() + job.seconds - START_SECONDS, -math.inf

    def on_step(step: int, info: dict[str, Any]) -> bool:
        nonlocal sent
        now = time.monotonic()
        if now - sent >= SEND_SECONDS:
            sent = now
            picture = ((info["y_hat"][:1].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
            send(_Step(step, info["stage"], info["loss"], picture))
        return closed.is_set() or now > end or os.path.exists(job.stop)  # the best so far, before the GPU is taken away

    try:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        model = _model_of(job)
        for pipeline in model.pipelines.values():
            pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        own = model.tuner.generator
        if job.output is not None:
            output: InversionOutput = pickle.loads(job.output)
            generators = output.generators or [own]
            output = model.tuner.edit(
                dataclasses.replace(output, generators=[each.to(own.w_avg.device) for each in generators]),
                **job.options,
            )
            generators = []
        else:
            assert job.crop is not None
            callback: dict[str, Any] = {"callback": on_step} if job.method == TUNED else {}
            output = model.pipelines[job.method](job.crop, **callback, **job.options)
            generators = [] if output.generator is own else [each.cpu() for each in output.generators]
        send(pickle.dumps(dataclasses.replace(output, crops=[], base=None, generators=generators)))
    except (StyleGANInversionError, ValueError) as e:
        send(e)
    except Exception:
        send(RuntimeError(f"It failed in the process with the borrowed GPU:\n{traceback.format_exc()}"))


def _model_of(job: _Job) -> Model:
    if job.networks is not None:
        parts = pickle.loads(job.networks)
        return make_model(PTIPipeline(**parts), name=job.model)
    if job.model not in _held:
        _held[job.model] = load_model(job.model, device="cpu")
    return _held[job.model]
