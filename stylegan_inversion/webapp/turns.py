"""Turns for work that takes a whole machine: a few at a time, in the order of arrival."""

import functools
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

WAIT_SECONDS = 0.5  # between two looks at the queue at most, so that whoever waits can leave


class BusyError(ValueError):
    """There is no place for more work now; the message says what to do."""


class Turns:
    """A fair queue. Whoever iterates over a turn waits; when the loop ends, it is theirs until it is left."""

    def __init__(self, count: int = 1, *, max_waiting: int = 8) -> None:
        """Open the queue.

        Args:
            count: How many work at the same time.
            max_waiting: How many may wait.

        Raises:
            ValueError: If `count` is below 1 or `max_waiting` negative.
        """
        if count < 1:
            raise ValueError(f"`count` must be >= 1, got {count}.")
        if max_waiting < 0:
            raise ValueError(f"`max_waiting` must be >= 0, got {max_waiting}.")
        self.count = count
        self.max_waiting = max_waiting
        self._changed = threading.Condition()
        self._tickets: list[Turn] = []

    def join(self, owner: str | None = None) -> "Turn":
        """Stand at the end of the queue.

        Args:
            owner: Who wants the turn, who may have one place only. Programs are all `None`, and leave half of the
                places to wait to others.

        Raises:
            BusyError: If too many wait already, or the owner works or waits.
        """
        turn = Turn(self, owner)
        with self._changed:
            if owner is not None and any(other.owner == owner and not other.is_left for other in self._tickets):
                raise BusyError("You have one inversion running or waiting already. Stop it, or wait until it is done.")
            of_programs = [other for other in self._tickets if other.owner is None]
            is_crowded = owner is None and len(of_programs) >= self.count + self.max_waiting // 2
            if is_crowded or len(self._tickets) >= self.count + self.max_waiting:
                raise BusyError("Too many inversions wait already. Try again in a few minutes.")
            self._tickets.append(turn)
        return turn

    def ahead(self, turn: "Turn") -> int:
        """How many have to leave before it is this one's turn; 0 if it is."""
        with self._changed:
            return max(self._tickets.index(turn) - self.count + 1, 0)

    def __len__(self) -> int:
        """How many work or wait."""
        with self._changed:
            return len(self._tickets)


class Turn:
    """A place in the queue, as a context manager: it is left at the end, whatever happens.

    Attributes:
        owner: Whose it is.
        is_left: Whether the block has ended. If work in a thread has not, the place is still taken.
    """

    def __init__(self, turns: Turns, owner: str | None = None) -> None:
        self.owner = owner
        self.is_left = False
        self._turns = turns
        self._is_working = False

    def holding(self, work: Callable[P, T]) -> Callable[P, T]:
        """Work that keeps the place until it ends, be it after the block: for a thread that ends a step later."""

        @functools.wraps(work)
        def held(*args: P.args, **kwargs: P.kwargs) -> T:
            with self._turns._changed:
                self._is_working = True
            try:
                return work(*args, **kwargs)
            finally:
                with self._turns._changed:
                    self._is_working = False
                    self._make_room()

        return held

    def __enter__(self) -> "Turn":
        """The place, taken already."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the queue, or do so once the work has ended."""
        with self._turns._changed:
            self.is_left = True
            self._make_room()

    def _make_room(self) -> None:
        if self.is_left and not self._is_working and self in self._turns._tickets:
            self._turns._tickets.remove(self)
            self._turns._changed.notify_all()

    def __iter__(self) -> Iterator[int]:
        """How many are ahead, again and again, until nobody is."""
        while ahead := self._turns.ahead(self):
            yield ahead
            with self._turns._changed:
                self._turns._changed.wait(WAIT_SECONDS)
