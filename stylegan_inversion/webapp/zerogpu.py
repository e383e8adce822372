"""ZeroGPU: the Hugging Face Spaces that have no GPU of their own but borrow one for seconds.

There a function that `spaces.GPU` decorates runs in a forked process that sees a GPU. What it yields is sent back; what
it leaves in that process's memory is lost to the app. The process holds the models that were loaded before it was
forked and loads others by their names, so that a job carries no weights but those nobody else has: a tuned generator's.
The app itself stays on the CPU: `torch.cuda.is_available()` is true in it, but only GPU functions
have one. Both ends are this app: no pickle here comes from outside.

Facts: https://huggingface.co/docs/hub/spaces-zerogpu and the package `spaces` 0.51 (Apache-2.0). Own code.
"""

import contextvars
import importlib
import io
import math
import os
import pickle
import secrets
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from stylegan_inversion.errors import StyleGANInversionError
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.webapp.models import Model, load_model
from stylegan_inversion.webapp.run import OnStep, in_thread

START_SECONDS = 15  # for the process, CUDA and the way there and back
LEAST_SECONDS = 10  # for the steps: the first one takes the longest
LONGEST_SECONDS = 120  # in all; a visitor has a few minutes a day
SEND_SECONDS = 0.1  # between two reports from the process at least
GPU = "gpu"  # name of the threads

_T = TypeVar("_T")
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


_Step = tuple[int, str, float, np.ndarray]
_Report = _Step | None | bytes | Exception
"""What the process tells: now and then a step, its stage, its loss and (1, 3, R, R), uint8; at the end a parcel."""


class BorrowedGPU:
    """Does work in a process that has a GPU for a while."""

    def __init__(self, spaces: Any) -> None:
        """Announce the function, which ZeroGPU wants before the launch."""
        self._work = spaces.GPU(duration=lambda name, work, seconds, stop: seconds)(_work)

    def hold(self, model: Model) -> None:
        """Have a model in the processes that are forked from now on."""
        _held[model.name] = model

    def run(self, model: Model, work: Callable[[], _T], on_step: OnStep | None = None, *, steps: int = 0) -> _T:
        """What `work()` gives: a partial, that can be pickled, of the model's pipelines or of functions of modules.

        It may call `on_step`, so many times at most.
        """
        stop = Path(tempfile.gettempdir()) / f"stop-{secrets.token_hex(16)}"
        parcels = _Parcels(model, on_step)
        reports = self._work(model.name, parcels.pack(work), gpu_seconds(steps, model.resolution), str(stop))
        try:
            for report in reports:
                if isinstance(report, Exception):
                    raise report
                if isinstance(report, bytes):
                    result: _T = parcels.unpack(report, "cpu")
                    return result
                if isinstance(report, tuple) and on_step:
                    step, stage, loss, picture = report
                    y_hat = torch.from_numpy(picture) / 127.5 - 1
                    if on_step(step, {"stage": stage, "loss": loss, "y_hat": y_hat}):
                        stop.touch()
        finally:
            reports.close()
            stop.unlink(missing_ok=True)
        raise RuntimeError("The process with the borrowed GPU ended without a result.")


class _Parcels:
    """Pickles that go to and fro, in which a number stands for what the other side has.

    That is the model with what it calls, and each tuned generator and each photo that was sent once.
    """

    def __init__(self, model: Model, on_step: OnStep | None) -> None:
        self.known: list[Any] = [model.tuner.generator, *model.readers, on_step or object()]
        self.face = model.resolution**2  # pixels of the largest picture that is no photo

    def pack(self, value: Any) -> bytes:
        sent, buffer = len(self.known), io.BytesIO()
        pickler = _Pickler(buffer)
        pickler.number = self._number
        pickler.dump(value)
        news = [each.cpu() if isinstance(each, Generator) else each for each in self.known[sent:]]
        return pickle.dumps((news, buffer.getvalue()))

    def unpack(self, data: bytes, device: str) -> Any:
        news, body = pickle.loads(data)
        self.known += [each.to(device) if isinstance(each, Generator) else each for each in news]
        unpickler = _Unpickler(io.BytesIO(body))
        unpickler.known = self.known
        return unpickler.load()

    def _number(self, thing: Any) -> int | None:
        for k, each in enumerate(self.known):
            if each is thing:
                return k
        is_photo = isinstance(thing, Image.Image) and thing.width * thing.height > self.face
        if not (is_photo or (isinstance(thing, Generator) and thing.style_offset is None)):
            return None
        self.known.append(thing)
        return len(self.known) - 1


class _Pickler(pickle.Pickler):
    number: Callable[[Any], int | None]

    def persistent_id(self, obj: Any) -> int | None:
        return self.number(obj)

    def reducer_override(self, obj: Any) -> Any:
        if (
            isinstance(obj, Generator) and obj.style_offset is not None
        ):  # it shares the weights of one that has a number
            return Generator.with_styles, (obj.unstyled, obj.style_offset)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    known: list[Any]

    def persistent_load(self, pid: int) -> Any:
        return self.known[pid]


def in_request(work: Callable[[OnStep], Any]) -> Callable[[OnStep], Any]:
    """The work for another thread, in the context of this request: it is this visitor's quota that it uses."""
    context = contextvars.copy_context()
    return lambda on_step: context.run(work, on_step)


# In the process


def _work(name: str, work: bytes, seconds: int, stop: str) -> Iterator[_Report]:
    """Steps now and then, and at the end the result or an error. Closing it, or a file `stop`, ends it in a step.

    The work is a pickle: of tensors, multiprocessing would share the app's own memory.
    """
    closed = threading.Event()
    ends = lambda: closed.is_set() or os.path.exists(stop)  # noqa: E731
    try:
        result: bytes = yield from in_thread(
            partial(_do, name, work, time.monotonic() + seconds - START_SECONDS, ends), GPU, None
        )
        yield result
    except (StyleGANInversionError, ValueError) as e:
        yield e
    except Exception:
        yield RuntimeError(f"It failed in the process with the borrowed GPU:\n{traceback.format_exc()}")
    finally:
        closed.set()
        for thread in threading.enumerate():
            if thread.name == GPU:
                thread.join()


def _do(name: str, packed: bytes, end: float, ends: Callable[[], bool], send: Callable[[_Step], None]) -> bytes:
    sent = -math.inf

    def on_step(step: int, info: dict[str, Any]) -> bool:
        nonlocal sent
        now = time.monotonic()
        if now - sent >= SEND_SECONDS:
            sent = now
            picture = ((info["y_hat"][:1].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
            send((step, info["stage"], info["loss"], picture))
        return ends() or now > end  # the best so far, before the GPU is taken away

    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    model = _held.get(name) or _held.setdefault(name, load_model(name, device="cpu"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for pipeline in model.readers:
        pipeline.to(device)
    parcels = _Parcels(model, on_step)
    work: Callable[[], Any] = parcels.unpack(packed, device)
    return parcels.pack(work())
