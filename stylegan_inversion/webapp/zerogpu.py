"""PTI on ZeroGPU, the Hugging Face Spaces that have no GPU of their own but borrow one for seconds.

There a function that `spaces.GPU` decorates runs in a forked process that sees a GPU. What it yields is sent back; what
it leaves in that process's memory is lost to the app, and what the app loads later is not there. So the networks go
along with each job, and the tuned generator comes back as a value. The app itself, with the encoders and all edits,
stays on the CPU: `torch.cuda.is_available()` is true in it, but only GPU functions have one. Both ends are this app:
no pickle here comes from outside.

Facts: https://huggingface.co/docs/hub/spaces-zerogpu and the package `spaces` 0.51 (Apache-2.0). Own code.
"""

import contextvars
import dataclasses
import importlib
import logging
import math
import os
import pickle
import queue
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylegan_inversion.errors import StyleGANInversionError
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.pipelines.output import Base, InversionOutput
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.webapp.running import OnStep

logger = logging.getLogger(__name__)

START_SECONDS = 15  # for the process, CUDA and the way there and back
LEAST_SECONDS = 10  # for the steps: the first one takes the longest
LONGEST_SECONDS = 120  # in all; a visitor has a few minutes a day
SEND_SECONDS = 0.1  # between two reports from the process at least


def gpu_seconds(steps: int, resolution: int) -> int:
    """How long to borrow a GPU for, with room to spare: a job that ends earlier gives it back.

    Args:
        steps: Of both stages.
        resolution: Of the generator, pixels a side.
    """
    a_step = 0.03 + 0.12 * (resolution / 1024) ** 2
    return min(START_SECONDS + max(math.ceil(steps * a_step), LEAST_SECONDS), LONGEST_SECONDS)


def find_gpu(folder: Path) -> "BorrowedGPU | None":
    """The GPU that PTI can borrow; `None` everywhere but on ZeroGPU. To be called before the app is launched.

    Args:
        folder: Where to leave a note that a job is to stop.
    """
    spaces = _find_spaces()
    return None if spaces is None else BorrowedGPU(spaces, folder)


def own_device(device: str) -> str:
    """Where the app's own process is to run if it was asked for `device`: on ZeroGPU "auto" is the CPU."""
    return "cpu" if device == "auto" and _find_spaces() is not None else device


def own_cpu() -> str:
    """The app's CPU in words, with what is not done there."""
    return "CPU" if _find_spaces() is None else "CPU, and PTI on a borrowed GPU"


def _find_spaces() -> Any:
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):  # as the package tells
        return None
    try:
        spaces = importlib.import_module("spaces")
    except ImportError:
        return None
    return spaces if hasattr(spaces, "GPU") else None  # a mere folder of that name can be imported, too


@dataclass(frozen=True, eq=False)
class _Job:
    """What the process gets. `networks` are bytes: of tensors, multiprocessing would share the app's own memory."""

    networks: bytes
    crop: Crop
    options: dict[str, Any]
    stop: str
    seconds: int


@dataclass(frozen=True, eq=False)
class _Step:
    """What the process tells now and then; `picture` is (1, 3, R, R), uint8."""

    step: int
    stage: str
    loss: float
    picture: np.ndarray

    @classmethod
    def of(cls, step: int, info: dict[str, Any]) -> "_Step":
        picture = ((info["y_hat"][:1].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
        return cls(step, info["stage"], info["loss"], picture)

    def info(self) -> dict[str, Any]:
        y_hat = torch.from_numpy(self.picture).float() / 127.5 - 1
        return {"stage": self.stage, "loss": self.loss, "y_hat": y_hat}


class BorrowedGPU:
    """Runs PTI in a process that has a GPU for a while."""

    def __init__(self, spaces: Any, folder: Path) -> None:
        """Announce the function, which ZeroGPU wants before the launch.

        Args:
            spaces: The package.
            folder: Where to leave a note that a job is to stop. Private, and seen by the process.
        """
        self._tune = spaces.GPU(duration=_seconds_of)(_tune)
        self._folder = folder

    def work(
        self, pipeline: PTIPipeline, crop: Crop, *, steps: int, **options: Any
    ) -> Callable[[OnStep], InversionOutput]:
        """`pipeline(crop, **options)` as work for `Sessions.run`. It is the caller's visitor whose quota it uses.

        Args:
            pipeline: Stays as it is; the output has its generator as the base.
            crop: The face.
            steps: Of both stages at most.
            **options: Of the call.
        """
        context = contextvars.copy_context()  # holds the request
        return lambda on_step: context.run(self._run, pipeline, crop, steps, options, on_step)

    def _run(
        self, pipeline: PTIPipeline, crop: Crop, steps: int, options: dict[str, Any], on_step: OnStep
    ) -> InversionOutput:
        stop = self._folder / f"stop-{secrets.token_hex(16)}"
        seconds = gpu_seconds(steps, pipeline.generator.config.resolution)
        reports = self._tune(_Job(_pack(pipeline, options.get("pivot", "w")), crop, options, str(stop), seconds))
        output = None
        try:
            for report in reports:
                if isinstance(report, Exception):
                    raise report
                if isinstance(report, bytes):
                    output = pickle.loads(report)
                elif on_step(report.step, report.info()):
                    stop.touch()
        finally:
            reports.close()
            stop.unlink(missing_ok=True)
        if output is None:
            raise RuntimeError("The process with the borrowed GPU ended without a result.")
        return dataclasses.replace(output, crops=[crop], base=Base(pipeline.generator, pipeline.base_name))


def _pack(pipeline: PTIPipeline, pivot: str) -> bytes:
    encoders = {pivot: pipeline.encoder_pipeline(pivot).encoder} if pivot in ENCODERS else {}
    parts = {"perceptual": pipeline.perceptual, "projector": pipeline.projector, "tuning": pipeline.tuning}
    return pickle.dumps({"generator": pipeline.generator, "encoders": encoders, **parts})


def _seconds_of(job: _Job) -> int:
    return job.seconds


def _tune(job: _Job) -> Iterator[_Step | bytes | Exception]:
    """In the process: steps now and then, and at the end the output or an error. Closing it ends the work in a step."""
    reports: queue.SimpleQueue[_Step | bytes | Exception] = queue.SimpleQueue()
    closed = threading.Event()
    work = threading.Thread(target=_invert, args=(job, reports.put, closed), daemon=True)
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


def _invert(job: _Job, send: Callable[[_Step | bytes | Exception], None], closed: threading.Event) -> None:
    end, sent = time.monotonic() + job.seconds - START_SECONDS, -math.inf

    def on_step(step: int, info: dict[str, Any]) -> bool:
        nonlocal sent
        now = time.monotonic()
        if now - sent >= SEND_SECONDS:
            sent = now
            send(_Step.of(step, info))
        return closed.is_set() or now > end or os.path.exists(job.stop)  # the best so far, before the GPU is taken away

    try:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        pipeline = PTIPipeline(**pickle.loads(job.networks))
        pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        output = pipeline(job.crop, callback=on_step, **job.options)
        for generator in output.generators:
            generator.cpu()
        send(pickle.dumps(dataclasses.replace(output, crops=[], base=None)))
    except (StyleGANInversionError, ValueError) as e:
        send(e)
    except Exception:
        send(RuntimeError(f"PTI failed in the process with the borrowed GPU:\n{traceback.format_exc()}"))
