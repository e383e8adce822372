"""Turns for work that takes a whole machine: a few at a time, in the order of arrival."""

import threading
from collections.abc import Iterator

WAIT_SECONDS = 0.5  # between two looks at the queue at most, so that whoever waits can leave


class Turns:
    """A fair queue. Whoever iterates over a turn waits; when the loop ends, it is theirs until `leave`."""

    def __init__(self, count: int = 1) -> None:
        """Open the queue.

        Args:
            count: How many work at the same time.

        Raises:
            ValueError: If `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"`count` must be >= 1, got {count}.")
        self.count = count
        self._changed = threading.Condition()
        self._tickets: list[Turn] = []

    def join(self) -> "Turn":
        """Stand at the end of the queue."""
        turn = Turn(self)
        with self._changed:
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
    """A place in the queue, as a context manager: it is left at the end, whatever happens."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> "Turn":
        """The place, taken already."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the queue."""
        with self._turns._changed:
            self._turns._tickets.remove(self)
            self._turns._changed.notify_all()

    def __iter__(self) -> Iterator[int]:
        """How many are ahead, again and again, until nobody is."""
        while ahead := self._turns.ahead(self):
            yield ahead
            with self._turns._changed:
                self._turns._changed.wait(WAIT_SECONDS)
