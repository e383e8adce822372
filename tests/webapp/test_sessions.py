import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_inversion import InversionOutput, PTIPipeline
from stylegan_inversion.pipelines.play import sample_face
from stylegan_inversion.webapp.memory import size_of
from stylegan_inversion.webapp.running import HEARTBEAT_SECONDS
from stylegan_inversion.webapp.sessions import BusyError, Progress, Sessions

MANY = 100_000  # steps; nobody waits for them


@pytest.fixture
def output() -> InversionOutput:
    image = Image.new("RGB", (8, 8))
    return InversionOutput([image], [image], torch.zeros(1, 2, 4), [], [])


def invert(
    sessions: Sessions, pti: PTIPipeline, photo: Image.Image, steps: int, *, owner: str | None = "anna"
) -> Iterator[Progress]:
    def work(on_step: Any) -> InversionOutput:
        return pti(photo, num_w_steps=steps, num_tuning_steps=steps, callback=on_step)

    return sessions.run(work, total=2 * steps, first_stage_steps=steps, owner=owner, model="tiny")


def endless(on_step: Any) -> InversionOutput:
    step = 0
    info = {"stage": "tuning", "loss": 1.0, "y_hat": torch.zeros(1, 3, 8, 8)}
    while not on_step(step := step + 1, info):
        time.sleep(0.01)
    image = Image.new("RGB", (8, 8))
    return InversionOutput([image], [image], torch.zeros(1, 2, 4), [], [])


def start(sessions: Sessions, *, owner: str | None) -> tuple[Iterator[Progress], str]:
    reports = sessions.run(endless, total=MANY, first_stage_steps=0, owner=owner, model="tiny")
    return reports, next(reports).token


def wait_until_idle(sessions: Sessions) -> None:
    deadline = time.monotonic() + 5
    while sessions._running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not sessions._running


def test_the_result_is_kept_under_an_unguessable_token(pti: PTIPipeline, photo: Image.Image) -> None:
    sessions = Sessions()
    reports = list(invert(sessions, pti, photo, 2))
    assert [report.stage for report in reports][:: len(reports) - 1] == ["start", "done"]
    last = reports[-1]
    kept = sessions.get(last.token, owner="anna")
    assert kept is not None and kept.output is last.output and kept.model == "tiny"
    assert last.output is not None and last.output.reports[0]["tuning_steps"] == 2
    assert {report.token for report in reports} == {last.token} and len(last.token) >= 43  # 256 bits
    sessions.drop(last.token, owner="anna")
    sessions.drop(last.token, owner="anna")
    assert sessions.get(last.token, owner="anna") is None


def test_a_wrong_owner_looks_like_no_token(output: InversionOutput) -> None:
    sessions = Sessions()
    hers = sessions.add(output, owner="anna", model="tiny")
    for other in ("bert", None, ""):
        assert sessions.get(hers, owner=other) is None
        sessions.drop(hers, owner=other)
    assert sessions.get("unknown", owner="anna") is None
    assert sessions.get(hers, owner="anna") is not None
    programs = sessions.add(output, owner=None, model="tiny")
    assert sessions.get(programs, owner=None) is not None and sessions.get(programs, owner="anna") is not None

    reports, token = start(sessions, owner="anna")
    assert not sessions.stop(token, owner="bert") and not sessions.stop(token, owner=None)
    assert sessions.stop(token, owner="anna")
    assert list(reports)[-1].stage == "done"


def test_stop_keeps_the_best_state(pti: PTIPipeline, photo: Image.Image) -> None:
    before = {key: value.clone() for key, value in pti.generator.state_dict().items()}
    sessions = Sessions()
    stopped = False
    for report in invert(sessions, pti, photo, MANY, owner=None):
        if report.step and not stopped:
            assert report.stage == "projection" and report.loss is not None
            assert 0 < report.step < report.total == 2 * MANY
            assert report.preview is not None and report.preview.size == (32, 32)
            assert sessions.stop(report.token, owner=None)
            stopped = True
    assert report.output is not None and report.output.reports[0]["w_steps"] < MANY
    assert report.output.reports[0]["stopped_by"] == "callback" and len(sessions) == 1
    assert not sessions.stop(report.token, owner=None) and not sessions.stop("unknown", owner=None)
    assert all(torch.equal(value, before[key]) for key, value in pti.generator.state_dict().items())


def test_steps_of_the_tuning_come_after_those_of_the_projection() -> None:
    sessions = Sessions()
    reports = sessions.run(endless, total=MANY, first_stage_steps=1000, owner=None, model="tiny")
    for report in reports:
        if report.step:
            break
    assert report.stage == "tuning" and 1000 < report.step < 2000 and report.seconds > 0
    reports.close()  # type: ignore[attr-defined]
    wait_until_idle(sessions)


def test_whoever_leaves_ends_the_computation() -> None:
    sessions = Sessions()
    reports, _ = start(sessions, owner="anna")
    next(reports)
    assert len(sessions._running) == 1 and "inversion" in {thread.name for thread in threading.enumerate()}
    reports.close()  # type: ignore[attr-defined]
    wait_until_idle(sessions)
    assert len(sessions) == 0


def test_one_at_a_time_for_each_visitor() -> None:
    sessions = Sessions()
    first, token = start(sessions, owner="anna")
    with pytest.raises(BusyError, match=r"Your last inversion still runs\. Stop it, or wait until it is done"):
        start(sessions, owner="anna")
    others = [start(sessions, owner=owner)[0] for owner in ("bert", None, None)]
    assert len(sessions._running) == 4
    for each in others:
        each.close()  # type: ignore[attr-defined]
    assert sessions.stop(token, owner="anna")
    second, other_token = start(sessions, owner="anna")  # the one that was stopped is waited for
    assert list(first)[-1].output is not None
    for report in second:
        if report.step:
            sessions.stop(other_token, owner="anna")
    assert report.stage == "done" and len(sessions) == 2
    wait_until_idle(sessions)


def test_a_visitor_may_leave_while_the_last_run_ends() -> None:
    sessions = Sessions()
    release = threading.Event()

    def slow(on_step: Any) -> InversionOutput:
        release.wait(10)
        return endless(lambda step, info: True)

    first = sessions.run(slow, total=1, first_stage_steps=0, owner="anna", model="tiny")
    next(first)
    first.close()  # type: ignore[attr-defined]
    second, _ = start(sessions, owner="anna")
    next(second)
    assert len(sessions._running) == 2
    second.close()  # type: ignore[attr-defined]
    assert len(sessions._running) == 1
    release.set()
    wait_until_idle(sessions)


def test_without_a_thread_nobody_is_locked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sessions = Sessions()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            list(sessions.run(endless, total=MANY, first_stage_steps=0, owner="anna", model="tiny"))
    reports, _ = start(sessions, owner="anna")
    reports.close()  # type: ignore[attr-defined]
    wait_until_idle(sessions)


def test_reports_come_while_nothing_happens() -> None:
    def silent(on_step: Any) -> InversionOutput:
        time.sleep(2.5 * HEARTBEAT_SECONDS)
        return endless(lambda step, info: True)

    reports = list(Sessions().run(silent, total=0, first_stage_steps=0, owner=None, model="tiny"))
    assert [report.stage for report in reports] == ["start"] * 3 + ["done"]


def test_errors_come_through(pti: PTIPipeline, photo: Image.Image) -> None:
    sessions = Sessions()
    with pytest.raises(ValueError, match=r"`num_w_steps` must be >= 1, got 0"):
        list(invert(sessions, pti, photo, 0))

    def leaving(on_step: Any) -> InversionOutput:
        raise SystemExit("also")

    with pytest.raises(SystemExit, match="also"):
        list(sessions.run(leaving, total=1, first_stage_steps=0, owner="anna", model="tiny"))
    assert not sessions._running and len(sessions) == 0


def test_forget_all_of_an_owner(output: InversionOutput) -> None:
    sessions = Sessions()
    for owner in ("anna", "anna", "bert", None):
        sessions.add(output, owner=owner, model="tiny")
    reports, token = start(sessions, owner="anna")
    assert sessions.forget("anna") == 3
    assert all(report.output is None for report in reports)
    wait_until_idle(sessions)
    assert sessions.get(token, owner="anna") is None
    assert len(sessions) == 2 and sessions.forget("anna") == 0
    assert sessions.forget(None) == 0 and len(sessions) == 2


def test_an_error_after_forgetting_is_not_shown() -> None:
    sessions = Sessions()

    def failing(on_step: Any) -> InversionOutput:
        endless(on_step)
        raise RuntimeError("late")

    reports = sessions.run(failing, total=1, first_stage_steps=0, owner="anna", model="tiny")
    next(reports)
    assert sessions.forget("anna") == 1
    assert [report for report in reports if report.output] == []


def test_the_least_recently_used_goes_first(output: InversionOutput) -> None:
    sessions = Sessions(capacity=2)
    first, second = (sessions.add(output, owner=owner, model="tiny") for owner in ("anna", "bert"))
    assert sessions.get(first, owner="anna") is not None
    third = sessions.add(output, owner=None, model="tiny")
    assert len(sessions) == 2
    assert sessions.get(second, owner="bert") is None
    assert sessions.get(first, owner="anna") is not None and sessions.get(third, owner=None) is not None


def test_an_owner_pushes_out_only_what_is_theirs(output: InversionOutput) -> None:
    sessions = Sessions(capacity=9, per_owner=3)
    of_bert = sessions.add(output, owner="bert", model="tiny")
    of_anna = [sessions.add(output, owner="anna", model="tiny") for _ in range(5)]
    assert [sessions.get(token, owner="anna") is not None for token in of_anna] == [False, False, True, True, True]
    assert sessions.get(of_bert, owner="bert") is not None and len(sessions) == 4


def test_programs_push_out_only_what_is_theirs(output: InversionOutput) -> None:
    sessions = Sessions(capacity=8, per_owner=3)
    of_visitors = [(sessions.add(output, owner=owner, model="tiny"), owner) for owner in ("anna", "bert", "carl")]
    of_programs = [sessions.add(output, owner=None, model="tiny") for _ in range(20)]
    assert all(sessions.get(token, owner=owner) for token, owner in of_visitors)
    assert [sessions.get(token, owner=None) is not None for token in of_programs] == [False] * 16 + [True] * 4


def test_memory_is_shared_out(output: InversionOutput) -> None:
    size = size_of(output)
    assert size == 3 * 64 + 32  # the same picture twice counts once
    sessions = Sessions(max_bytes=8 * size)
    of_bert = sessions.add(output, owner="bert", model="tiny")
    of_anna = [sessions.add(output, owner="anna", model="tiny") for _ in range(4)]
    of_programs = [sessions.add(output, owner=None, model="tiny") for _ in range(6)]
    assert [sessions.get(token, owner="anna") is not None for token in of_anna] == [False, False, True, True]
    assert [sessions.get(token, owner=None) is not None for token in of_programs] == [False] * 2 + [True] * 4
    assert sessions.get(of_bert, owner="bert") is not None
    others = [sessions.add(output, owner=owner, model="tiny") for owner in ("carl", "dora")]
    assert len(sessions) == 8 and sessions.get(of_anna[2], owner="anna") is None  # the one not used for longest
    large = dataclasses.replace(output, images=[Image.new("RGB", (100, 100))])
    token = sessions.add(large, owner="emil", model="tiny")
    assert sessions.get(token, owner="emil") is not None and len(sessions) == 1  # it has to be shown
    assert sessions.get(others[0], owner="carl") is None


def test_tuned_generators_count(pti: PTIPipeline, photo: Image.Image) -> None:
    shared, tuned = (pti(photo, num_w_steps=1, num_tuning_steps=steps) for steps in (0, 1))
    weights = sum(tensor.nbytes for tensor in pti.generator.state_dict().values())
    assert tuned.generator is not pti.generator
    assert size_of(tuned) - size_of(shared) in (0, weights) and size_of(tuned) > weights
    drawn = sample_face(pti)
    assert drawn.generator is pti.generator and size_of(drawn) < weights


def test_what_was_begun_before_forgetting_is_not_kept(output: InversionOutput) -> None:
    sessions = Sessions()
    since = sessions.now()
    assert sessions.forget("anna") == 0
    late = sessions.add(output, owner="anna", model="tiny", since=since)
    assert sessions.get(late, owner="anna") is None and len(sessions) == 0
    reports = sessions.run(endless, total=1, first_stage_steps=0, owner="anna", model="tiny", since=since)
    assert list(reports) == [] and not sessions._running
    for owner, when in (("anna", sessions.now()), ("bert", since), (None, since), ("anna", None)):
        token = sessions.add(output, owner=owner, model="tiny", since=when)
        assert sessions.get(token, owner=owner) is not None


def test_a_run_has_a_time_limit() -> None:
    sessions = Sessions(max_seconds=0.3)
    start = time.monotonic()
    *_, last = sessions.run(endless, total=MANY, first_stage_steps=0, owner=None, model="tiny")
    assert last.output is not None and time.monotonic() - start >= 0.3
    assert sessions.get(last.token, owner=None) is not None


def test_results_expire_after_their_last_use(output: InversionOutput) -> None:
    now = 0.0
    sessions = Sessions(time_to_live=10.0, clock=lambda: now)
    token = sessions.add(output, owner="anna", model="tiny")
    now = 9.0
    assert sessions.get(token, owner="anna") is not None
    now = 18.0
    assert sessions.get(token, owner="bert") is None  # no use
    assert sessions.get(token, owner="anna") is not None
    now = 28.5
    assert sessions.get(token, owner="anna") is None and len(sessions) == 0


def test_results_expire_without_visitors(output: InversionOutput) -> None:
    sessions = Sessions(time_to_live=0.2)
    sessions.add(output, owner="anna", model="tiny")
    deadline = time.monotonic() + 5
    while sessions._entries and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sessions._entries


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"`capacity` must be >= 1, got 0"):
        Sessions(capacity=0)
    with pytest.raises(ValueError, match=r"`per_owner` must be >= 1, got 0"):
        Sessions(per_owner=0)
    with pytest.raises(ValueError, match=r"`time_to_live` must be positive, got nan"):
        Sessions(time_to_live=float("nan"))
    with pytest.raises(ValueError, match=r"`max_bytes` must be >= 1, got 0"):
        Sessions(max_bytes=0)
    with pytest.raises(ValueError, match=r"`max_seconds` must be positive, got 0"):
        Sessions(max_seconds=0)
