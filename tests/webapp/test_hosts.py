"""Another site's name for this machine opens nothing (DNS rebinding)."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
from stylegan_inversion.webapp.guard import LOOPBACK  # noqa: E402
from tests.webapp.tiny_app import Served, serve, tiny_model  # noqa: E402


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.delenv("GRADIO_TEMP_DIR", raising=False)
        hosts = [*LOOPBACK, "Demo.example.org"]
        with serve(tiny_model(), tmp_path_factory.mktemp("server"), hosts=hosts) as served:
            yield served


def ask(app: Served, host: str) -> Any:
    origin = {"host": host, "origin": f"http://{host}"}
    page = httpx.get(app.url, headers=origin)
    called = httpx.post(f"{app.url}/gradio_api/call/models", json={"data": []}, headers=origin)
    assert page.status_code == called.status_code
    return called


def test_the_apps_own_names(app: Served) -> None:
    port = app.url.rpartition(":")[2]
    for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]", "demo.example.org", "localhost."):
        for host in (name, f"{name}:{port}"):
            assert ask(app, host).status_code == 200, host


def test_foreign_names(app: Served) -> None:
    for host in ("evil.example:7860", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::2]:1"):
        answer = ask(app, host)
        assert answer.status_code == 403
        words = answer.json()["detail"]
        assert words.startswith("This app answers only as 127.0.0.1 or ::1 or demo.example.org or localhost, not as '")
        assert words.endswith("`stylegan-inversion app --allow-host NAME`, or launch(allowed_hosts=[NAME]).")
    assert "not as 'evil.example'" in ask(app, "evil.example:7860").json()["detail"]


def test_two_names_or_none(app: Served) -> None:
    port = int(app.url.rpartition(":")[2])
    here, evil = "Host: localhost\r\n", "Host: evil.example\r\n"
    for heads in (here + evil, evil + here, "", "Host: \r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(f"GET /config HTTP/1.0\r\n{heads}\r\n".encode())
            assert connection.recv(100).split()[1] in (b"400", b"403"), heads


def test_an_app_that_others_reach_answers_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with serve(tiny_model(), tmp_path) as open_app:
        assert ask(open_app, "demo.example.net").status_code == 200
