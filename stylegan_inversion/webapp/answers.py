"""What the app's middleware knows of requests and answers."""

import json
import re

from starlette.datastructures import Headers
from starlette.types import Scope, Send

COOKIE = "visitor"

_COOKIE_VALUE = re.compile(r"[A-Za-z0-9_-]{43}")  # `secrets.token_urlsafe(32)`: 256 bits
_TOOLS = re.compile(r"/gradio_api/mcp(?:/.*)?", re.DOTALL)
_UPLOAD = re.compile(r"(?:/gradio_api)?/upload/?")


def is_made_here(value: str) -> bool:
    """Whether a cookie's value is one of ours."""
    return _COOKIE_VALUE.fullmatch(value) is not None


def route_of(scope: Scope) -> str:
    """The path within the app, wherever a proxy serves it."""
    path, root = str(scope["path"]), str(scope.get("root_path") or "").rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def is_upload(scope: Scope) -> bool:
    """Whether a request may be as large as a file."""
    kind = Headers(scope=scope).get("content-type", "").strip().lower()
    return _UPLOAD.fullmatch(route_of(scope)) is not None and kind.startswith("multipart/form-data")


def is_tool_call(scope: Scope) -> bool:
    """Whether a request goes to Gradio's MCP server."""
    return _TOOLS.fullmatch(route_of(scope)) is not None


async def refuse(send: Send, status: int, sentence: str) -> None:
    """Answer with one sentence, and close the connection."""
    body = json.dumps({"detail": sentence}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
