"""Programs that stop and cancel their runs."""

import dataclasses
import time
from typing import Any

import pytest
import torch

from stylegan_inversion.webapp.models import Model
from stylegan_inversion.webapp.sessions import Progress
from tests.webapp.checks import until
from tests.webapp.conftest import Connect

pytest.importorskip("gradio_client")
from stylegan_inversion.webapp.api import _show


def started(job: Any) -> str:
    """The token of a run that has taken a step."""
    until(lambda: job.outputs() and job.outputs()[-1][2])
    return job.outputs()[-1][2]


def test_stop_keeps_the_best(connect: Connect, file: Any, steps: list[float], app: Any) -> None:
    client = connect()
    job = client.submit(file, method="pti", num_w_steps=10**9, num_tuning_steps=10**9, api_name="/invert")
    token = started(job)
    until(lambda: len(steps) > 2)
    asked = time.monotonic()
    assert client.predict(token, api_name="/stop") is True
    *_, result, figures = job.result(timeout=30)
    assert result == token and figures["stopped_by"] == "callback" and steps[-1] - asked < 1
    assert len(steps) < 2000 and client.predict(token, api_name="/stop") is False
    client.predict(token, {"smile": 1.0}, api_name="/edit")
    assert not app.sessions._running


def test_cancel_ends_the_run(connect: Connect, file: Any, steps: list[float], app: Any) -> None:
    before = len(app.sessions)
    job = connect().submit(file, method="pti", num_w_steps=1000, num_tuning_steps=1000, api_name="/invert")
    token = started(job)
    until(lambda: len(steps) > 2)
    asked = time.monotonic()
    job.cancel()
    until(lambda: not app.sessions._running)
    time.sleep(0.5)
    assert steps[-1] - asked < 1.5  # a heartbeat of the app, and of Gradio
    assert len(app.sessions) == before and app.sessions.get(token, owner=None) is None


@pytest.mark.parametrize("name", ["/invert_and_edit", "/compare"])
def test_cancel_ends_the_other_runs(name: str, connect: Connect, file: Any, steps: list[float], app: Any) -> None:
    before = set(app.sessions._entries)
    tuning = app.model.pti.tuning
    app.model.pti.tuning = dataclasses.replace(tuning, num_steps=1000)
    try:
        how: dict[str, Any] = {"method": "pti"} if name == "/invert_and_edit" else {}
        job = connect().submit(file, **how, api_name=name)
        until(lambda: len(steps) > 8)
        asked = time.monotonic()
        job.cancel()
        until(lambda: not app.sessions._running and set(app.sessions._entries) <= before)
        time.sleep(0.5)
        assert steps[-1] - asked < 1.5
    finally:
        app.model.pti.tuning = tuning


def test_waiting_is_told() -> None:
    told: list[Any] = []
    for report in (Progress("", "waiting", 2, 6), Progress("t", "tuning", 3, 6)):
        _show(lambda *given, **named: told.append((*given, named["desc"])), report, before="pti: ")
    assert told == [(None, "pti: waiting, 2 before you"), ((3, 6), "pti: tuning")]


def test_the_base_generator_is_never_changed(connect: Connect, file: Any, model: Model) -> None:
    before = {key: value.clone() for key, value in model.pti.generator.state_dict().items()}
    connect().predict(file, method="pti", num_w_steps=2, num_tuning_steps=3, api_name="/invert")
    assert all(torch.equal(value, before[key]) for key, value in model.pti.generator.state_dict().items())
