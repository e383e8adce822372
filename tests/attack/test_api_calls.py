"""Odd calls of every named endpoint: each has a result, or one sentence that tells nothing of the server.

`STYLEGAN_INVERSION_SEED` chooses other calls.
"""

import base64
import json
import os
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stylegan_inversion
from tests.conftest import make_photo

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio")
from stylegan_inversion.webapp.photos import NOT_UPLOADED  # noqa: E402
from stylegan_inversion.webapp.run import FAILED  # noqa: E402
from tests.webapp.tiny_app import Served, serve, tiny_model  # noqa: E402

SECONDS = 120.0  # until a call that has no answer hangs
META = {"_type": "gradio.FileData"}
DEEP: Any = "bottom"
for _ in range(60):
    DEEP = [DEEP]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**70, 10**400, -(10**30), 0.5, 1e9, 1e308, float("nan"), float("inf"),
    "", "x", "5", "nan", "none", "e4e", "pti", "photo", "x" * 50_000, "ü\u0000\u202e", "\ud800", "../../etc/passwd",
    "/etc/passwd", "/dev/zero", "http://127.0.0.1:1/x.png", "data:image/png;base64,AAAA", "A" * 43, "<b>", "{}",
    [], {}, [None], [1, 2, 3], ["e4e"], [[]], DEEP, {"a": {"b": [{"c": None}]}}, {"smile": 2.0}, {"smile": "x"},
    {"smile": None}, {"smile": float("nan")}, {"smile": 1e308}, {"smile": 10**400}, {"smile": True}, {"smile": [1]},
    {"smile": {"smile": 1}}, {"nobody": 1.0}, {"": 1.0}, {"self": 1.0, "out": 2.0}, {"x" * 5000: 1.0}, {"path": None},
    {"path": 5}, {"path": ""}, {"path": ["/etc/passwd"]}, {"path": "/etc/passwd"}, {"path": "/dev/zero", "meta": META},
    {"path": "/no/such/file", "meta": META}, {"path": "x\u0000y"}, {"path": "\ud800"}, {"path": "a" * 5000},
    {"url": "data:image/png;base64,AAAA"}, {"url": "http://127.0.0.1:1/x.png", "path": None}, {"meta": META},
    {"__type__": "update", "value": "x"}, [{"image": {"path": "/etc/passwd"}, "caption": None}],
]  # fmt: skip


@pytest.fixture(scope="module")
def app() -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        with serve(tiny_model()) as served:
            yield served


@pytest.mark.parametrize(
    "count", [90, pytest.param(900, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["short", "full"]
)
def test_odd_calls(count: int, app: Served) -> None:
    seed = int(os.environ.get("STYLEGAN_INVERSION_SEED", "0"))
    draw = random.Random(seed)
    faults: list[str] = []
    answers: Counter[str] = Counter()
    longest = 0.0
    with httpx.Client(base_url=app.url, timeout=SECONDS, headers={"connection": "close"}) as client:
        about = client.get("/gradio_api/info").json()["named_endpoints"]
        endpoints = {
            name: [each["parameter_name"] for each in one["parameters"]] for name, one in about.items() if name
        }
        assert len(endpoints) == 13
        photo = upload(client)
        fine: dict[str, Any] = {"photo": photo, "method": "e4e", "strengths": {"smile": 1.0}, "align": True}
        fine["picture"] = photo
        fine |= dict.fromkeys(("inversion", "other"), inversion(client))
        for i in range(count):
            name = draw.choice(sorted(endpoints))
            names = endpoints[name]
            data = [argument(draw, each, fine) for each in names]
            data = data[: draw.randint(0, len(data))] if draw.random() < 0.2 else data
            data += [draw.choice(ODD)] if draw.random() < 0.05 else []
            named = {**dict(zip(names, data)), **({"nobody": 1} if draw.random() < 0.05 else {})}
            how = draw.choices(["call", "call/v2", "join", "run"], [6, 2, 1, 1])[0]
            began = time.perf_counter()
            try:
                status, text = call(client, how, name, data, named)
            except httpx.TimeoutException:
                status, text = 0, "hangs"
            longest = max(longest, time.perf_counter() - began)
            kind = judge(status, text, json.dumps([data, named]), app)
            answers[kind] += 1
            if kind not in ("a result", "a sentence"):
                faults.append(f"{i} {how} {name} {str(data)[:300]}: {kind}: {status} {text[:300]}")
        again = call(client, "call", "/faces", [photo], {})[1]
        assert '"score"' in again, again  # it still works
    print(f"{count} calls: {dict(answers)}, the longest {longest:.1f} s")
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults)
    assert answers["a result"] > count / 20 and answers["a sentence"] > count / 3  # both were tried


def upload(client: Any) -> dict[str, Any]:
    photo = Path(os.environ["GRADIO_TEMP_DIR"]) / "photo.png"
    make_photo().save(photo)
    try:
        sent = client.post("/gradio_api/upload", files={"files": ("photo.png", photo.read_bytes(), "image/png")})
    finally:
        photo.unlink()
    return {"path": sent.json()[0], "meta": META}


def inversion(client: Any) -> str:
    """A file that /edit and others take."""
    session = {"session_hash": "attack"}
    for name, data in (("random_face", [0, 0.7, ""]), ("download", ["inversion", {}, None, ""])):
        event = client.post(f"/gradio_api/call/{name}", json={"data": data, **session}).json()["event_id"]
        text = client.get(f"/gradio_api/call/{name}/{event}").text
    found = client.get(json.loads(text.rpartition("data: ")[2])[0]["url"]).content
    return f"data:application/zip;base64,{base64.b64encode(found).decode()}"


def argument(draw: random.Random, name: str, fine: dict[str, Any]) -> Any:
    if draw.random() < 0.6:
        return fine.get(name, draw.choice([None, 0, 1, ""]))
    return draw.choice([*ODD, *fine.values()])


def call(client: Any, how: str, name: str, data: list[Any], named: dict[str, Any]) -> tuple[int, str]:
    """Status and text of the answer; of a stream the last event."""
    name = name.strip("/")
    if how == "run":
        answer = client.post(f"/gradio_api/run/{name}", **body({"data": data}))
        return answer.status_code, answer.text
    if how == "join":
        numbers = {each["api_name"]: each["id"] for each in client.get("/config").json()["dependencies"]}
        session = secrets.token_hex(6)
        asked = {"data": data, "fn_index": numbers[name], "session_hash": session}
        answer = client.post("/gradio_api/queue/join", **body(asked))
        if answer.status_code != 200:
            return answer.status_code, answer.text
        return last(client, "/gradio_api/queue/data", session_hash=session)
    answer = client.post(f"/gradio_api/{how}/{name}", **body(named if how == "call/v2" else {"data": data}))
    if answer.status_code != 200:
        return answer.status_code, answer.text
    return last(client, f"/gradio_api/call/{name}/{answer.json()['event_id']}")


def body(content: Any) -> dict[str, Any]:
    return {"content": json.dumps(content).encode(), "headers": {"content-type": "application/json"}}


def last(client: Any, address: str, **params: str) -> tuple[int, str]:
    deadline, text = time.monotonic() + SECONDS, ""
    with client.stream("GET", address, params=params) as stream:
        for line in stream.iter_lines():
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("only heartbeats")
            if line.startswith("event:"):
                text = line
            elif line.startswith("data:") and '"close_stream"' not in line:
                text = f"{text}\n{line}" if text.startswith("event:") and "\n" not in text else line
        return stream.status_code, text


def judge(status: int, text: str, sent: str, app: Served) -> str:
    if status == 0:
        return "hangs"
    if status >= 500:
        return "5xx"
    if status == 200 and is_result(text):
        return "a result"
    package, folder = str(Path(stylegan_inversion.__file__).parent), str(app.folder)
    for secret in ("Traceback", 'File "', "site-packages", package, str(Path.cwd()), folder):
        if secret in text and secret not in sent:
            return "shows the server"
    has_words = '"detail":' in text or re.search(r'"error":\s*"', text)
    return "a sentence" if has_words and FAILED not in text else "untyped"


def is_result(text: str) -> bool:
    if text.startswith("event:"):
        return text.startswith("event: complete")
    content = json.loads(text.removeprefix("data:"))
    return bool(content.get("success", "data" in content))


def test_the_judge(app: Served) -> None:
    folder = str(app.folder)
    for status, text, kind in (
        (500, "", "5xx"),
        (0, "", "hangs"),
        (200, "event: complete\ndata: [1]", "a result"),
        (200, 'data: {"msg": "process_completed", "success": true, "output": {}}', "a result"),
        (200, 'event: error\ndata: {"error": null}', "untyped"),
        (200, "event: error\ndata: null", "untyped"),
        (200, f'event: error\ndata: {{"error": "{FAILED}"}}', "untyped"),
        (200, f'event: error\ndata: {{"error": "{folder}/x is damaged"}}', "shows the server"),
        (404, '{"detail": "Not Found"}', "a sentence"),
        (403, json.dumps({"detail": NOT_UPLOADED}), "a sentence"),
    ):
        assert judge(status, text, "[]", app) == kind, text
