"""Finding a model: built in, in a folder, on the Hub."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from stylegan_inversion import hub
from stylegan_inversion.errors import ModelNotFoundError
from tests.hub_parts import Tiny, TinyConfig, assert_same, state


def model_folder(folder: Path) -> Path:
    hub.write_config({"width": 4}, folder)
    return folder


def record_downloads(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Let the Hub answer with a folder; the arguments of each call go to the list."""
    calls = []

    def download(*args: Any, **kwargs: Any) -> str:
        calls.append((args, kwargs))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_builtin_models_are_those_with_a_config() -> None:
    names = hub.builtin_models()
    assert "faces64" in names and "samples" not in names
    assert all((hub.builtin_path(name) / "config.json").is_file() for name in names)


def test_find_a_builtin_model() -> None:
    assert hub.find_model("faces64") == hub.builtin_path("faces64")
    assert hub.find_model("faces64", subfolder="generator") == hub.builtin_path("faces64/generator")


def test_a_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "faces64")
    model_folder(tmp_path / "org" / "repo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # not called
    assert hub.find_model("faces64") == Path("faces64")
    assert hub.find_model("org/repo") == Path("org/repo")
    assert hub.find_model(tmp_path / "faces64") == tmp_path / "faces64"


@pytest.mark.parametrize("name", ["faces65", "./org/repo", "/org/repo", "~/repo", "a/b/c", "repo/", "", "generator"])
def test_an_unknown_name_names_the_known_ones(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"No model '{name}': it is not a folder, .* models are .*faces64"):
        hub.find_model(name)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no config.json, so it is not a model saved by this package\."):
        hub.find_model(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"faces64.absent holds no config.json"):
        hub.find_model("faces64", subfolder="absent")


@pytest.mark.parametrize("subfolder", ["..", "../..", "a/../../b", "/etc", "a\\..\\..", "C:\\", "C:"])
def test_a_subfolder_stays_inside(subfolder: str, tmp_path: Path) -> None:
    model_folder(tmp_path)
    inside = model_folder(tmp_path / "a" / "b")
    for name in (inside, "faces64", "org/repo"):
        with pytest.raises(
            ValueError, match=r"`subfolder` must be a relative path inside the model, without '\.\.', got"
        ):
            hub.find_model(name, subfolder=subfolder)


@pytest.mark.parametrize("subfolder", ["a/b", "a/b/", "./a/b", "a\\b"])
def test_spellings_of_a_subfolder(subfolder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model_folder(tmp_path / "a" / "b")
    assert hub.find_model(tmp_path, subfolder=subfolder) == expected
    calls = record_downloads(monkeypatch, tmp_path)
    assert hub.find_model("org/repo", subfolder=subfolder) == expected
    assert calls[0][1]["allow_patterns"] == ["a/b/*.json", "a/b/*model.safetensors"]


# --- the Hub


def test_what_the_hub_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_downloads(monkeypatch, tmp_path)
    model_folder(tmp_path)
    found = hub.find_model(
        "org/repo", revision="v1", token="t", cache_dir=tmp_path / "c", local_files_only=True, force_download=True
    )
    assert found == tmp_path
    assert calls == [
        (
            (),
            {
                "repo_id": "org/repo",
                "revision": "v1",
                "token": "t",
                "cache_dir": str(tmp_path / "c"),
                "local_files_only": True,
                "force_download": True,
                "allow_patterns": ["*.json", "*model.safetensors"],
                "library_name": "stylegan_inversion",
            },
        )
    ]


def http_error(cls: type[Any]) -> Exception:
    """An error of the Hub's client, whichever HTTP library it is built on."""
    http = sys.modules[hub_errors.HTTPError.__module__.partition(".")[0]]
    request = http.Request("GET", "https://huggingface.co/api/models/org/repo")
    return cls("the answer", response=http.Response(403, request=request))


def transport_error(name: str) -> Exception:
    return getattr(sys.modules[hub_errors.HTTPError.__module__.partition(".")[0]], name)("the line was cut")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            hub_errors.LocalEntryNotFoundError("x"),
            r"'org/repo' is not in the cache and the Hub cannot be .*: .*faces64",
        ),
        (http_error(hub_errors.GatedRepoError), r"'org/repo' is gated: accept its terms on the Hub and pass `token`\."),
        (http_error(hub_errors.RevisionNotFoundError), r"'org/repo' has no revision 'v9'\."),
        (http_error(hub_errors.RepositoryNotFoundError), r"The Hub has no repository 'org/repo', or it is private"),
        (http_error(hub_errors.HfHubHTTPError), r"'org/repo' could not be fetched from the Hub: the answer"),
        (transport_error("ConnectError"), r"'org/repo' could not be fetched from the Hub: the line was cut"),
        (transport_error("ReadTimeout"), r"'org/repo' could not be fetched from the Hub: the line was cut"),
        (transport_error("RemoteProtocolError"), r"'org/repo' could not be fetched from the Hub: the line was cut"),
        (transport_error("ProxyError"), r"'org/repo' could not be fetched from the Hub: the line was cut"),
        (hub_errors.HFValidationError("bad name"), r"'org/repo' could not be fetched from the Hub: bad name"),
        (OSError("disk full"), r"'org/repo' could not be fetched from the Hub: disk full"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_the_hub(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelNotFoundError, match=message) as caught:
        hub.find_model("org/repo", revision="v9")
    assert caught.value.__cause__ is error


class StubHub(BaseHTTPRequestHandler):
    """As much of the Hub as `snapshot_download` talks to: one public model, org/tiny, at `main`."""

    protocol_version = "HTTP/1.1"
    commit = "1" * 40
    files: dict[str, bytes] = {}  # noqa: RUF012  set by the fixture

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        prefix = f"/org/tiny/resolve/{self.commit}/"
        if "hangs-up" in path:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif path.startswith("/api/models/org/gated"):
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path in ("/api/models/org/tiny", "/api/models/org/tiny/revision/main"):
            self.answer(200, json.dumps({"_id": "1", "id": "org/tiny", "sha": self.commit, "siblings": []}).encode())
        elif path.startswith("/api/models/org/tiny/revision/"):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path == f"/api/models/org/tiny/tree/{self.commit}":
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.files.items()
            ]
            self.answer(200, json.dumps(entries).encode())
        elif path.startswith(prefix) and path[len(prefix) :] in self.files:
            body = self.files[path[len(prefix) :]]
            self.answer(200, body, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": self.commit})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def stub_hub(tmp_path: Path) -> Iterator[str]:
    hub.save_module(Tiny(TinyConfig()), tmp_path / "source" / "encoder")
    model_folder(tmp_path / "source")
    (tmp_path / "source" / "code.py").write_text("raise SystemExit\n")
    names = ("config.json", "code.py", "encoder/config.json", "encoder/model.safetensors")
    handler = type("Handler", (StubHub,), {"files": {n: (tmp_path / "source" / n).read_bytes() for n in names}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


FIND_ALL = """
import json, sys
from stylegan_inversion import hub
from stylegan_inversion.errors import ModelNotFoundError
for request in json.loads(sys.argv[1]):
    try:
        print(json.dumps(str(hub.find_model(**request))))
    except ModelNotFoundError as e:
        print(json.dumps(f"{type(e).__name__}: {e}"))
"""


def find_all(requests: list[dict[str, Any]], cache: Path, **environment: str) -> list[str]:
    """Call `find_model` in a process of its own: the Hub's client reads its environment when it is imported."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    environment = {
        **plain,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    } | environment
    done = subprocess.run(
        [sys.executable, "-c", FIND_ALL, json.dumps(requests)],
        env=environment,
        cwd=Path(hub.__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_round_trip_through_a_hub(stub_hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    online = find_all(
        [
            {"name_or_path": "org/tiny", "local_files_only": True},
            {"name_or_path": "org/tiny", "subfolder": "encoder"},
            {"name_or_path": "org/tiny"},
            {"name_or_path": "org/tiny", "revision": "v9"},
            {"name_or_path": "org/absent"},
            {"name_or_path": "org/gated"},
            {"name_or_path": "org/hangs-up"},
        ],
        cache,
        HF_ENDPOINT=stub_hub,
    )
    assert online[0].startswith("ModelNotFoundError: 'org/tiny' is not in the cache")
    encoder, root = Path(online[1]), Path(online[2])
    assert root == encoder.parent and cache in root.parents
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert files == ["config.json", "encoder/config.json", "encoder/model.safetensors"]  # and no code
    assert_same(
        state(hub.load_module(Tiny, TinyConfig, encoder)),
        state(hub.load_module(Tiny, TinyConfig, tmp_path / "source" / "encoder")),
    )
    assert online[3] == "ModelNotFoundError: 'org/tiny' has no revision 'v9'."
    assert online[4].startswith("ModelNotFoundError: The Hub has no repository 'org/absent'")
    assert online[5].startswith("ModelNotFoundError: 'org/gated' is gated")
    assert online[6].startswith("ModelNotFoundError: 'org/hangs-up' ")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.find_model("org/tiny", subfolder="encoder", cache_dir=cache / "hub") == encoder
    with pytest.raises(ModelNotFoundError, match=r"'org/absent' is not in the cache and the Hub cannot be reached"):
        hub.find_model("org/absent", cache_dir=cache / "hub")


def test_a_mere_folder_does_not_hide_a_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces64").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.find_model("faces64") == hub.builtin_path("faces64")
    hub.write_config({}, tmp_path / "faces64")
    assert hub.find_model("faces64") == Path("faces64")


def test_which_files_of_a_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_downloads(monkeypatch, model_folder(tmp_path))
    hub.find_model("org/repo", variant="fp16")
    assert calls[0][1]["allow_patterns"] == ["*.json", "*model.fp16.safetensors", "*directions/model.safetensors"]
