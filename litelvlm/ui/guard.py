"""The guard in front of the server: size of requests, uploads, foreign addresses, headers."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Nothing may be fetched from or sent to another host by the page.
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "base-uri 'self'; object-src 'none'; form-action 'self'"
)


class _TooLarge(Exception):
    pass


class RequestGuard:
    """ASGI middleware: size of requests, upload budget, foreign addresses, security headers.

    Args:
        app: the application behind it.
        body_bytes: largest body of any request but an upload or a call of a tool.
        upload_bytes: largest upload request, all its files together.
        window_bytes: uploads admitted within `window_s`, all visitors together. Files live for
            about that long, so this bounds the disk.
        window_s: seconds.
        same_site: refuse requests that a browser marks as sent by another site.
    """

    def __init__(
        self,
        app: Any,
        *,
        body_bytes: int,
        upload_bytes: int,
        window_bytes: int,
        window_s: float,
        same_site: bool = True,
    ) -> None:
        self.app = app
        self.body_bytes = body_bytes
        self.upload_bytes = upload_bytes
        self.window_bytes = window_bytes
        self.window_s = window_s
        self.same_site = same_site
        self.admitted: deque[tuple[float, int]] = deque()
        self.sum = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            if _FOREIGN.search(scope["path"]):
                await _answer(with_headers, 403, "Files of other hosts are not handed on.")
                return
            await self.app(scope, receive, with_headers)
            return
        upload = scope["path"].rstrip("/").endswith("/upload")
        # Tools take a picture inlined in the call, so their calls may be as large as an upload.
        large = upload or _TOOLS.search(scope["path"]) is not None
        limit = self.upload_bytes if large else self.body_bytes
        headers = {key.lower(): value for key, value in scope["headers"]}
        length = headers.get(b"content-length", b"")
        size = int(length) if length.isdigit() else None
        if self.same_site and headers.get(b"sec-fetch-site") == b"cross-site":
            await _answer(with_headers, 403, "Requests from other sites are not answered.")
        elif size is not None and size > limit:
            await _answer(with_headers, 413, _too_large(limit))
        elif upload:
            if self._admit(limit if size is None else size):
                await self._stream(scope, receive, with_headers, limit)
            else:
                text = "Too many uploads at the moment: try again in a few minutes."
                await _answer(with_headers, 503, text)
        else:
            await self._whole(scope, receive, with_headers, limit)

    async def _whole(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Read the body, check it, and only then pass the request on."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                await _answer(send, 413, _too_large(limit))
                return
        fault = _fault(body, call=bool(_CALL.search(scope["path"])))
        if fault:
            await _answer(send, 422, fault)
            return
        given = False

        async def replay() -> MutableMapping[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Pass the body on as it comes, up to the limit."""
        received, started = 0, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _TooLarge
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if received > limit and not started:
                return  # what the application makes of the cut is replaced below
            started = True
            await send(message)

        with contextlib.suppress(_TooLarge):
            await self.app(scope, counted, noted)
        if received > limit and not started:
            await _answer(send, 413, _too_large(limit))

    def _admit(self, size: int) -> bool:
        now = time.monotonic()
        while self.admitted and now - self.admitted[0][0] > self.window_s:
            self.sum -= self.admitted.popleft()[1]
        if self.sum + size > self.window_bytes:
            return False
        self.admitted.append((now, size))
        self.sum += size
        return True


def _too_large(limit: int) -> str:
    return f"This is too large: at most {limit / 1e6:.0f} MB are taken."


# Paths under which Gradio would ask other hosts, and those under which it runs a callback.
_FOREIGN = re.compile(r"/(file|proxy)[=/]\s*([a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
_TOOLS = re.compile(r"/mcp(/|$)")
# Beginnings of addresses that a file record must not have: the server would fetch them.
_SCHEMES = ("data:", "http:", "https:", "ftp:", "//")
_CALL = re.compile(r"/(call|run|api|queue)/")


def _fault(body: bytes, call: bool) -> str | None:
    """What is wrong with the body of a request, or None.

    Args:
        body: as received.
        call: whether the request calls an endpoint, so that its form is known.
    """
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        record = None
    if call and not (isinstance(record, dict) and isinstance(record.get("data", []), list)):
        return "The body must be a JSON object with a list named data."
    waiting = [record]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path, url = value.get("path"), value.get("url")
            if isinstance(path, str) and path.strip().lower().startswith(_SCHEMES):
                return "Upload the picture first; web addresses are not taken."
            if isinstance(url, str) and url.strip().lower().startswith("data:"):
                return "Upload the picture first; data: URLs are not taken."
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return None


_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"content-security-policy", _POLICY.encode()),
]


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
