import threading
import time

import pytest

from stylegan_inversion.webapp import turns as module
from stylegan_inversion.webapp.turns import Turns


def test_the_first_need_not_wait() -> None:
    turns = Turns()
    assert len(turns) == 0
    with turns.join() as turn:
        assert len(turns) == 1 and list(turn) == []
    assert len(turns) == 0


def test_the_others_wait_in_the_order_of_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    turns = Turns(2)
    tickets = [turns.join() for _ in range(4)]
    assert [turns.ahead(ticket) for ticket in tickets] == [0, 0, 1, 2]
    assert next(iter(tickets[3])) == 2
    with tickets[0]:
        pass
    assert [turns.ahead(ticket) for ticket in tickets[1:]] == [0, 0, 1]
    with tickets[2]:  # the third may end before the second
        pass
    assert [turns.ahead(tickets[i]) for i in (1, 3)] == [0, 0] and list(tickets[3]) == []


def test_whoever_leaves_the_line_makes_room() -> None:
    turns = Turns()
    first, second, third = turns.join(), turns.join(), turns.join()
    with pytest.raises(KeyboardInterrupt), second:
        assert next(iter(second)) == 1
        raise KeyboardInterrupt
    assert turns.ahead(third) == 1 and len(turns) == 2
    with first:
        pass
    assert turns.ahead(third) == 0


def test_a_turn_comes_as_soon_as_the_other_has_left() -> None:
    turns = Turns()
    first, second = turns.join(), turns.join()
    waited: list[float] = []

    def wait() -> None:
        start = time.monotonic()
        with second:
            list(second)
            waited.append(time.monotonic() - start)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    assert not waited
    with first:
        pass
    thread.join(10)
    assert waited and 0.1 <= waited[0] and len(turns) == 0


def test_never_more_at_work_than_there_are_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    turns, at_work, most = Turns(3), [0], [0]
    lock = threading.Lock()

    def work() -> None:
        with turns.join() as turn:
            list(turn)
            with lock:
                at_work[0] += 1
                most[0] = max(most[0], at_work[0])
            time.sleep(0.02)
            with lock:
                at_work[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [3] and len(turns) == 0


def test_no_places() -> None:
    with pytest.raises(ValueError, match="`count` must be >= 1, got 0"):
        Turns(0)
