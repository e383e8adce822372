"""How visitors share the machine: work in threads that can be stopped, whose turn it is, and what results may take."""

import base64
import html
import logging
import threading
import time
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import gradio as gr
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from stylegan_inversion.errors import StyleGANInversionError
from stylegan_inversion.models.feature_generator import FeatureGenerator
from stylegan_inversion.models.generator import Generator as StyleGAN
from stylegan_inversion.preprocessing.image import to_pil
from stylegan_inversion.webapp.marking import encode

logger = logging.getLogger(__name__)

RUN = "inversion"  # name of the threads
REPORT_SECONDS = 0.4  # between two reports
TUNING_COST = 2.8  # how many times longer a step of the tuning takes than one of the projection, before one was timed

FAILED = "Something went wrong on the server. Try again, or another photo."
MAX_HELD = 2_000_000_000  # bytes of photos and tuned generators
GONE = "This result was given up, since newer ones of other visitors took its memory. Invert the photo again."

OnStep = Callable[[int, dict[str, Any]], bool]
"""What a work calls after each step, as `PTIPipeline` does; True means that it should end now with what it has."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def status(words: str, *, share: float | None = None, preview: Image.Image | None = None, **marks: bool) -> str:
    """The line under the result: what is going on, with a bar and a small picture; `busy` or `stale` mark it."""
    picture = bar = ""
    if preview is not None:
        data = base64.b64encode(encode(preview.resize((128, 128)), "edited")).decode()
        picture = f'<img alt="What the model draws now" src="data:image/jpeg;base64,{data}">'
    if share is not None or marks.get("busy"):
        kind, width = ("bar busy", 30) if share is None else ("bar", 100 * share)
        bar = f'<div class="{kind}"><div style="width: {width:.0f}%"></div></div>'
    text = f'<div class="words"><span>{html.escape(words)}</span>{bar}</div>'
    return f'<div class="status{" stale" if marks.get("stale") else ""}" role="status">{picture}{text}</div>'


def told(error: Exception) -> str:
    """What a visitor reads of an error: its own words if he can act on it; of others only the log knows more."""
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False)[0]
        return f"`{fault['loc'][0]}`: {fault['msg']}, got {str(fault['input'])[:80]!r}."
    if isinstance(error, gr.Error):  # ZeroGPU's own, such as of a quota that is used up
        return str(error.message)
    if isinstance(error, (StyleGANInversionError, ValueError)):
        return str(error).split(" In Python:")[0]
    logger.error("The web app failed.", exc_info=error)
    if isinstance(error, torch.OutOfMemoryError):
        return "The GPU has no memory left for this. Try again in a moment."
    return FAILED


@dataclass(frozen=True, eq=False)
class Report:
    """How far a work is: in words, as a share of it if that is known, and with the newest picture if there is one."""

    words: str
    share: float | None = None
    preview: Image.Image | None = None


def in_thread(work: Callable[[Callable[[_R], None]], _T], name: str, first: _R) -> Generator[_R, None, _T]:
    """Do `work(send)` in a thread: yield what it sent last twice a second, `first` before that; give its result."""
    done, news, latest = Future[_T](), threading.Event(), [first]

    def send(report: _R) -> None:
        latest[0] = report
        news.set()

    def thread() -> None:
        try:
            done.set_result(work(send))
        except BaseException as e:  # who reads the reports gets it
            done.set_exception(e)
        news.set()

    threading.Thread(target=thread, name=name, daemon=True).start()
    while not done.done():
        yield latest[0]
        news.wait(REPORT_SECONDS)
        news.clear()
    return done.result()


def finish(work: Generator[Any, None, _T]) -> _T:
    """Do a work whose reports nobody reads."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return cast(_T, end.value)


class Turns:
    """Who may tune: so many at a time, in the order they came; of each visitor one waits at most."""

    def __init__(self, count: int) -> None:
        self._count, self._changed = count, threading.Condition()
        self._line: list[tuple[str, threading.Event]] = []

    def wait(self, who: str, stop: threading.Event) -> Generator[Report, None, bool]:
        """Stand in line until the turn comes or `stop` is set; whether it came, and then `leave` has to be called.

        Raises `ValueError` if this visitor waits already.
        """
        with self._changed:
            if any(other == who and not ended.is_set() for other, ended in self._line[self._count :]):
                raise ValueError("A photo of yours waits to be sharpened already. Wait until it is done, or stop it.")
            self._line.append((who, stop))
        first, came = lambda: any(stop is each for _, each in self._line[: self._count]), False
        try:
            while not came and not stop.is_set():
                with self._changed:
                    came = self._changed.wait_for(first, REPORT_SECONDS)
                if not came:
                    yield Report("Waiting: somebody else's photo is being sharpened first", 0.0)
        finally:
            if not came:
                self.leave(stop)
        return came

    def leave(self, stop: threading.Event) -> None:
        """Let the next one have the turn."""
        with self._changed:
            self._line = [each for each in self._line if each[1] is not stop]
            self._changed.notify_all()


class Memory:
    """What photos and tuned generators of all visitors take: the oldest are given up when it is too much."""

    def __init__(self) -> None:
        self._held: list[weakref.ref[StyleGAN | Image.Image]] = []
        self._lock = threading.Lock()

    def hold(self, *things: StyleGAN | Image.Image) -> None:
        """Count something that a visitor's state holds now."""
        with self._lock:
            kept: list[weakref.ref[Any]] = []
            left = MAX_HELD
            newest = [*map(weakref.ref, reversed(things)), *self._held]
            for ref in {id(ref): ref for ref in newest}.values():  # there is one of each thing
                thing = ref()
                if isinstance(thing, Image.Image):
                    left -= 4 * thing.width * thing.height  # Pillow keeps RGB in four bytes
                elif thing is not None and thing.style_offset is not None:  # its weights are another's
                    left -= thing.style_offset.nbytes
                elif isinstance(thing, FeatureGenerator):  # so are most of its own
                    left -= thing.synthesis.features.nbytes
                elif thing is not None:
                    left -= sum(tensor.nbytes for tensor in thing.state_dict().values())
                if thing is not None and left >= 0:
                    kept.append(ref)
                elif thing is not None:  # whoever holds it is told so when it is used
                    setattr(thing, "im" if isinstance(thing, Image.Image) else "synthesis", _Gone())
            self._held = kept


def is_gone(generator: StyleGAN) -> bool:
    """Whether a generator was given up."""
    return isinstance(generator.synthesis, _Gone)


class _Gone(nn.Module):
    def __getattr__(self, name: str) -> Any:
        raise ValueError(GONE)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise ValueError(GONE)

    state_dict = forward


def cost_of(done: int, steps: tuple[int, int]) -> float:
    """What so many steps cost, in steps of the projection."""
    return min(done, steps[0]) + TUNING_COST * max(done - steps[0], 0)


def listener(steps: tuple[int, int], stop: threading.Event, send: Callable[[Report], None]) -> OnStep:
    """What reports each step of a projection and a tuning, so many at most, and ends them with `stop`.

    It times each stage, so that the estimate of the time left knows that they differ.
    """
    began: dict[str, tuple[int, float]] = {}  # the first step of each stage, and when it ended
    sent = 0.0

    def on_step(step: int, info: dict[str, Any]) -> bool:
        nonlocal sent
        stage, now = info["stage"], time.perf_counter()
        first, start = began.setdefault(stage, (step, now))
        if now - sent >= REPORT_SECONDS:
            sent = now
            left = ""
            projects = stage == "projection"
            if step > first:
                to_go = steps[0] - step + TUNING_COST * steps[1] if projects else steps[1] - step
                left = f", about {max(round((now - start) / (step - first) * to_go), 1)} s left"
            done, total = step if projects else step + steps[0], sum(steps)
            words = f"Sharpening: step {done} of {total}{left}"
            send(Report(words, done / max(total, 1), to_pil(info["y_hat"].cpu())[0]))
        return stop.is_set()

    return on_step
