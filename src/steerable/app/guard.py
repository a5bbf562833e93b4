"""What stands before page and API: who may ask, for what, how much, and for how long."""

import asyncio
import hashlib
import hmac
import html
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from steerable.app.bounds import Bounds
from steerable.app.counting import Counts

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

COOKIE = "steerable"
_LOG = logging.getLogger("steerable")
WRONG = 0.5  # seconds that a wrong token waits for its answer
API = (
    "/api/health",
    "/api/metrics",
    "/api/openapi.json",
    "/api/encode",
    "/api/steer",
    "/api/search",
    "/api/score",
)
THUMBNAILS = "/api/thumbnail/"
# what the page needs of Gradio's routes: neither uploads, nor files, nor proxies, nor developers' tools
PAGE = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/startup-events",
        "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/reset",
        "/gradio_api/info", "/gradio_api/app_id")  # fmt: skip
UNDER = (THUMBNAILS, "/assets/", "/static/", "/gradio_api/heartbeat/", "/gradio_api/run/")
HEADERS = {
    # 'unsafe-eval' is what Gradio's own components need; nothing is ever asked of another host
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'self'; form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
_LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>steerable</title><style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;display:grid;
min-height:90vh;place-content:center}input,button{font:inherit;padding:.4rem .6rem}</style>
<form method="post" action="/login"><p>{message}</p><label>Token <input name="token" type="password" autofocus
required></label> <button>Open</button></form></html>"""


class Guard:
    """ASGI middleware. token: None admits everybody. hosts: names under which it may be asked; None is any."""

    def __init__(
        self, app: Any, *, bounds: Bounds, counts: Counts, token: str | None, hosts: frozenset[str] | None
    ):
        self.app, self.bounds, self.counts, self.hosts = app, bounds, counts, hosts
        self.token = None if token is None else token.encode()
        self._key = secrets.token_bytes(32)
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, path = time.perf_counter(), scope["path"]
        answer = _Answer(send)
        try:
            refusal = self._refusal(scope, path)
            if refusal:
                await answer.error(*refusal)
            elif path == "/login" and scope["method"] == "POST" and self.token:
                await self._login(receive, answer)
            elif not self._admitted(scope):
                await answer.stranger(path)
            else:
                await self._serve(scope, receive, answer, path)
        finally:
            route = path if path in API else THUMBNAILS if path.startswith(THUMBNAILS) else "page"
            self.counts.add(route, answer.status, time.perf_counter() - began)

    def _refusal(self, scope: Scope, path: str) -> tuple[int, str] | None:
        """What is refused whoever asks."""
        host, origin = _header(scope, b"host"), _header(scope, b"origin")
        if self.hosts is not None and _hostname(host) not in self.hosts:
            return (
                421,
                f"this server is not {host[:80]!r}; expected {', '.join(sorted(self.hosts))}: use that address",
            )
        if origin and origin != "null" and origin.partition("://")[2] != host:
            return (
                403,
                f"the request comes from a page of {origin[:80]!r}; expected this server's own: open it there",
            )
        if ".." in path.split("/") or "\\" in path or "\0" in path:
            return 404, "there is nothing at that path; expected the page at /, or the API under /api"
        known = path in API or path in PAGE or path == "/login" or path.startswith(UNDER)
        return (
            None
            if known
            else (404, f"there is nothing at {path[:80]!r}; expected the page at /, or the API under /api")
        )

    def _admitted(self, scope: Scope) -> bool:
        if self.token is None:
            return True
        kind, _, given = _header(scope, b"authorization").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token):
            return True
        try:
            cookie = SimpleCookie(_header(scope, b"cookie")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._pass().encode())

    def _pass(self) -> str:
        """The cookie of this process; the token itself is kept by nobody."""
        return hmac.new(self._key, self.token or b"", hashlib.sha256).hexdigest()

    async def _login(self, receive: Receive, answer: "_Answer") -> None:
        body = await self._body(receive, 4096)
        if not isinstance(body, bytes):
            await answer.error(*body)
            return
        given = parse_qs(body.decode("latin-1"), max_num_fields=5).get("token", [""])[0]
        if not hmac.compare_digest(given.encode(), self.token or b""):
            await asyncio.sleep(WRONG)
            await answer.login(401, "That is not the token. It was set where the server was started.")
            return
        cookie = f"{COOKIE}={self._pass()}; HttpOnly; SameSite=Strict; Path=/"
        await answer.plain(303, b"", "text/plain", {"location": "/", "set-cookie": cookie})

    async def _serve(self, scope: Scope, receive: Receive, answer: "_Answer", path: str) -> None:
        length = _header(scope, b"content-length")
        if length.isdecimal() and int(length[:15]) > self.bounds.body:
            await answer.error(413, _too_long(self.bounds))
            return
        held = int(length[:15]) if length.isdecimal() else self.bounds.body
        if scope["method"] in ("GET", "HEAD"):
            held = 0
        if self._held + held > self.bounds.held:
            await answer.error(503, "too many requests are being read; expected fewer at once: try again")
            return
        self._held += held
        try:
            body = await self._body(receive, self.bounds.body)
        finally:
            self._held -= held
        if not isinstance(body, bytes):
            await answer.error(*body)
            return
        limit = (
            self.bounds.seconds if path.startswith("/api/") else None
        )  # the page's event streams stay open
        try:
            async with asyncio.timeout(limit):
                await self.app(scope, _replay(body, receive), answer)
        except TimeoutError:
            if not answer.status:
                await answer.error(504, f"no answer within {limit:g} s; expected one by then: ask for less")
        except Exception:  # answered already by the application's own handler, if it could
            _LOG.exception("at %s", path)
            if not answer.status:
                await answer.error(500, "something went wrong in the server; expected an answer: try again")

    async def _body(self, receive: Receive, most: int) -> bytes | tuple[int, str]:
        """All of a request's body, or why not."""
        parts = bytearray()
        try:
            async with asyncio.timeout(self.bounds.arrive):
                while True:
                    message = await receive()
                    parts += message.get("body", b"")
                    if len(parts) > most:
                        return 413, _too_long(self.bounds)
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return bytes(parts)
        except TimeoutError:
            return (
                408,
                f"the request did not arrive within {self.bounds.arrive:g} s; expected all of it: send faster",
            )


class _Answer:
    """Sends what the application answers, with our headers; or an answer of our own."""

    def __init__(self, send: Send):
        self._send, self.status = send, 0

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            ours = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *ours]}
        await self._send(message)

    async def plain(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        every = {
            "content-type": kind,
            "content-length": str(len(body)),
            "cache-control": "no-store",
            **headers,
        }
        pairs = [(key.encode(), value.encode()) for key, value in every.items()]
        await self({"type": "http.response.start", "status": status, "headers": pairs})
        await self({"type": "http.response.body", "body": body})

    async def error(self, status: int, message: str) -> None:
        # what is left of the request is not read, so the connection cannot be used again
        headers = {"connection": "close"} if status in (408, 413, 503) else {}
        await self.plain(status, json.dumps({"error": message}).encode(), "application/json", headers)

    async def login(self, status: int, message: str) -> None:
        page = _LOGIN.replace("{message}", html.escape(message)).encode()
        await self.plain(status, page, "text/html; charset=utf-8", {})

    async def stranger(self, path: str) -> None:
        if path == "/":
            await self.login(401, "This page asks for the token that its server was started with.")
            return
        await asyncio.sleep(WRONG)
        message = "the token is missing or wrong; expected the server's: send Authorization: Bearer TOKEN"
        body = json.dumps({"error": message}).encode()
        await self.plain(401, body, "application/json", {"www-authenticate": "Bearer"})


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Any:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _hostname(host: str) -> str:
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _too_long(bounds: Bounds) -> str:
    return f"the request is too large; expected at most {bounds.body / 2**20:g} MB: send less"
