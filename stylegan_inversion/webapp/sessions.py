"""The inversions of an app's visitors: what runs can be stopped, and what is done is kept for a while under a token.

Knows no user interface and no method of inversion. Results live in memory only, never on disk.
"""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from dataclasses import dataclass

from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.webapp.memory import size_of
from stylegan_inversion.webapp.running import OnStep, Run
from stylegan_inversion.webapp.running import Progress as Progress
from stylegan_inversion.webapp.turns import BusyError as BusyError

WAIT_SECONDS = 0.1  # between two looks at whether the last inversion has ended
REMEMBERED_OWNERS = 10_000  # whose wish to be forgotten holds for what was begun before it
REMEMBERED_ORDERS = 10_000  # that were called off


@dataclass(frozen=True, eq=False)
class Kept:
    """What lies under a token.

    Attributes:
        output: The result.
        model: Name of the model that made it and can edit it.
    """

    output: InversionOutput
    model: str


@dataclass(eq=False)
class _Entry:
    kept: Kept
    owner: str | None
    used: float
    size: int


class Sessions:
    """Runs inversions and keeps their results by token: the newest few, until nobody has used them for a while.

    What a visitor with an owner name made needs the token and the same owner; to anyone else it looks as if it were
    not there. What was made without an owner (by a program, which has no cookie) is opened by its token alone.

    Tokens have 256 bits and are looked up in a dict, not compared in constant time: the lookup compares keyed hashes of
    whole strings, so its timing tells nothing of a token's first characters.
    """

    def __init__(
        self,
        *,
        capacity: int = 64,
        per_owner: int = 12,
        max_bytes: int = 2_000_000_000,
        time_to_live: float = 1800.0,
        max_seconds: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty.

        Args:
            capacity: How many results to keep; the one not used for longest goes first.
            per_owner: How many of them may be one owner's; then that owner's goes that was not used for longest. All
                programs together, which have no owner, may have half of the capacity.
            max_bytes: How much memory the results may take, about; one owner's a quarter of it, those of programs a
                half. The newest result is kept however large it is.
            time_to_live: Seconds a result is kept after its last use.
            max_seconds: How long a run may take; then it is stopped, and its best state is the result.
            clock: Seconds, never going back.

        Raises:
            ValueError: If `capacity`, `per_owner` or `max_bytes` is below 1, or `time_to_live` or `max_seconds` is not
                positive.
        """
        if capacity < 1:
            raise ValueError(f"`capacity` must be >= 1, got {capacity}.")
        if per_owner < 1:
            raise ValueError(f"`per_owner` must be >= 1, got {per_owner}.")
        if max_bytes < 1:
            raise ValueError(f"`max_bytes` must be >= 1, got {max_bytes}.")
        if not time_to_live > 0:
            raise ValueError(f"`time_to_live` must be positive, got {time_to_live}.")
        if not max_seconds > 0:
            raise ValueError(f"`max_seconds` must be positive, got {max_seconds}.")
        self.capacity = capacity
        self.per_owner = per_owner
        self.max_bytes = max_bytes
        self.time_to_live = time_to_live
        self.max_seconds = max_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the least recently used first
        self._running: dict[str, Run] = {}
        self._forgotten: OrderedDict[str, int] = OrderedDict()  # when an owner was, as `now` counts
        self._called_off: OrderedDict[str, None] = OrderedDict()  # orders, the first ones first
        self._now = 0
        self._sweeper: threading.Timer | None = None
        self._is_closed = False

    def run(
        self,
        work: Callable[[OnStep], InversionOutput],
        *,
        total: int,
        first_stage_steps: int,
        owner: str | None,
        model: str,
        since: int | None = None,
    ) -> Generator[Progress, None, None]:
        """Run an inversion in a thread; closing the iterator ends it and forgets the result.

        An owner has one inversion at a time. One that was stopped or left is waited for, which takes a step at most.

        Args:
            work: Inverts; it calls its argument after each step and ends when that returns True.
            total: Steps of all stages at most; 0 if there are none.
            first_stage_steps: Steps of the stage before "tuning", by which those of "tuning" are shifted.
            owner: Who may use the result; `None` means whoever has the token.
            model: Name of the model, kept with the result.
            since: From `now`, when the work that leads to this was begun: if the owner was forgotten after that, there
                is no run, and no report.

        Yields:
            Reports, at least two a second; the last one has the output, which is kept under its token. If the owner is
            forgotten meanwhile, they end without it.

        Raises:
            BusyError: If another inversion of this owner runs.
            Exception: Whatever `work` raises.
        """
        run = Run(work, total=total, first_stage_steps=first_stage_steps, owner=owner, max_seconds=self.max_seconds)
        with self._lock:
            if self._is_closed or self.is_forgotten(owner, since):
                return
            others = [other for other in self._running.values() if owner is not None and other.owner == owner]
            if not all(other.stop.is_set() for other in others):
                raise BusyError("Your last inversion still runs. Stop it, or wait until it is done.")
            self._running[run.token] = run
        try:
            while any(other.token in self._running for other in others):
                yield run.latest
                time.sleep(WAIT_SECONDS)
        except BaseException:  # the iterator was closed
            self._end(run)
            raise
        reports = run.reports(when_ended=lambda: self._end(run))
        try:
            for report in reports:
                with self._lock:
                    if run.forgotten:
                        return
                    if report.output is not None:
                        self._keep(run.token, report.output, owner, model)
                yield report
        finally:
            reports.close()

    def _end(self, run: Run) -> None:
        with self._lock:
            self._running.pop(run.token, None)

    def now(self) -> int:
        """The moment at which work begins, for `add(..., since=...)` and `run(..., since=...)`."""
        return self._now

    def add(self, output: InversionOutput, *, owner: str | None, model: str, since: int | None = None) -> str:
        """Keep a result that needed no run, and return its token.

        Args:
            output: The result.
            owner: Who may use it; `None` means whoever has the token.
            model: Name of the model that made it.
            since: From `now`, when its making was begun: if the owner was forgotten after that, nothing is kept, and
                the token opens nothing.
        """
        token = secrets.token_urlsafe(32)
        with self._lock:
            if not self.is_forgotten(owner, since):
                self._keep(token, output, owner, model)
        return token

    def is_forgotten(self, owner: str | None, since: int | None) -> bool:
        """Whether an owner was forgotten after a moment that `now` gave."""
        return owner is not None and since is not None and self._forgotten.get(owner, 0) > since

    def get(self, token: str, *, owner: str | None) -> Kept | None:
        """The result under a token, which counts as use; `None` if there is none, no longer, or it is another's."""
        with self._lock:
            self._evict()
            entry = self._entries.get(token)
            if entry is None or entry.owner not in (None, owner):
                return None
            entry.used = self._clock()
            self._entries.move_to_end(token)
            return entry.kept

    def stop(self, token: str, *, owner: str | None) -> bool:
        """End a running inversion within a step; its best state so far becomes the result.

        Returns:
            Whether an inversion with this token is running and the owner's.
        """
        run = self._running.get(token)
        if run is None or run.owner not in (None, owner):
            return False
        run.stop.set()
        return True

    def call_off(self, order: str) -> None:
        """Note that the work of an order, a name nobody can guess, is no longer wanted, be it begun or not."""
        if not order:  # no page has sent it
            return
        with self._lock:
            self._called_off[order] = None
            while len(self._called_off) > REMEMBERED_ORDERS:
                self._called_off.popitem(last=False)

    def is_called_off(self, order: str) -> bool:
        """Whether `call_off` was told so."""
        return order in self._called_off

    def drop(self, token: str, *, owner: str | None) -> None:
        """Forget a result, if it is there and the owner's."""
        with self._lock:
            entry = self._entries.get(token)
            if entry is not None and entry.owner in (None, owner):
                del self._entries[token]

    def forget(self, owner: str | None) -> int:
        """Forget all results of an owner and end what runs, whose result is not kept.

        Args:
            owner: Whose; of `None` nothing is forgotten, as what was made without an owner is not one visitor's.

        Returns:
            How many results and runs there were.
        """
        if owner is None:
            return 0
        with self._lock:
            self._evict()
            self._now += 1
            self._forgotten[owner] = self._now
            self._forgotten.move_to_end(owner)
            while len(self._forgotten) > REMEMBERED_OWNERS:
                self._forgotten.popitem(last=False)
            tokens = [token for token, entry in self._entries.items() if entry.owner == owner]
            for token in tokens:
                del self._entries[token]
            runs = [run for run in list(self._running.values()) if run.owner == owner and not run.forgotten]
            for run in runs:
                run.forgotten = True
                run.stop.set()
            return len(tokens) + len(runs)

    def close(self) -> None:
        """End all that runs, wait for its threads, and begin nothing more. Takes a step of an inversion at most."""
        with self._lock:
            self._is_closed = True
            runs = list(self._running.values())
        for run in runs:
            run.stop.set()
        for run in runs:
            run.join()

    def __len__(self) -> int:
        """How many results are kept."""
        with self._lock:
            self._evict()
            return len(self._entries)

    def _keep(self, token: str, output: InversionOutput, owner: str | None, model: str) -> None:
        with self._lock:
            self._evict()
            size = size_of(output)
            count, share = (self.per_owner, 4) if owner is not None else (max(self.capacity // 2, 1), 2)
            self._make_room([key for key, each in self._entries.items() if each.owner == owner], count, size, share)
            self._make_room(list(self._entries), self.capacity, size, 1)
            self._entries[token] = _Entry(Kept(output, model), owner, self._clock(), size)
            if self._sweeper is None:
                self._sweep_later()

    def _make_room(self, tokens: list[str], count: int, size: int, share: int) -> None:
        """Delete the first of some results until one more fits: in number, and in its share of the memory."""
        used = sum(self._entries[token].size for token in tokens)
        for left, token in zip(range(len(tokens), 0, -1), tokens, strict=True):
            if left < count and used + size <= self.max_bytes // share:
                break
            used -= self._entries.pop(token).size

    def _evict(self) -> None:
        oldest = self._clock() - self.time_to_live
        for token in [token for token, entry in self._entries.items() if entry.used < oldest]:
            del self._entries[token]

    def _sweep_later(self) -> None:
        """Evict even if no visitor comes any more: no face is kept longer than said, by more than a minute."""
        self._sweeper = threading.Timer(min(self.time_to_live, 60.0), self._sweep)
        self._sweeper.daemon = True
        self._sweeper.start()

    def _sweep(self) -> None:
        with self._lock:
            self._evict()
            self._sweeper = None
            if self._entries:
                self._sweep_later()
