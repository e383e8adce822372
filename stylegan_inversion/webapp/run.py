"""One inversion in a thread of its own: it says how far it is, shows a preview, and ends early when it is told to."""

import base64
import html
import queue
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.preprocessing.image import to_pil
from stylegan_inversion.webapp.marking import encode

RUN = "inversion"  # name of the threads
REPORT_SECONDS = 0.4  # between two reports
TUNING_COST = 2.8  # how many times longer a step of the tuning takes than one of the projection, before one was timed

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


def run(
    work: Callable[[OnStep], InversionOutput],
    *,
    steps: tuple[int, int],
    stop: threading.Event,
    slots: threading.Semaphore,
) -> Generator[Progress, None, None]:
    """Do the work in a thread, once there is a free slot; closing the iterator, or setting `stop`, ends it in a step.

    Args:
        work: Inverts.
        steps: Of the projection and of the tuning, at most.
        stop: Ends the work with the best so far.
        slots: How many may run at a time.

    Yields:
        Reports, at least two a second; the last one has the output.

    Raises:
        BaseException: Whatever the work raises.
    """
    reports: queue.SimpleQueue[Progress | InversionOutput | BaseException] = queue.SimpleQueue()
    latest = Progress("start", 0, sum(steps))

    def thread() -> None:
        try:
            reports.put(work(_listener(steps, stop, reports.put)))
        except BaseException as e:  # the reader of the reports gets it
            reports.put(e)
        finally:
            slots.release()

    while not slots.acquire(timeout=REPORT_SECONDS):
        yield Progress("waiting", 0, sum(steps))
        if stop.is_set():
            return
    try:
        threading.Thread(target=thread, name=RUN, daemon=True).start()
    except BaseException:
        slots.release()
        raise
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
        data = base64.b64encode(encode(preview.resize((128, 128)), "photo")).decode()
        picture = f'<img alt="What the model draws now" src="data:image/jpeg;base64,{data}">'
    if share is not None or busy:
        bar = f'<div class="bar"><div style="width: {100 * (0.3 if share is None else share):.0f}%"></div></div>'
    text = f'<div class="words"><span>{html.escape(words)}</span>{bar}</div>'
    return f'<div class="status{" stale" if stale else ""}" role="status">{picture}{text}</div>'
