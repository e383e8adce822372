import threading
import time

import pytest
import torch
from PIL import Image

from stylegan_inversion import PTIPipeline
from stylegan_inversion.webapp.sessions import Progress, Sessions

MANY = 100_000  # steps; nobody waits for them


def finish(sessions: Sessions, pti: PTIPipeline, photo: Image.Image) -> Progress:
    return list(sessions.invert(pti.align(photo), num_w_steps=1, num_tuning_steps=1))[-1]


def threads() -> int:
    return sum(thread.name == "inversion" for thread in threading.enumerate())


def test_the_result_is_kept_under_an_unguessable_token(pti: PTIPipeline, photo: Image.Image) -> None:
    sessions = Sessions(pti)
    reports = list(sessions.invert(pti.align(photo, face=1), num_w_steps=2, num_tuning_steps=3))
    assert [report.stage for report in reports][:: len(reports) - 1] == ["start", "done"]
    last = reports[-1]
    assert last.output is not None and sessions.output(last.token) is last.output
    assert {report.token for report in reports} == {last.token} and len(last.token) >= 43  # 256 bits
    assert last.output.crops[0].photo.size == photo.size and last.output.crops[0].quad is not None
    assert last.output.reports[0]["face_index"] == 1 and last.output.reports[0]["face_count"] == 2
    assert last.output.reports[0]["w_steps"] == 2 and last.output.reports[0]["tuning_steps"] == 3
    sessions.drop(last.token)
    sessions.drop(last.token)
    assert sessions.output(last.token) is None


def test_stop_keeps_the_best_state(pti: PTIPipeline, photo: Image.Image) -> None:
    before = {key: value.clone() for key, value in pti.generator.state_dict().items()}
    sessions = Sessions(pti)
    stopped = 0.0
    for report in sessions.invert(pti.align(photo), num_w_steps=MANY, num_tuning_steps=MANY):
        if report.step and not stopped:
            assert (
                report.stage == "projection" and report.loss is not None and 0 < report.step < report.total == 2 * MANY
            )
            assert report.preview is not None and report.preview.size == (32, 32)
            assert sessions.stop(report.token)
            stopped = time.perf_counter()
    assert time.perf_counter() - stopped < 2
    assert report.output is not None and report.output.reports[0]["w_steps"] < MANY
    assert report.output.reports[0]["stopped_by"] == "callback" and sessions.output(report.token) is report.output
    assert not sessions.stop(report.token) and not sessions.stop("unknown")
    assert all(torch.equal(value, before[key]) for key, value in pti.generator.state_dict().items())


def test_whoever_leaves_ends_the_computation(pti: PTIPipeline, photo: Image.Image) -> None:
    sessions = Sessions(pti)
    reports = sessions.invert(pti.align(photo), num_w_steps=MANY, num_tuning_steps=MANY)
    while not next(reports).step:
        assert threads() == 1
    reports.close()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threads() == 0 and len(sessions) == 0


def test_errors_come_through(pti: PTIPipeline, photo: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"`num_w_steps` must be >= 1, got 0"):
        list(Sessions(pti).invert(pti.align(photo), num_w_steps=0, num_tuning_steps=1))


def test_the_least_recently_used_goes_first(pti: PTIPipeline, photo: Image.Image) -> None:
    sessions = Sessions(pti, capacity=2)
    first, second = finish(sessions, pti, photo), finish(sessions, pti, photo)
    assert sessions.output(first.token) is not None
    third = finish(sessions, pti, photo)
    assert len(sessions) == 2
    assert sessions.output(second.token) is None
    assert sessions.output(first.token) is not None and sessions.output(third.token) is not None


def test_results_expire_after_their_last_use(pti: PTIPipeline, photo: Image.Image) -> None:
    now = 0.0
    sessions = Sessions(pti, time_to_live=10.0, clock=lambda: now)
    token = finish(sessions, pti, photo).token
    now = 9.0
    assert sessions.output(token) is not None
    now = 18.0
    assert sessions.output(token) is not None
    now = 28.5
    assert sessions.output(token) is None and len(sessions) == 0


def test_results_expire_without_visitors(pti: PTIPipeline, photo: Image.Image) -> None:
    sessions = Sessions(pti, time_to_live=0.2)
    finish(sessions, pti, photo)
    deadline = time.monotonic() + 5
    while sessions._outputs and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sessions._outputs


def test_bad_arguments(pti: PTIPipeline) -> None:
    with pytest.raises(ValueError, match=r"`capacity` must be >= 1, got 0"):
        Sessions(pti, capacity=0)
    with pytest.raises(ValueError, match=r"`time_to_live` must be positive, got nan"):
        Sessions(pti, time_to_live=float("nan"))
