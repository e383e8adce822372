"""As much of the Hugging Face Hub as its client talks to, on loopback, with faults on request."""

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants, hf_api

COMMIT = "1" * 40


class FakeHub(ThreadingHTTPServer):
    """Repositories as {path: content}; safetensors and .pt files are large files, with their sha256.

    Attributes:
        repositories: By "organisation/repository".
        served: Contents that are sent instead of the right ones, by path: the damage on the way. Each list is used up.
        faults: By how the path of a request ends; "" is every request. "hang", "cut", "html", "odd" (JSON of something
            else), "loop" (redirects), a status, or a code of the Hub's such as "GatedRepo".
        tokens: Of private repositories, what a reader must send.
        branches: Those besides main.
        log: What was asked for.
        pause: Seconds between two pieces, of 100 kB, of what is sent.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.served: dict[str, list[bytes]] = {}
        self.faults: dict[str, str | int] = {}
        self.tokens: dict[str, str] = {}
        self.branches: set[str] = set()
        self.log: list[tuple[str, str]] = []
        self.pause = 0.0
        self.uploads: dict[str, bytes] = {}
        self.pulls: dict[str, dict[str, bytes]] = {}  # files of pull requests, by repository

    def add(self, repo_id: str, folder: Path) -> None:
        """Publish a folder."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.repositories[repo_id] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def gets(self, path: str) -> int:
        """How often a file's content was asked for."""
        return sum(method == "GET" and "/resolve/" in asked and asked.endswith(path) for method, asked in self.log)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are ended hang up."""


def describe(name: str, content: bytes) -> dict[str, Any]:
    """A file as the Hub lists it."""
    git_sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "rfilename": name, "size": len(content), "oid": git_sha1}
    if name.endswith((".safetensors", ".pt", ".pth")):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(content), "pointerSize": 130}
    return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None, code: str = "") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fixed = {"Content-Length": str(len(content)), "Content-Type": "application/json"}
        self.send_response(status)
        for key, value in {**fixed, "X-Error-Code": code, "X-Error-Message": code, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            for k in range(0, len(content), 100_000):
                self.wfile.write(content[k : k + 100_000])
                time.sleep(self.server.pause)

    def read_json(self) -> Any:
        return json.loads(self.read_body())

    def read_body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def misbehave(self, fault: str | int) -> None:
        if fault == "hang":
            time.sleep(10)
        elif fault == "html":
            self.answer(200, b"<html>Log in to the network of this hotel</html>", {"Content-Type": "text/html"})
        elif fault == "odd":
            self.answer(200, {"hello": "world"})
        elif fault == "loop":
            self.answer(302, headers={"Location": f"{self.server.url}{self.path}"})
        elif fault == "cut":
            self.answer(200, b"{", {"Content-Length": "500"})
            self.close_connection = True
        elif isinstance(fault, int):
            self.answer(fault, {"error": "as asked for"})
        else:
            self.answer(403, code=fault)

    def handle_request(self) -> None:
        hub, path = self.server, unquote(urlparse(self.path).path)
        hub.log.append((self.command, path))
        for end, fault in hub.faults.items():
            if path.endswith(end):
                self.misbehave(fault)
                return
        if path == "/api/repos/create":
            self.create(self.read_json())
        elif path == "/api/validate-yaml":
            self.read_body()
            self.answer(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/lfs/(\w+)", path):
            hub.uploads[found[1]] = self.read_body()
            self.answer(200)
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = self.read_json()["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{hub.url}/lfs/{one['oid']}", "header": {}}}
            kind = {"Content-Type": "application/vnd.git-lfs+json"}
            self.answer(200, {"transfer": "basic", "objects": objects}, kind)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (files := self.find(found[1])) is not None:
                self.resolve(files, found[3])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/([^/]*).*)?", path):
            if (files := self.find(found[1])) is not None:
                self.model(found[1], files, found[2] or "revision", found[3] or "main")
        else:
            self.answer(404, {"error": path})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def find(self, repo_id: str) -> dict[str, bytes] | None:
        """The files of a repository that exists and may be read; or else it is answered that there is none."""
        files, token = self.server.repositories.get(repo_id), self.server.tokens.get(repo_id)
        if files is not None and (token is None or self.headers.get("Authorization") == f"Bearer {token}"):
            return files
        self.answer(404 if files is None else 401, code="RepoNotFound")
        return None

    def create(self, wanted: dict[str, Any]) -> None:
        if self.headers.get("Authorization") != "Bearer write":
            self.answer(401, {"error": "Invalid credentials"})
            return
        repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        there = repo_id in self.server.repositories
        self.server.repositories.setdefault(repo_id, {})
        self.answer(409 if there else 200, {"url": f"{self.server.url}/{repo_id}", "id": "1", "name": repo_id})

    def model(self, repo_id: str, files: dict[str, bytes], kind: str, rest: str) -> None:
        hub, entries = self.server, [describe(name, content) for name, content in files.items()]
        if kind == "preupload":
            asked = [describe(file["path"], b"") for file in self.read_json()["files"]]
            modes = [{"path": e["path"], "uploadMode": "lfs" if "lfs" in e else "regular"} for e in asked]
            self.answer(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif kind == "branch":
            self.read_body()
            hub.branches.add(rest)
            self.answer(200, {})
        elif kind == "commit":
            pull = "create_pr=1" in self.path
            files = hub.pulls.setdefault(repo_id, {}) if pull else files
            for line in self.read_body().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.uploads[value["oid"]]
            address = f"{hub.url}/{repo_id}/commit/{COMMIT}"
            asked = {"pullRequestUrl": f"{hub.url}/{repo_id}/discussions/1"} if pull else {}
            self.answer(200, {"commitUrl": address, "commitOid": COMMIT, "success": True, **asked})
        elif rest not in ("main", COMMIT, *hub.branches):
            self.answer(404, code="RevisionNotFound")
        elif kind == "tree":
            self.answer(200, entries)
        else:
            self.answer(200, {"_id": "1", "id": repo_id, "sha": COMMIT, "siblings": entries})

    def resolve(self, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            self.answer(404, headers={"X-Repo-Commit": COMMIT}, code="EntryNotFound")
            return
        content, entry = files[name], describe(name, files[name])
        if self.command == "GET" and self.server.served.get(name):
            content = self.server.served[name].pop(0)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})


@contextmanager
def serve() -> Iterator[FakeHub]:
    """A fake Hub that runs."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


@contextmanager
def hub_client(hub: FakeHub, cache: Path) -> Iterator[pytest.MonkeyPatch]:
    """Point the Hub's client, in this process and in those it starts, to a fake Hub and an empty cache."""
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    settings = {"ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(cache)}
    settings |= {"HF_HUB_OFFLINE": False, "HF_HUB_ETAG_TIMEOUT": 1, "HF_HUB_DOWNLOAD_TIMEOUT": 1}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
            patch.delenv(name)
        for name in ("HF_HUB_CACHE", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
            patch.setenv(name, str(settings[name]))
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache / "home"), "NO_PROXY": "*"}.items():
            patch.setenv(name, value)
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "1")
            settings[name] = True
        for name, value in settings.items():
            patch.setattr(constants, name, value)
        patch.setattr(hf_api.api, "endpoint", hub.url)
        yield patch
