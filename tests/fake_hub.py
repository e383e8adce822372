"""As much of the Hugging Face Hub as its client talks to, on loopback, with faults on request."""

import base64
import hashlib
import json
import os
import re
import socket
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
        served: Contents that are sent instead of the right ones, by path: the damage on the way. A list is used up.
        faults: By path of a file: "cut", "drip" (slow and whole), "hang", or a status code.
        everywhere: A fault of every request: "hang", "html", "empty", "cut", "loop", "odd" (JSON of something else), or
            a status code.
        etags: Sent instead of the right ones, by path.
        tokens: Of private repositories, what a reader must send.
        log: What was asked for.
        agents: The programs that asked about repositories.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.served: dict[str, list[bytes]] = {}
        self.faults: dict[str, str | int] = {}
        self.everywhere: str | int | None = None
        self.etags: dict[str, str] = {}
        self.gated: set[str] = set()
        self.tokens: dict[str, str] = {}
        self.uploads: dict[str, bytes] = {}
        self.branches: set[str] = set()
        self.log: list[tuple[str, str]] = []
        self.agents: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo_id: str, folder: Path) -> None:
        """Publish a folder."""
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self.repositories[repo_id] = {name: path.read_bytes() for name, path in files.items()}

    def gets(self, path: str) -> int:
        """How often a file's content was asked for."""
        return sum(method == "GET" and "/resolve/" in asked and asked.endswith(path) for method, asked in self.log)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are ended hang up."""


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".pt", ".pth"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None, code: str = "") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        all_headers = {"Content-Length": str(len(content)), "Content-Type": "application/json", **(headers or {})}
        if code:
            all_headers["X-Error-Code"] = all_headers["X-Error-Message"] = code
        for key, value in all_headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def read_body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def handle_request(self) -> None:
        hub, path = self.server, unquote(urlparse(self.path).path)
        hub.log.append((self.command, path))
        if "/models/" in path:
            hub.agents.add(str(self.headers.get("User-Agent")))
        if hub.everywhere == "hang":
            time.sleep(30)
        elif hub.everywhere == "html":
            self.answer(200, b"<html>Log in to the network of this hotel</html>", {"Content-Type": "text/html"})
        elif hub.everywhere == "empty":
            self.answer(200)
        elif hub.everywhere == "odd":
            self.answer(200, {"hello": "world"})
        elif hub.everywhere == "loop":
            self.answer(302, headers={"Location": f"{hub.url}{self.path}"})
        elif hub.everywhere == "cut":
            self.answer(200, headers={"Content-Length": "500"})
            self.close_connection = True
        elif hub.everywhere is not None:
            self.answer(int(hub.everywhere), {"error": "as asked for"})
        elif path == "/api/repos/create":
            self.create(json.loads(self.read_body()))
        elif path == "/api/validate-yaml":
            self.read_body()
            self.answer(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/lfs/(\w+)", path):
            hub.uploads[found[1]] = self.read_body()
            self.answer(200)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self.large_files(json.loads(self.read_body()))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(found[1], found[3])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/(.*))?)?", path):
            self.model(found[1], found[2] or "revision", (found[3] or "main").rstrip("/"))
        else:
            self.answer(404, {"error": path})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create(self, wanted: dict[str, Any]) -> None:
        if self.headers.get("Authorization") != "Bearer write":
            self.answer(401, {"error": "Invalid credentials"})
            return
        repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        there = repo_id in self.server.repositories
        self.server.repositories.setdefault(repo_id, {})
        self.answer(409 if there else 200, {"url": f"{self.server.url}/{repo_id}", "id": "1", "name": repo_id})

    def large_files(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}", "header": {}}}}
            for one in wanted["objects"]
        ]
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        self.answer(200, {"transfer": "basic", "objects": objects}, headers)

    def model(self, repo_id: str, kind: str, rest: str) -> None:
        hub = self.server
        files = hub.repositories.get(repo_id)
        if repo_id in hub.gated:
            self.answer(403, {}, code="GatedRepo")
        elif not self.may_read(repo_id):
            self.answer(401, {}, code="RepoNotFound")
        elif files is None:
            self.answer(404, {}, code="RepoNotFound")
        elif kind == "preupload":
            asked = json.loads(self.read_body())["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular", "shouldIgnore": False}
                for f in asked
            ]
            self.answer(200, {"files": modes})
        elif kind == "branch":
            self.read_body()
            hub.branches.add(rest)
            self.answer(200, {})
        elif kind == "commit":
            self.commit(repo_id, files)
        elif rest not in ("main", COMMIT, *hub.branches):
            self.answer(404, {}, code="RevisionNotFound")
        elif kind == "tree":
            self.answer(200, [self.describe(name, content) for name, content in files.items()])
        else:
            entries = [self.describe(name, content) for name, content in files.items()]
            siblings = [
                {"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]}
                | ({"lfs": {**e["lfs"], "sha256": e["lfs"]["oid"]}} if "lfs" in e else {})
                for e in entries
            ]
            self.answer(200, {"_id": "1", "id": repo_id, "sha": COMMIT, "siblings": siblings})

    def may_read(self, repo_id: str) -> bool:
        token = self.server.tokens.get(repo_id)
        return token is None or self.headers.get("Authorization") == f"Bearer {token}"

    def commit(self, repo_id: str, files: dict[str, bytes]) -> None:
        for line in self.read_body().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
        self.answer(
            200, {"commitUrl": f"{self.server.url}/{repo_id}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        )

    def describe(self, name: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
        if is_large(name):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
        return entry

    def resolve(self, repo_id: str, name: str) -> None:
        hub = self.server
        files = hub.repositories.get(repo_id)
        if files is None or not self.may_read(repo_id):
            self.answer(404 if files is None else 401, {}, code="RepoNotFound")
            return
        if name not in files:
            self.answer(404, {}, {"X-Repo-Commit": COMMIT}, code="EntryNotFound")
            return
        content, fault = files[name], hub.faults.get(name)
        etag = hashlib.sha256(content).hexdigest() if is_large(name) else git_hash(content)
        headers = {"ETag": hub.etags.get(name, f'"{etag}"'), "X-Repo-Commit": COMMIT}
        if isinstance(fault, int):
            self.answer(fault, {"error": "as asked for"})
            return
        if self.command == "HEAD":
            self.answer(200, content, headers)
            return
        if hub.served.get(name):
            content = hub.served[name].pop(0)
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if fault == "drip":
            for i in range(0, len(content), 50):
                self.wfile.write(content[i : i + 50])
                time.sleep(0.2)
        elif fault in ("cut", "hang"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if fault == "hang":
                time.sleep(30)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(content)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


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
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
            patch.delenv(name)
        settings = {"HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        settings |= {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1", "NO_PROXY": "*"}
        settings |= {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(hf_api.api, "endpoint", hub.url)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
        patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield patch
