"""What a request says is checked before Gradio believes it: whose page session it names, and what files it names."""

import hashlib
import json
import re
import threading
from collections import OrderedDict

from starlette.datastructures import Headers, QueryParams
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stylegan_inversion.webapp.answers import COOKIE, is_made_here, is_upload, refuse, route_of
from stylegan_inversion.webapp.messages import WRONG_ARGUMENTS
from stylegan_inversion.webapp.photos import NOT_UPLOADED, names_other_files

REMEMBERED_SESSIONS = 10_000  # Gradio itself keeps what the last 200 show

FOREIGN_SESSION = "This page belongs to another visitor, or its cookie is gone. Reload it."
FOREIGN_ADDRESS = "This server fetches nothing from other addresses. Send the file itself."
NOT_HERE = "There is nothing here."

_IN_PATH = re.compile(r"/(?:heartbeat|stream)/([^/]+)")  # a session hash
_BY_NAME = re.compile(r"/call/v2/[^/]+/?$")
_EVENT = re.compile(r"/call/(?:v2/)?[^/]+/([^/]+)/?$")  # an event's name, or a session hash passed off as one


class Inspect:
    """Binds each page session to its visitor's cookie, and refuses files that were not uploaded here.

    Gradio's session hash opens all that a page shows, and how it goes on; but it stands in addresses and comes from
    `Math.random()`. Here it works with the cookie that came with its first use only; one that began without a cookie,
    as that of a program does, works without one only. Deep links are shut: their files need no session at all.
    """

    def __init__(self, app: ASGIApp, *, max_sessions: int = REMEMBERED_SESSIONS) -> None:
        """Wrap an app. `LimitBody` has to stand before, since bodies of JSON are read here.

        Args:
            app: The app.
            max_sessions: How many sessions to remember; the one not used for longest is forgotten.
        """
        self.app = app
        self.max_sessions = max_sessions
        self._visitors: OrderedDict[bytes, bytes] = OrderedDict()  # of both only hashes, the last used at the end
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at the address, then at the body, which the app gets as it came."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, query = route_of(scope), QueryParams(scope["query_string"])
        if path.rstrip("/").endswith("/deep_link") or any(query.getlist("deep_link")):
            return await refuse(send, 404, NOT_HERE)
        if re.search(r"/(?:file[=/]|proxy=)\s*https?:", path, re.IGNORECASE):
            return await refuse(send, 403, FOREIGN_ADDRESS)
        named = [*query.getlist("session_hash"), *_IN_PATH.findall(path)]
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not is_upload(scope):
            if Headers(scope=scope).get("content-type", "").strip().lower().startswith("multipart/"):
                return await refuse(send, 404, NOT_HERE)  # Gradio's other forms name a session, too
            body = await _read(receive)
            if body is None:  # whoever sends it has left, or sends too much
                return
            receive = _replayed(body, receive)
            try:
                content = json.loads(body)
            except (ValueError, RecursionError):
                content = None  # Gradio reads it the same way, and refuses it
            if names_other_files(content):
                return await refuse(send, 403, NOT_UPLOADED)
            if isinstance(content, dict) and isinstance(content.get("session_hash"), str):
                named.append(content["session_hash"])
        events = _EVENT.findall(path) if scope["method"] == "GET" else []
        visitor = _visitor(scope)
        if len(named) > 2 or not all(
            [*(self._is_theirs(each, visitor) for each in named), *(self._may_read(each, visitor) for each in events)]
        ):
            return await refuse(send, 403, FOREIGN_SESSION)
        try:
            await self.app(scope, receive, send)
        except (KeyError, TypeError):
            if not _BY_NAME.search(path):
                raise
            await refuse(send, 422, WRONG_ARGUMENTS)  # Gradio knows no such endpoint or argument, or misses one

    def _is_theirs(self, session_hash: str, visitor: bytes) -> bool:
        """Whether a session is this visitor's, as it is if nobody had it before."""
        key = _hash(session_hash)
        with self._lock:
            first = self._visitors.setdefault(key, visitor)
            if first == visitor:  # nobody else keeps it alive
                self._visitors.move_to_end(key)
            while len(self._visitors) > self.max_sessions:
                self._visitors.popitem(last=False)
            return first == visitor

    def _may_read(self, event: str, visitor: bytes) -> bool:
        """Whether a name is not that of another visitor's session."""
        with self._lock:
            return self._visitors.get(_hash(event), visitor) == visitor


def _visitor(scope: Scope) -> bytes:
    value = HTTPConnection(scope).cookies.get(COOKIE, "")
    return _hash(value) if is_made_here(value) else b""


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


async def _read(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    is_read = False

    async def again() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
