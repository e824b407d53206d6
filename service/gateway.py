"""Gateway: what every request passes first: its id, the host check, the cross-site check, limits, safe headers."""

from __future__ import annotations

import logging
import re
import secrets
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Problem, internal_problem, problem_response
from service.settings import Settings

log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Only these stream their bodies to disk; every other handler holds them in memory.
UPLOAD_PATHS = frozenset({"/v1/models", "/v1/datasets"})
DRAIN_BYTES, DRAIN_S = 8 << 20, 3.0
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PAGE_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class Gateway:
    """ASGI middleware around the whole application; it also turns an unexpected exception into a problem."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                out = MutableHeaders(scope=message)
                out["X-Request-ID"] = request_id
                out["X-Content-Type-Options"] = "nosniff"
                out["Referrer-Policy"] = "same-origin"  # with no-referrer a form would send `Origin: null`
                out.setdefault("Content-Security-Policy", PAGE_POLICY)
                out.setdefault("Cache-Control", "no-cache")
            await send(message)

        request = Request(scope, receive)
        refusal = self._refusal(scope, headers)
        if scope["method"] == "HEAD":
            # Routes know GET; the server below leaves the body out of what answers a HEAD.
            scope = {**scope, "method": "GET"}
        if refusal is not None:
            if refusal.status_code == 413:
                await _drain(receive)
            await problem_response(request, refusal)(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, self._limited(scope, receive), send_with_headers)
        except Exception:
            log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if started:
                raise
            await problem_response(request, internal_problem())(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        method, path, query = scope["method"], scope["path"], scope["query_string"]
        host = headers.get("host", "").lower()
        if _without_port(host) not in self._settings.allowed_hosts:
            return Problem(
                400,
                "host_not_allowed",
                f"this server does not answer to the host {host[:100]!r}",
                hint="add the name to BITWRIGHT_ALLOWED_HOSTS if it is yours",
            )
        if "\x00" in path or b"%00" in query:
            return Problem(422, "invalid_request", "the address holds a NUL character", hint="leave it out")
        if (size := headers.get("content-length", "")).isdecimal() and int(size) > self._limit(headers, path):
            return _too_large(self._limit(headers, path))
        origin = headers.get("origin")
        if method not in _SAFE_METHODS and origin is not None and _site(origin) != host:
            return Problem(
                403,
                "cross_site",
                f"a page of {origin[:100]!r} may not send this request",
                hint="send it from the dashboard or from a program",
            )
        return None

    def _limit(self, headers: Headers, path: str) -> int:
        if path in UPLOAD_PATHS and headers.get("content-type", "").startswith("multipart/"):
            return self._settings.upload_limit_bytes
        if path.endswith("/latency-tables"):
            return self._settings.table_limit_bytes
        return self._settings.body_limit_bytes

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Counts the body; uploads have their own, larger limit. Content-Length is never trusted."""
        limit = self._limit(Headers(scope=scope), scope["path"])
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > limit:
                    if message.get("more_body", False):
                        await _drain(receive)
                    raise _too_large(limit)
            return message

        return counted


def _too_large(limit: int) -> Problem:
    return Problem(413, "too_large", f"the body is larger than {limit} bytes", hint="send less, or raise the limit")


async def _drain(receive: Receive) -> None:
    """Read on for a little: a client that is still sending when the connection closes never sees its answer."""
    with anyio.move_on_after(DRAIN_S):
        read = 0
        while read < DRAIN_BYTES:
            message = await receive()
            read += len(message.get("body", b""))
            if not message.get("more_body", False):
                return


def _site(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # such as half an IPv6 address
        return None


def _without_port(host: str) -> str:
    return re.sub(r":\d+$", "", host)
