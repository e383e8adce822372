"""One inversion in a thread of its own: it reports how far it is, and ends early when it is told to."""

import dataclasses
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.preprocessing.image import to_pil

REPORT_SECONDS = 0.25  # between two reports at least
PREVIEW_STEPS = 10  # between two previews at least
JOIN_SECONDS = 60.0  # of a step at most
HEARTBEAT_SECONDS = 0.5  # between two reports at most, so that whoever consumes them can leave

OnStep = Callable[[int, dict[str, Any]], bool]
"""What a work calls after each step, as `PTIPipeline` does; True means that it should end now with what it has."""


@dataclass(frozen=True, eq=False)
class Progress:
    """How far an inversion is.

    Attributes:
        token: What stops it now and names its result later; it cannot be guessed.
        stage: "waiting", "start", "projection", "tuning" or "done".
        step: Steps done, over both stages; while waiting, how many are ahead.
        total: Steps of both stages at most.
        loss: Of the last step; `None` before the first.
        seconds: Since the start.
        preview: The newest picture; `None` before the first.
        output: The result, at "done".
    """

    token: str
    stage: Literal["waiting", "start", "projection", "tuning", "done"]
    step: int
    total: int
    loss: float | None = None
    seconds: float = 0.0
    preview: Image.Image | None = None
    output: InversionOutput | None = None


class Run:
    """An inversion that runs, or is about to.

    Attributes:
        token: Its name, 256 random bits.
        owner: Who may stop it; `None` means whoever has the token.
        stop: Set to end it within a step.
        forgotten: Whether its result is no longer wanted.
    """

    def __init__(
        self,
        work: Callable[[OnStep], InversionOutput],
        *,
        total: int,
        first_stage_steps: int,
        owner: str | None,
        max_seconds: float = math.inf,
    ) -> None:
        """Prepare; `reports` starts it.

        Args:
            work: Inverts.
            total: Steps of all stages at most.
            first_stage_steps: Steps of the stage before "tuning", by which those of "tuning" are shifted.
            owner: Who may stop it.
            max_seconds: After that long it is stopped, as a visitor would do it.
        """
        self.token = secrets.token_urlsafe(32)
        self.owner = owner
        self.stop = threading.Event()
        self.forgotten = False
        self.latest = Progress(self.token, "start", 0, total)
        self._work = work
        self._first_stage_steps = first_stage_steps
        self._max_seconds = max_seconds
        self._thread: threading.Thread | None = None
        self._reports: queue.SimpleQueue[Progress | InversionOutput | BaseException] = queue.SimpleQueue()

    def reports(self, *, when_ended: Callable[[], object]) -> Generator[Progress, None, None]:
        """Start the thread and tell how far it is, until it is done; closing the iterator ends the thread.

        Args:
            when_ended: Called in the thread once the work has ended, in whatever way, before that is reported.

        Yields:
            Reports, at least two a second; the last one has the output, unless the run is forgotten.

        Raises:
            BaseException: Whatever the work raises.
        """
        self._thread = threading.Thread(target=self._run, args=(when_ended,), name="inversion", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no more threads
            when_ended()
            raise
        try:
            while True:
                yield self.latest
                try:
                    report = self._reports.get(timeout=HEARTBEAT_SECONDS)
                    while not self._reports.empty():  # the newest will do; a result or an error is always the last
                        report = self._reports.get()
                except queue.Empty:
                    continue
                if self.forgotten and not isinstance(report, Progress):
                    return
                if isinstance(report, BaseException):
                    raise report
                if isinstance(report, InversionOutput):
                    yield dataclasses.replace(self.latest, stage="done", output=report)
                    return
                self.latest = report
        finally:
            self.stop.set()

    def join(self) -> None:
        """Wait until the thread has ended, if it was started."""
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(JOIN_SECONDS)

    def _run(self, when_ended: Callable[[], object]) -> None:
        start = reported = time.perf_counter()
        first, latest = self._first_stage_steps, self.latest
        preview, previewed = None, 0

        def on_step(step: int, info: dict[str, Any]) -> bool:
            nonlocal reported, preview, previewed
            now = time.perf_counter()
            if now - start >= self._max_seconds:
                self.stop.set()
            if now - reported >= REPORT_SECONDS:
                step += first if info["stage"] == "tuning" else 0
                if previewed == 0 or step - previewed >= PREVIEW_STEPS:
                    preview, previewed = to_pil(info["y_hat"].cpu())[0], step
                reported = now
                changes = {"stage": info["stage"], "step": step, "loss": info["loss"], "preview": preview}
                self._reports.put(dataclasses.replace(latest, seconds=now - start, **changes))
            return self.stop.is_set()  # ends this stage; the next one then ends at its first step

        result: InversionOutput | BaseException
        try:
            result = self._work(on_step)
        except BaseException as e:  # whoever reads the reports gets it
            result = e
        when_ended()
        self._reports.put(result)
