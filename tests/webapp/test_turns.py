import threading
import time

import pytest

from stylegan_inversion.webapp import turns as module
from stylegan_inversion.webapp.turns import BusyError, Turns


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
    turns, at_work, most = Turns(3, max_waiting=24), [0], [0]
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
    with pytest.raises(ValueError, match="`max_waiting` must be >= 0, got -1"):
        Turns(max_waiting=-1)


def test_the_line_has_an_end() -> None:
    turns = Turns(2, max_waiting=4)
    first, *_ = (turns.join() for _ in range(4))
    crowded = r"Too many inversions wait already\. Try again in a few minutes"
    with pytest.raises(BusyError, match=crowded):
        turns.join()  # half of the places are left to visitors
    for name in ("anna", "bert"):
        turns.join(name)
    with pytest.raises(BusyError, match=crowded):
        turns.join("carl")
    assert len(turns) == 6
    with first:
        pass
    assert turns.ahead(turns.join("carl")) == 4


def test_a_visitor_has_one_place() -> None:
    turns = Turns()
    first, _ = turns.join("anna"), turns.join("bert")
    for owner in ("anna", "bert"):
        with pytest.raises(BusyError, match=r"one inversion running or waiting already\. Stop it, or wait until"):
            turns.join(owner)
    turns.join(), turns.join()  # programs have no name
    with first:
        pass
    assert turns.ahead(turns.join("anna")) == 3


def test_the_place_is_kept_until_the_work_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    turns, begun, end = Turns(), threading.Event(), threading.Event()

    def work(seconds: float) -> float:
        begun.set()
        end.wait(seconds)
        return seconds

    with turns.join("anna") as turn:
        thread = threading.Thread(target=turn.holding(work), args=(10.0,))
        thread.start()
        assert begun.wait(10)
    assert len(turns) == 1
    other = turns.join("anna")  # who left may come again, behind herself
    assert turns.ahead(other) == 1
    end.set()
    thread.join(10)
    assert list(other) == [] and len(turns) == 1
    with other:
        assert other.holding(work)(0.0) == 0.0
        assert len(turns) == 1  # the block has not ended
    assert len(turns) == 0


def test_work_that_fails_makes_room() -> None:
    turns = Turns()

    def fail() -> None:
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"), turns.join() as turn:
        turn.holding(fail)()
    assert len(turns) == 0
