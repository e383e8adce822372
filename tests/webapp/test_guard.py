import asyncio
import functools
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from stylegan_inversion.webapp.guard import Janitor, LimitBody, SecurityHeaders, VisitorCookie, owner_of
from stylegan_inversion.webapp.marking import save_animation, save_marked

gr = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
Middleware = pytest.importorskip("starlette.middleware").Middleware

MB = 1_000_000
LIMIT = 2 * MB
ahead = [0.0]


def who(request: gr.Request) -> str:
    return owner_of(request) or "nobody"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A real Gradio app behind the guard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.delenv("GRADIO_TEMP_DIR", raising=False)
        with Janitor(tmp_path_factory.mktemp("cache"), every=3600.0, clock=lambda: time.time() + ahead[0]) as janitor:
            folder = janitor.folder / "made" / "1"
            picture = save_marked(Image.new("RGB", (40, 30), "red"), folder, name="face", kind="edited")
            frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
            animation = save_animation(frames, folder, name="way", kind="edited")
            with gr.Blocks(analytics_enabled=False) as demo:
                gr.Button().click(who, None, gr.Textbox(), api_name="who")
                gr.Button().click(lambda: str(picture), None, gr.Image(format="png"), api_name="picture")
                gr.Button().click(lambda: str(animation), None, gr.Image(format="png"), api_name="animation")
            guards = [Middleware(SecurityHeaders), Middleware(VisitorCookie), Middleware(LimitBody, max_bytes=LIMIT)]
            options = {"prevent_thread_lock": True, "quiet": True, "ssr_mode": False, "num_workers": 0}
            app, url, _ = demo.launch(server_name="127.0.0.1", app_kwargs={"middleware": guards}, **options)
            assert Path(app.uploaded_file_dir) == janitor.folder
            yield SimpleNamespace(
                url=url.rstrip("/"), janitor=janitor, port=demo.server_port, paths=(picture, animation)
            )
            demo.close(verbose=False)


@pytest.fixture
def client(server: SimpleNamespace) -> Iterator[Any]:
    ahead[0] = 0.0
    with httpx.Client(base_url=server.url, timeout=20) as each:
        yield each
    ahead[0] = 0.0


def called(client: Any, name: str) -> Any:
    event = client.post(f"/gradio_api/call/{name}", json={"data": []}).json()["event_id"]
    answer = client.get(f"/gradio_api/call/{name}/{event}").text
    return json.loads(answer.split("event: complete\ndata: ")[1])[0]


# The cookie


def test_each_visitor_has_a_secret_of_their_own(client: Any, server: SimpleNamespace) -> None:
    page = client.get("/")
    (cookie,) = page.headers.get_list("set-cookie")
    assert re.fullmatch(r"visitor=[\w-]{43}; Path=/; HttpOnly; SameSite=Lax", cookie)
    assert page.headers["cache-control"] == "no-store"
    value = client.cookies["visitor"]
    for path in ("/", "/config", "/gradio_api/info"):
        assert "set-cookie" not in client.get(path).headers
    assert client.cookies["visitor"] == value
    assert called(client, "who") == called(client, "who") == hashlib.sha256(value.encode()).hexdigest()
    with httpx.Client(base_url=server.url, timeout=20) as other:
        other.get("/")
        assert other.cookies["visitor"] != value
        assert called(other, "who") != called(client, "who")


def test_a_program_needs_no_cookie(server: SimpleNamespace) -> None:
    event = httpx.post(f"{server.url}/gradio_api/call/who", json={"data": []}).json()["event_id"]
    assert '"nobody"' in httpx.get(f"{server.url}/gradio_api/call/who/{event}").text


def test_a_cookie_that_was_not_made_here_is_replaced(server: SimpleNamespace) -> None:
    good = "A" * 43
    for value in (
        "",
        "short",
        "A" * 44,
        "A" * 7000,
        "A" * 42 + "%",
        "A" * 42 + "é",
        '"' + good + '"x',
    ):
        headers = {"cookie": b"visitor=" + value.encode()}
        answer = httpx.get(f"{server.url}/config", headers=headers)
        assert re.match(r"visitor=[\w-]{43};", answer.headers["set-cookie"]), value
        event = httpx.post(f"{server.url}/gradio_api/call/who", json={"data": []}, headers=headers).json()["event_id"]
        assert '"nobody"' in httpx.get(f"{server.url}/gradio_api/call/who/{event}", headers=headers).text, value
    assert "set-cookie" not in httpx.get(f"{server.url}/config", headers={"cookie": f"visitor={good}"}).headers


def test_over_https_the_cookie_works_in_a_frame(server: SimpleNamespace) -> None:
    for proto in ("https", "https, http"):
        cookie = httpx.get(server.url, headers={"x-forwarded-proto": proto}).headers["set-cookie"]
        assert cookie.endswith("; Path=/; HttpOnly; SameSite=None; Secure; Partitioned")
    assert "Secure" not in httpx.get(server.url, headers={"x-forwarded-proto": "http"}).headers["set-cookie"]


def test_what_caches_keep_has_no_cookie(server: SimpleNamespace) -> None:
    page = httpx.get(server.url).text
    asset = re.search(r"assets/[\w./-]+\.js", page)
    assert asset is not None
    answer = httpx.get(f"{server.url}/{asset[0]}")
    assert answer.status_code == 200 and "set-cookie" not in answer.headers


def test_owner_of_other_requests() -> None:
    value = "b" * 43
    expected = hashlib.sha256(value.encode()).hexdigest()
    assert owner_of(None) is None and owner_of(gr.Request(cookies={})) is None
    assert owner_of(gr.Request(cookies={"visitor": value})) == expected  # as it comes to another process
    assert owner_of(gr.Request(cookies={"visitor": "guess"})) is None


def test_headers(client: Any) -> None:
    for path in ("/", "/config", "/nothing"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"


# Files


def test_marked_files_are_served_as_they_are(client: Any, server: SimpleNamespace) -> None:
    for name, path in zip(("picture", "animation"), server.paths, strict=True):
        answer = client.get(called(client, name)["url"])
        assert answer.status_code == 200 and answer.content == path.read_bytes()
        assert answer.headers["cache-control"] == "private, no-store"


def upload(client: Any, size: int, *, files: int = 1) -> Any:
    parts = [("files", (f"photo{i}.png", b"x" * size, "image/png")) for i in range(files)]
    return client.post("/gradio_api/upload", files=parts)


def test_small_uploads_pass(client: Any) -> None:
    answer = upload(client, LIMIT - 1000)
    assert answer.status_code == 200 and Path(answer.json()[0]).stat().st_size == LIMIT - 1000
    assert len(upload(client, 100, files=16).json()) == 16
    Path(answer.json()[0]).unlink()


def files_in(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def memory_used() -> int:
    """Bytes in use, where the system says so."""
    figures = Path("/proc/self/statm")
    return int(figures.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if figures.exists() else 0


def chunks(count: int, *, before: bytes = b"", size: int = 65536) -> Iterator[bytes]:
    yield before
    for _ in range(count):
        yield b"x" * size


def refused(send: Callable[[], Any]) -> str:
    """The sentence of a refusal; a client that is still sending may see the connection closed before it."""
    for _ in range(20):
        try:
            answer = send()
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            continue
        assert answer.status_code == 413, answer.text
        return str(answer.json()["detail"])
    raise AssertionError("never answered")


def post(client: Any, path: str, content: Callable[[], Iterator[bytes]], headers: dict[str, str]) -> Any:
    return client.post(path, content=content(), headers=headers)


JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=abc"}
FIELD = b'--abc\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
FILE = b'--abc\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'


def test_what_is_too_large_is_refused_by_its_length(client: Any, server: SimpleNamespace) -> None:
    sentence = "The request is larger than 2 MB. Send a smaller file."
    assert refused(lambda: upload(client, LIMIT)) == sentence
    small = "The request is larger than 1 MB. Send a smaller file."
    assert refused(lambda: client.post("/gradio_api/queue/join", content=b"[" * (MB + 1))) == small
    for path, how in (("/gradio_api/upload", JSON), ("/gradio_api/run/upload", FORM), ("/gradio_api/upload", {})):
        assert refused(lambda: client.post(path, content=b"x" * (MB + 1), headers=how)) == small  # noqa: B023
    for claimed in ("300000000", "9" * 30):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            kind = "Content-Type: multipart/form-data; boundary=abc"
            request = f"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\n{kind}\r\nContent-Length: {claimed}\r\n\r\n"
            connection.sendall(request.encode())  # nothing follows, and nothing is waited for
            assert connection.recv(100).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


def test_what_is_too_large_is_refused_while_it_comes(client: Any, server: SimpleNamespace) -> None:
    before = files_in(server.janitor.folder)
    memory = memory_used()
    for start in (FIELD, FILE):
        long = functools.partial(chunks, 5000, before=start)
        assert "2 MB" in refused(functools.partial(post, client, "/gradio_api/upload", long, FORM))
    for path in ("/gradio_api/queue/join", "/gradio_api/call/who"):
        assert "1 MB" in refused(functools.partial(post, client, path, functools.partial(chunks, 5000), JSON))
    grown = memory_used() - memory
    assert grown < 10 * MB, f"grown by {grown / MB:.1f} MB for 4 bodies of 328 MB"
    ahead[0] = 130.0
    server.janitor.tidy()
    assert files_in(server.janitor.folder) <= before


def test_too_many_files_are_refused(client: Any) -> None:
    assert refused(lambda: upload(client, 10, files=18)) == "An upload may have 16 files at most."
    cut = (FILE + b"x\r\n") * 40

    def slowly() -> Iterator[bytes]:
        for i in range(0, len(cut), 7):
            yield cut[i : i + 7]

    assert "16 files" in refused(lambda: client.post("/gradio_api/upload", content=slowly(), headers=FORM))


def test_uploads_that_break_off_are_removed(client: Any, server: SimpleNamespace) -> None:
    folder = server.janitor.folder
    ahead[0] = 130.0
    server.janitor.tidy()
    ahead[0], before = 0.0, files_in(folder)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            head = "POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n"
            kind = "Content-Type: multipart/form-data; boundary=abc\r\n\r\n"
            connection.sendall(f"{head}{kind}".encode() + FILE + b"x" * 100_000)
    deadline = time.monotonic() + 10
    while files_in(folder) < before + 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert files_in(folder) == before + 20  # Gradio leaves them all
    assert server.janitor.tidy() == 0
    ahead[0] = 130.0
    assert server.janitor.tidy() == 20 and files_in(folder) == before


# Without a server


def test_an_error_of_the_app_stays_its_error() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("its own")

    scope = {"type": "http", "path": "/upload", "headers": []}
    with pytest.raises(RuntimeError, match="its own"):
        asyncio.run(LimitBody(broken)(scope, _nothing, _nothing))


def test_other_traffic_passes() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    for guard in (LimitBody, VisitorCookie, SecurityHeaders):
        asyncio.run(guard(app)({"type": "lifespan"}, _nothing, _nothing))
    assert seen == ["lifespan"] * 3


async def _nothing(*message: Any) -> Any:
    raise AssertionError("not called")
