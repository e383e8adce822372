"""What stands in front of the app: limits on what is sent, a cookie, headers, `Inspect`. `Janitor` tidies up behind.

Gradio takes the middleware through `launch(app_kwargs={"middleware": [Middleware(LimitBody), ...]})`. Uploads must
come to this process (`num_workers=0`): Gradio's file workers are servers of their own, without it.
"""

import hashlib
import ipaddress
import re
import secrets
import socket
from collections.abc import Sequence
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stylegan_inversion.webapp.answers import COOKIE, is_made_here, is_tool_call, refuse
from stylegan_inversion.webapp.answers import is_upload as is_upload_of
from stylegan_inversion.webapp.inspection import Inspect as Inspect
from stylegan_inversion.webapp.janitor import Janitor as Janitor

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_loopback(host: str) -> bool:
    """Whether a server that listens on a name or an address is reached from this machine only."""
    if host.lower().rstrip(".") in LOOPBACK:
        return True
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}  # as the server's own socket reads it
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in found)


class KnownHosts:
    """Refuses requests that were sent to another name than the app's, with status 403 and one sentence.

    Any web site can give its own name the address of this machine (DNS rebinding); the browser then lets its scripts
    read what an app answers here. Starlette's own `TrustedHostMiddleware` does not say the way out.
    """

    def __init__(self, app: ASGIApp, *, names: Sequence[str]) -> None:
        """Wrap an app.

        Args:
            app: The app.
            names: Host names and addresses without a port, such as "localhost".
        """
        self.app = app
        self.names = {name.lower().rstrip(".") for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Compare the header `Host`."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        hosts = [_name_in(host) for host in Headers(scope=scope).getlist("host")]
        if scope["type"] == "http" and len(hosts) == 1 and hosts[0] in self.names:
            return await self.app(scope, receive, send)
        asked = hosts[0][:80] if hosts else ""
        await refuse(
            send,
            403,
            f"This app answers only as {' or '.join(sorted(self.names))}, not as {asked!r}. If the name is a proxy's, "
            "start the app with it: `stylegan-inversion app --allow-host NAME`, or launch(allowed_hosts=[NAME]).",
        )


def _name_in(host: str) -> str:
    """The name or address in a header `Host`, without the port and the brackets of IPv6."""
    return re.sub(r":\d*$", "", host.strip().lower()).strip("[]").rstrip(".")


class LimitBody:
    """Refuses requests that are too large, with status 413 and one sentence, before they fill the memory or the disk.

    Gradio limits the files of an upload, but not form fields and JSON, and lets 1000 files into one request.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int = 24_000_000, max_json_bytes: int = 1_000_000, max_parts: int = 16
    ) -> None:
        """Wrap an app.

        Args:
            app: The app.
            max_bytes: Of a form that is sent to the upload route, with everything in it.
            max_json_bytes: Of any other request. JSON takes up to 30 times its size in memory.
            max_parts: How many files and fields an upload may have.
        """
        self.app = app
        self.max_bytes = max_bytes
        self.max_json_bytes = max_json_bytes
        self.max_parts = max_parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what comes in; the app sees a visitor who left where the limit is crossed."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        is_upload = is_upload_of(scope)
        limit = self.max_bytes if is_upload else self.max_json_bytes
        too_large = f"The request is larger than {limit / 1e6:g} MB. Send a smaller file."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > limit:
            return await refuse(send, 413, too_large)

        marker = b"--" + parse_options_header(headers.get("content-type"))[1].get(b"boundary", b"")
        size, parts, tail = 0, 0, b""
        refusal, is_answered = "", False

        async def counted() -> Message:
            nonlocal size, parts, tail, refusal
            message = await receive()
            if message["type"] != "http.request" or refusal:
                return message
            body = message.get("body", b"")
            size += len(body)
            if is_upload:
                seen = tail + body
                parts += seen.count(marker)
                tail = seen[-(len(marker) - 1) :]  # a boundary may be cut in two
            if size > limit:
                refusal = too_large
            elif parts > self.max_parts + 1:  # the last one ends the form
                refusal = f"An upload may have {self.max_parts} files at most."
            return {"type": "http.disconnect"} if refusal else message

        async def guarded(message: Message) -> None:
            nonlocal is_answered
            if not refusal:
                is_answered = True
                await send(message)

        try:
            await self.app(scope, counted, guarded)
        except ClientDisconnect:  # whoever leaves in mid-upload is no error, and fills no log
            pass
        except Exception:
            if not refusal:
                raise
        if refusal and not is_answered:
            await refuse(send, 413, refusal)


class VisitorCookie:
    """Gives each visitor's browser a secret of 256 bits, which no script can read and no log shows.

    Gradio's own session hash is not one: it stands in addresses and comes from `Math.random()`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set the cookie with a page or an answer, where it is missing or was not made here."""
        if scope["type"] != "http" or is_made_here(HTTPConnection(scope).cookies.get(COOKIE, "")):
            return await self.app(scope, receive, send)
        # one client of Gradio's own serves all who call tools: it cannot work with the cookie of one of them
        if is_tool_call(scope) or Headers(scope=scope).get("x-gradio-user") == "mcp":
            return await self.app(scope, receive, send)
        forwarded = Headers(scope=scope).get("x-forwarded-proto", "").split(",")[0].strip()
        is_https = (forwarded or scope["scheme"]) == "https"
        site = "SameSite=None; Secure; Partitioned" if is_https else "SameSite=Lax"  # None: for a page in a frame

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith(("text/html", "application/json")):  # not what is cached
                    headers.append("set-cookie", f"{COOKIE}={secrets.token_urlsafe(32)}; Path=/; HttpOnly; {site}")
                    headers["cache-control"] = "no-store"
            await send(message)

        await self.app(scope, receive, with_cookie)


class SecurityHeaders:
    """Browsers take files for what they are said to be, tell no other site where they came from, and keep no face."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the headers to every answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "same-origin"
                if "/file=" in scope["path"]:
                    headers["cache-control"] = "private, no-store"
            await send(message)

        await self.app(scope, receive, with_headers)


def owner_of(request: Any) -> str | None:
    """Name of the visitor behind a request, as `Sessions` wants it.

    Args:
        request: Gradio's `gr.Request`, or `None`.

    Returns:
        A hash of the cookie, so that the cookie itself lies nowhere; `None` if there is none that was made here, as
        with programs.
    """
    request = getattr(request, "request", None) or request  # Gradio's own view of the cookies is no dict
    cookies = getattr(request, "cookies", None) or {}
    value = cookies.get(COOKIE) or ""
    return hashlib.sha256(value.encode()).hexdigest() if is_made_here(value) else None
