import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from stylegan_inversion.webapp.answers import is_upload, route_of
from stylegan_inversion.webapp.guard import Inspect, LimitBody, VisitorCookie
from stylegan_inversion.webapp.inspection import FOREIGN_ADDRESS, FOREIGN_SESSION

gr = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
Middleware = pytest.importorskip("starlette.middleware").Middleware

HASH = "a1b2c3d4e5f"
COOKIES = [letter * 43 for letter in "ab"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A real Gradio app behind the guard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("cache")))
        with gr.Blocks(analytics_enabled=False) as demo:
            secret, shown = gr.State("nothing"), gr.Textbox()
            gr.Button().click(lambda text: (text, text), gr.Textbox(), [secret, shown], api_name="put")
            gr.Button().click(lambda text: text, secret, shown, api_name="see")
        guards = [Middleware(each) for each in (LimitBody, Inspect, VisitorCookie)]
        options = {"prevent_thread_lock": True, "quiet": True, "ssr_mode": False, "num_workers": 0}
        _, url, _ = demo.launch(server_name="127.0.0.1", app_kwargs={"middleware": guards}, **options)
        yield SimpleNamespace(url=url.rstrip("/"))
        demo.close(verbose=False)


def visitor(server: SimpleNamespace, *, cookie: bool = True) -> Any:
    client = httpx.Client(base_url=server.url, timeout=20)
    client.get("/")
    if not cookie:
        client = httpx.Client(base_url=server.url, timeout=20)
        client.event_hooks = {"response": [lambda answer: client.cookies.clear()]}
    return client


def run(client: Any, name: str, *data: Any, session_hash: str) -> Any:
    return client.post(f"/gradio_api/run/{name}", json={"data": data, "session_hash": session_hash})


@pytest.mark.parametrize("has_cookie", [True, False])
def test_a_stolen_session_opens_nothing(has_cookie: bool, server: SimpleNamespace) -> None:
    name = f"{HASH}{has_cookie}"
    victim = visitor(server, cookie=has_cookie)
    put = {"data": ["hers"], "fn_index": 0, "session_hash": name}
    assert victim.post("/gradio_api/queue/join", json=put).status_code == 200
    for thief in [visitor(server), visitor(server, cookie=False)][: 1 + has_cookie]:
        event = {"data": [None], "fn_index": 1, "session_hash": name}
        asked = [
            thief.get("/gradio_api/queue/data", params={"session_hash": name}),
            thief.get(f"/gradio_api/heartbeat/{name}"),
            thief.get(f"/gradio_api/call/see/{name}"),  # Gradio takes it for the session of an event that has ended
            thief.get(f"/gradio_api/call/v2/see/{name}"),
            thief.get(f"/gradio_api/stream/{name}/1/2/playlist.m3u8"),
            run(thief, "see", None, session_hash=name),
            thief.post("/gradio_api/api/see", json=event),
            thief.post("/gradio_api/queue/join", json=event),
            thief.post("/gradio_api/queue/join/", json=event, follow_redirects=True),
            thief.post("/gradio_api/call/see", json=event),
            thief.post("/gradio_api/cancel", json={**event, "event_id": "x"}),
            thief.post("/gradio_api/reset", json={**event, "event_id": "x"}),
            thief.post("/gradio_api/component_server", json={**event, "component_id": 1, "fn_name": "x"}),
            thief.post("/gradio_api/run/see", content=json.dumps(event).encode("utf-16")),
            thief.post("/gradio_api/run/see", content=b'{"session_hash": "mine", ' + json.dumps(event).encode()[1:]),
        ]
        for answer in asked:
            assert answer.status_code == 403 and answer.json()["detail"] == FOREIGN_SESSION, answer.request.url
    answer = victim.get("/gradio_api/queue/data", params={"session_hash": name}).text
    assert "process_completed" in answer and "hers" in answer
    assert run(victim, "see", None, session_hash=name).json()["data"] == ["hers"]


def test_visitors_do_not_disturb_each_other(server: SimpleNamespace) -> None:
    anna, bert = visitor(server), visitor(server)
    assert run(anna, "put", "hers", session_hash="anna").json()["data"] == [None, "hers"]
    assert run(bert, "put", "his", session_hash="bert").json()["data"] == [None, "his"]
    for client, name, text in ((anna, "anna", "hers"), (bert, "bert", "his")):
        assert run(client, "see", None, session_hash=name).json()["data"] == [text]
    event = anna.post("/gradio_api/call/put", json={"data": ["plain"]}).json()["event_id"]  # no session at all
    assert "plain" in anna.get(f"/gradio_api/call/put/{event}").text


def test_deep_links_are_shut(server: SimpleNamespace) -> None:
    client = visitor(server)
    run(client, "put", "hers", session_hash="linked")
    for path in ("/gradio_api/deep_link?session_hash=linked", "/gradio_api/deep_link/?session_hash=linked"):
        assert client.get(path).status_code == 404
    for path in ("/?deep_link=x", "/config?deep_link=x", "/?deep_link=x&deep_link="):
        assert client.get(path).status_code == 404
    assert client.get("/?deep_link=").status_code == 200


def test_other_forms_are_refused(server: SimpleNamespace) -> None:
    client = visitor(server)
    for path in ("component_server", "process_recording", "run/see"):
        answer = client.post(f"/gradio_api/{path}", data={"session_hash": "x"}, files={"a": b"x"})
        assert answer.status_code == 404 and answer.json()["detail"] == "There is nothing here."
    assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 200


def test_nothing_is_fetched_from_elsewhere(server: SimpleNamespace) -> None:
    client = visitor(server)
    for address in ("http://example.org/x.png", "HTTPS://example.org", " http://[::1]/"):
        for route in ("file=", "file/", "proxy="):
            answer = client.get(f"/gradio_api/{route}{address.strip()}")
            assert answer.status_code == 403 and answer.json()["detail"] == FOREIGN_ADDRESS


def test_what_is_no_json_is_left_to_gradio(server: SimpleNamespace) -> None:
    client = visitor(server)
    for content in (b"", b"{", b"[" * 100_000, b"\xff\xff\xff", b"3"):
        answer = client.post("/gradio_api/queue/join", content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422)


# Without a server


def scope(path: str, *, method: str = "GET", cookie: str = "", root: str = "", kind: str = "") -> dict[str, Any]:
    headers = [(b"cookie", f"visitor={cookie}".encode()), (b"content-type", kind.encode())]
    query = path.partition("?")[2].encode()
    return {
        "type": "http",
        "method": method,
        "path": path.partition("?")[0],
        "root_path": root,
        "headers": headers,
        "query_string": query,
    }


def statuses(inspect: Inspect, *scopes: dict[str, Any], body: bytes = b"") -> list[int]:
    seen: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        seen.append(message.get("status", 0))

    for each in scopes:
        asyncio.run(inspect(each, receive, send))
    return [status for status in seen if status]


async def fine(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})


def test_the_oldest_session_is_forgotten() -> None:
    inspect = Inspect(fine, max_sessions=2)
    mine, theirs = ([scope(f"/gradio_api/heartbeat/{i}", cookie=cookie) for i in range(3)] for cookie in COOKIES)
    assert statuses(inspect, mine[0], mine[1], mine[0], theirs[1], mine[2]) == [200, 200, 200, 403, 200]
    assert len(inspect._visitors) == 2 and HASH not in str(inspect._visitors)
    assert statuses(inspect, theirs[0], theirs[2], theirs[1]) == [403, 403, 200]


def test_many_sessions_in_one_request() -> None:
    inspect = Inspect(fine)
    many = "&".join(f"session_hash={i}" for i in range(9))
    assert statuses(inspect, scope(f"/gradio_api/queue/data?{many}")) == [403]
    assert not inspect._visitors


def test_a_cookie_that_was_not_made_here_is_none() -> None:
    inspect = Inspect(fine)
    scopes = [scope("/gradio_api/heartbeat/x", cookie=cookie) for cookie in ("guess", "", COOKIES[0])]
    assert statuses(inspect, *scopes) == [200, 200, 403]


def test_behind_a_proxy() -> None:
    inspect = Inspect(fine)
    mine = scope("/app/gradio_api/heartbeat/x", root="/app", cookie=COOKIES[0])
    theirs = scope("/gradio_api/heartbeat/x", root="/app", cookie=COOKIES[1])
    assert statuses(inspect, mine, theirs) == [200, 403]


def test_whoever_leaves_is_not_answered() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("not called")

    asyncio.run(Inspect(fine)(scope("/gradio_api/queue/join", method="POST"), receive, send))


def test_the_body_comes_as_it_was_sent() -> None:
    parts = [{"type": "http.request", "body": b'{"a"', "more_body": True}, {"type": "http.request", "body": b": 1}"}]
    messages = [*parts, {"type": "http.disconnect"}]
    got: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.extend([await receive(), await receive()])

    async def send(message: Any) -> None:
        raise AssertionError("not called")

    asyncio.run(Inspect(app)(scope("/gradio_api/queue/join", method="POST"), receive, send))
    assert got == [{"type": "http.request", "body": b'{"a": 1}', "more_body": False}, {"type": "http.disconnect"}]


def test_other_traffic_passes() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Inspect(app)({"type": "lifespan"}, fine, fine))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_only_forms_sent_to_the_upload_route_are_uploads() -> None:
    form = "multipart/form-data; boundary=a"
    for path in ("/upload", "/gradio_api/upload", "/gradio_api/upload/"):
        assert is_upload(scope(path, kind=form)) and is_upload(scope(f"/app{path}", root="/app", kind=form))
        assert not is_upload(scope(path, kind="application/json")) and not is_upload(scope(path))
    for path in ("/gradio_api/run/upload", "/gradio_api/call/upload", "/x/upload", "/gradio_api/uploads"):
        assert not is_upload(scope(path, kind=form))
    assert route_of(scope("/apple/upload", root="/app")) == "/apple/upload"
