"""Access: who sends a request, and whether they may. Routers ask with `scoped(noun)`, pages with `page_access`."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request, Security
from fastapi.responses import RedirectResponse
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from service.dependencies import Parts, TheParts
from service.errors import Problem
from service.keys.keys import find_key, note_use
from service.keys.logins import csrf_token, find_login
from service.keys.scopes import ADMIN, Deed, Noun, allows
from service.store.models import ApiKeyRow

COOKIE = "bitwright_login"
CSRF_HEADER = "X-CSRF-Token"
MAX_GOAL = 300
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="`Authorization: Bearer bw_…`. A server that only its own machine can reach asks for none by default.",
)
_cookie = APIKeyCookie(
    name=COOKIE,
    auto_error=False,
    scheme_name="login",
    description=f"A browser's login. Requests that change something also need the header `{CSRF_HEADER}`.",
)


@dataclass(frozen=True)
class Caller:
    """Who sends a request: a key, or with keys switched off the user of this machine (`key_id` None, all scopes).

    `csrf_token` is what a logged-in browser's page repeats in the header `X-CSRF-Token`; empty for other callers.
    """

    key_id: str | None
    name: str
    scopes: frozenset[str]
    csrf_token: str = ""

    def may(self, noun: Noun, deed: Deed) -> bool:
        return allows(self.scopes, noun, deed)


THIS_MACHINE = Caller(None, "this machine", frozenset({ADMIN}))


class LoginNeeded(Exception):
    """A page was asked for by a browser that has not logged in."""


async def identify(
    request: Request,
    parts: TheParts,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    cookie: Annotated[str | None, Security(_cookie)],
) -> Caller:
    """The caller, also left in `request.state.caller`. Raises `Problem` 401 `auth_missing` or `auth_invalid`."""
    if parts.settings.auth == "off":
        caller = THIS_MACHINE
    elif bearer is not None:
        caller = await run_in_threadpool(_of_key, parts, bearer.credentials)
    elif cookie is not None:
        caller = await run_in_threadpool(_of_login, parts, cookie)
        _check_csrf(request, caller)
    else:
        raise _unauthorized("auth_missing", "this server asks for a key", "send Authorization: Bearer bw_…")
    request.state.caller = caller
    return caller


TheCaller = Annotated[Caller, Depends(identify)]


def scoped(noun: Noun) -> Any:
    """A router's dependency: reading needs `<noun>:read`, every other method `<noun>:write`. No route can forget it."""

    def check(request: Request, caller: TheCaller) -> None:
        deed: Deed = "read" if request.method in SAFE_METHODS else "write"
        if not caller.may(noun, deed):
            raise Problem(
                403,
                "scope_missing",
                f"the key {caller.name!r} may not {deed} {noun}",
                hint=f"use a key with the scope {noun}:{deed}; this one has {', '.join(sorted(caller.scopes))}",
            )

    return Depends(check)


async def _identify_page(
    request: Request,
    parts: TheParts,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    cookie: Annotated[str | None, Security(_cookie)],
) -> Caller:
    try:
        return await identify(request, parts, bearer, cookie)
    except Problem as problem:
        if problem.status_code == 401 and request.method in SAFE_METHODS:
            raise LoginNeeded from None
        raise


def page_access() -> Any:
    """The dashboard's dependency: a browser that is not logged in is sent to `/login`. Pages show all studies."""

    def check(caller: Annotated[Caller, Depends(_identify_page)]) -> None:
        if not caller.may("studies", "read"):
            raise Problem(403, "scope_missing", "the key may not read studies", hint="log in with another key")

    return Depends(check)


def install_access(app: FastAPI) -> None:
    """Send browsers that must log in to `/login`."""

    @app.exception_handler(LoginNeeded)
    async def to_login(request: Request, error: LoginNeeded) -> RedirectResponse:
        wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        goal = quote(wanted) if len(wanted) <= MAX_GOAL else "/"
        return RedirectResponse(f"/login?next={goal}", 303)


def _of_key(parts: Parts, text: str) -> Caller:
    with parts.database.read() as session:
        row = find_key(session, text)
    if row is None:
        raise _unauthorized("auth_invalid", "the key is unknown, revoked or expired", "ask for a new key")
    return _caller(parts, row)


def _of_login(parts: Parts, token: str) -> Caller:
    with parts.database.read() as session:
        row = find_login(session, token)
    if row is None:
        raise _unauthorized("auth_invalid", "the login has ended", "log in again: /login")
    return _caller(parts, row, csrf_token(token))


def _caller(parts: Parts, row: ApiKeyRow, token: str = "") -> Caller:
    if parts.key_uses.is_due(row.id):
        with parts.database.write() as session:
            note_use(session, row.id)
    return Caller(row.id, row.name, frozenset(row.scopes), token)


def _check_csrf(request: Request, caller: Caller) -> None:
    if request.method in SAFE_METHODS:
        return
    if not hmac.compare_digest(request.headers.get(CSRF_HEADER, "").encode(), caller.csrf_token.encode()):
        raise Problem(
            403,
            "csrf_missing",
            f"a login may change something only with the header {CSRF_HEADER} of its own page",
            hint="reload the page; programs send a key instead",
        )


def _unauthorized(code: str, detail: str, hint: str) -> Problem:
    return Problem(401, code, detail, hint=hint, headers={"WWW-Authenticate": "Bearer"})
