"""One inversion in a thread of its own: it says how far it is, shows a preview, and ends early when it is told to.

And how visitors share the machine: whose turn it is, and what their results may take of its memory.
"""

import base64
import html
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import nn

from stylegan_inversion.models.feature_generator import FeatureGenerator
from stylegan_inversion.models.generator import Generator as StyleGAN
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.preprocessing.image import to_pil
from stylegan_inversion.webapp.marking import encode

RUN = "inversion"  # name of the threads
REPORT_SECONDS = 0.4  # between two reports
TUNING_COST = 2.8  # how many times longer a step of the tuning takes than one of the projection, before one was timed

MAX_HELD = 2_000_000_000  # bytes of photos and tuned generators
GONE = "This result was given up, since newer ones of other visitors took its memory. Invert the photo again."

OnStep = Callable[[int, dict[str, Any]], bool]
"""What a work calls after each step, as `PTIPipeline` does; True means that it should end now with what it has."""


@dataclass(frozen=True, eq=False)
class Progress:
    """How far an inversion is.

    Attributes:
        stage: "waiting", "start", "projection", "tuning" or "done".
        step: Steps done, over both stages.
        total: Steps of both stages at most.
        left: Seconds left, about; `None` before the first step.
        preview: The newest picture; `None` before the first.
        output: The result, at "done".
    """

    stage: str
    step: int = 0
    total: int = 1
    left: float | None = None
    preview: Image.Image | None = None
    output: InversionOutput | None = None

    @property
    def words(self) -> str:
        """What it does, in plain words."""
        if self.stage == "waiting":
            return "Waiting: somebody else's photo is being sharpened first"
        left = "" if self.left is None else f", about {max(round(self.left), 1)} s left"
        return f"Sharpening: step {self.step} of {self.total}{left}"


class Turns:
    """Who may tune: so many at a time, in the order they came; of each visitor one waits at most."""

    def __init__(self, count: int) -> None:
        self._count, self._changed = count, threading.Condition()
        self._line: list[tuple[str, threading.Event]] = []

    def join(self, who: str, stop: threading.Event) -> None:
        """Stand in line. Raises `ValueError` if this visitor waits already."""
        with self._changed:
            if any(other == who and not ended.is_set() for other, ended in self._line[self._count :]):
                raise ValueError("A photo of yours waits to be sharpened already. Wait until it is done, or stop it.")
            self._line.append((who, stop))

    def has_come(self, stop: threading.Event, seconds: float) -> bool:
        """Wait for the turn, not longer than so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: any(stop is each for _, each in self._line[: self._count]), seconds)

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
                elif isinstance(thing, FeatureGenerator):  # its weights are another's
                    left -= sum(tensor.nbytes for tensor in thing.photo.values())
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


def run(
    work: Callable[[OnStep], InversionOutput], *, steps: tuple[int, int], stop: threading.Event, turns: Turns, who: str
) -> Generator[Progress, None, None]:
    """Do the work in a thread, once it is the visitor's turn; closing the iterator, or `stop`, ends it in a step.

    Args:
        work: Inverts.
        steps: Of the projection and of the tuning, at most.
        stop: Ends the work with the best so far.
        turns: How many may run at a time, and who is next.
        who: The visitor.

    Yields:
        Reports, at least two a second; the last one has the output.

    Raises:
        BaseException: Whatever the work raises; a `ValueError` if this visitor waits already.
    """
    reports: queue.SimpleQueue[Progress | InversionOutput | BaseException] = queue.SimpleQueue()
    latest = Progress("start", 0, sum(steps))

    def thread() -> None:
        try:
            reports.put(work(_listener(steps, stop, reports.put)))
        except BaseException as e:  # the reader of the reports gets it
            reports.put(e)
        finally:
            turns.leave(stop)

    turns.join(who, stop)
    begun = False
    try:
        while not turns.has_come(stop, REPORT_SECONDS):
            yield Progress("waiting", 0, sum(steps))
            if stop.is_set():
                return
        threading.Thread(target=thread, name=RUN, daemon=True).start()
        begun = True
    finally:
        if not begun:
            turns.leave(stop)
    try:
        while True:
            yield latest
            try:
                report = reports.get(timeout=REPORT_SECONDS)
                while not reports.empty():  # the newest will do; a result or an error is always the last
                    report = reports.get()
            except queue.Empty:
                continue
            if isinstance(report, BaseException):
                raise report
            if isinstance(report, InversionOutput):
                yield Progress("done", latest.step, latest.total, 0.0, latest.preview, report)
                return
            latest = report
    finally:
        stop.set()


def _listener(steps: tuple[int, int], stop: threading.Event, send: Callable[[Progress], None]) -> OnStep:
    """Times each stage, so that the estimate of the time left knows that they differ."""
    began: dict[str, tuple[int, float]] = {}  # the first step of each stage, and when it ended
    sent = 0.0

    def on_step(step: int, info: dict[str, Any]) -> bool:
        nonlocal sent
        stage, now = info["stage"], time.perf_counter()
        first, start = began.setdefault(stage, (step, now))
        if now - sent >= REPORT_SECONDS:
            sent = now
            each = (now - start) / (step - first) if step > first else None
            if stage == "projection":
                left = None if each is None else each * (steps[0] - step + TUNING_COST * steps[1])
            else:
                left = None if each is None else each * (steps[1] - step)
                step += steps[0]
            send(Progress(stage, step, sum(steps), left, to_pil(info["y_hat"].cpu())[0]))
        return stop.is_set()

    return on_step


def status(
    words: str,
    *,
    share: float | None = None,
    preview: Image.Image | None = None,
    stale: bool = False,
    busy: bool = False,
) -> str:
    """The line under the result: what is going on, with a bar and a small picture if there are some."""
    picture = bar = ""
    if preview is not None:
        data = base64.b64encode(encode(preview.resize((128, 128)), "edited")).decode()
        picture = f'<img alt="What the model draws now" src="data:image/jpeg;base64,{data}">'
    if share is not None or busy:
        kind, width = ("bar busy", 30) if share is None else ("bar", 100 * share)
        bar = f'<div class="{kind}"><div style="width: {width:.0f}%"></div></div>'
    text = f'<div class="words"><span>{html.escape(words)}</span>{bar}</div>'
    return f'<div class="status{" stale" if stale else ""}" role="status">{picture}{text}</div>'
