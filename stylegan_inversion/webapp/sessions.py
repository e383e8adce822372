"""The inversions of an app's visitors: each runs in a thread, can be stopped, and is kept for a while under a token.

Knows no user interface. Results live in memory only, never on disk.
"""

import dataclasses
import logging
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.image import to_pil

logger = logging.getLogger(__name__)

REPORT_SECONDS = 0.25  # between two reports at least
PREVIEW_STEPS = 10  # between two previews at least
HEARTBEAT_SECONDS = 0.5  # between two reports at most, so that whoever consumes them can leave


@dataclass(frozen=True, eq=False)
class Progress:
    """How far an inversion is.

    Attributes:
        token: What stops it now and names its result later. Whoever holds it may do both; it cannot be guessed.
        stage: "start", "projection", "tuning" or "done".
        step: Steps done, over both stages.
        total: Steps of both stages at most.
        loss: Of the last step; `None` before the first.
        seconds: Since the start.
        preview: The newest picture; `None` before the first.
        output: The result, at "done".
    """

    token: str
    stage: Literal["start", "projection", "tuning", "done"]
    step: int
    total: int
    loss: float | None = None
    seconds: float = 0.0
    preview: Image.Image | None = None
    output: InversionOutput | None = None


class Sessions:
    """Runs inversions and keeps their results by token: the newest few, until nobody has used them for a while."""

    def __init__(
        self,
        pipeline: PTIPipeline,
        *,
        capacity: int = 8,
        time_to_live: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Share one pipeline, which is never changed, among all visitors.

        Args:
            pipeline: Inverts.
            capacity: How many results to keep; the one not used for longest goes first.
            time_to_live: Seconds a result is kept after its last use.
            clock: Seconds, never going back.

        Raises:
            ValueError: If `capacity` is below 1 or `time_to_live` is not positive.
        """
        if capacity < 1:
            raise ValueError(f"`capacity` must be >= 1, got {capacity}.")
        if not time_to_live > 0:
            raise ValueError(f"`time_to_live` must be positive, got {time_to_live}.")
        self.pipeline = pipeline
        self.capacity = capacity
        self.time_to_live = time_to_live
        self._clock = clock
        self._lock = threading.RLock()
        self._outputs: OrderedDict[str, tuple[float, InversionOutput]] = OrderedDict()  # the least recently used first
        self._running: dict[str, threading.Event] = {}
        self._sweeper: threading.Timer | None = None

    def invert(self, crop: Crop, *, num_w_steps: int, num_tuning_steps: int) -> Iterator[Progress]:
        """Invert a face in a thread; closing the iterator ends it and forgets the result.

        Args:
            crop: The face, from `pipeline.align`.
            num_w_steps: Steps of the projection.
            num_tuning_steps: Steps of the tuning at most.

        Yields:
            Reports, at least two a second; the last one has the output, which is kept under its token.

        Raises:
            Exception: Whatever the pipeline raises.
        """
        token, stop = secrets.token_urlsafe(32), threading.Event()
        reports: queue.SimpleQueue[Progress | InversionOutput | Exception] = queue.SimpleQueue()
        latest = Progress(token, "start", 0, num_w_steps + num_tuning_steps)
        arguments = (crop, num_w_steps, num_tuning_steps, latest, stop, reports)
        self._running[token] = stop
        try:
            threading.Thread(target=self._work, args=arguments, name="inversion", daemon=True).start()
            while True:
                yield latest
                try:
                    report = reports.get(timeout=HEARTBEAT_SECONDS)
                    while not reports.empty():  # the newest will do; a result or an error is always the last
                        report = reports.get()
                except queue.Empty:
                    continue
                if isinstance(report, Exception):
                    raise report
                if isinstance(report, InversionOutput):
                    self._keep(token, report)
                    yield dataclasses.replace(latest, stage="done", output=report)
                    return
                latest = report
        finally:
            stop.set()
            del self._running[token]

    def _work(
        self,
        crop: Crop,
        num_w_steps: int,
        num_tuning_steps: int,
        report: Progress,
        stop: threading.Event,
        reports: "queue.SimpleQueue[Progress | InversionOutput | Exception]",
    ) -> None:
        start = reported = time.perf_counter()
        preview, previewed = None, 0

        def on_step(step: int, info: dict[str, Any]) -> bool:
            nonlocal reported, preview, previewed
            now = time.perf_counter()
            if now - reported >= REPORT_SECONDS:
                step += num_w_steps if info["stage"] == "tuning" else 0
                if previewed == 0 or step - previewed >= PREVIEW_STEPS:
                    preview, previewed = to_pil(info["y_hat"].cpu())[0], step
                reported = now
                changes = {"stage": info["stage"], "step": step, "loss": info["loss"], "preview": preview}
                reports.put(dataclasses.replace(report, seconds=now - start, **changes))
            return stop.is_set()  # ends this stage; the next one then ends at its first step

        try:
            out = self.pipeline(
                crop.image,
                align=False,  # done already
                num_w_steps=num_w_steps,
                num_tuning_steps=num_tuning_steps,
                callback=on_step,
            )
            where = {"face_count": crop.face_count, "face_index": crop.face_index}
            reports.put(dataclasses.replace(out, crops=[crop], reports=[{**r, **where} for r in out.reports]))
        except Exception as e:
            reports.put(e)

    def stop(self, token: str) -> bool:
        """End a running inversion within a step; its best state so far becomes the result.

        Returns:
            Whether an inversion with this token is running.
        """
        event = self._running.get(token)
        if event is not None:
            event.set()
        return event is not None

    def output(self, token: str) -> InversionOutput | None:
        """The result under a token, which counts as use; `None` if there is none, or no longer."""
        with self._lock:
            self._evict()
            if token not in self._outputs:
                return None
            _, output = self._outputs.pop(token)
            self._outputs[token] = (self._clock(), output)
            return output

    def drop(self, token: str) -> None:
        """Forget a result, if it is there."""
        with self._lock:
            self._outputs.pop(token, None)

    def __len__(self) -> int:
        """How many results are kept."""
        with self._lock:
            self._evict()
            return len(self._outputs)

    def _keep(self, token: str, output: InversionOutput) -> None:
        with self._lock:
            self._evict()
            while len(self._outputs) >= self.capacity:
                self._outputs.popitem(last=False)
            self._outputs[token] = (self._clock(), output)
            if self._sweeper is None:
                self._sweep_later()

    def _evict(self) -> None:
        oldest = self._clock() - self.time_to_live
        for token in [token for token, (used, _) in self._outputs.items() if used < oldest]:
            del self._outputs[token]

    def _sweep_later(self) -> None:
        """Evict even if no visitor comes any more: no face is kept longer than said, by more than a minute."""
        self._sweeper = threading.Timer(min(self.time_to_live, 60.0), self._sweep)
        self._sweeper.daemon = True
        self._sweeper.start()

    def _sweep(self) -> None:
        with self._lock:
            self._evict()
            self._sweeper = None
            if self._outputs:
                self._sweep_later()
