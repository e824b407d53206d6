"""`/login` and `/logout`: the two pages of a browser that has no cookie yet."""

from __future__ import annotations

from html import escape
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from service.dependencies import Parts, TheParts
from service.keys.access import COOKIE, MAX_GOAL
from service.keys.keys import find_key
from service.keys.logins import log_in, log_out

router = APIRouter(include_in_schema=False)
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Log in · Bitwright</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="/static/bitwright.css"></head>
<body class="login"><main><h1>Bitwright</h1>
<form method="post" action="/login"><p role="alert">{message}</p>
<label>Key
<input type="password" name="key" autocomplete="current-password" placeholder="bw_…" required autofocus></label>
<input type="hidden" name="next" value="{next}"><button>Log in</button></form>
<p>Keys are made on the server: <code>bitwright-server keys create NAME --scope write</code></p>
</main></body></html>
"""


@router.get("/login")
def login_page(next: Annotated[str, Query(max_length=MAX_GOAL)] = "/") -> HTMLResponse:
    """The form for a key."""
    return _page(_own_path(next))


@router.post("/login")
async def log_in_browser(request: Request, parts: TheParts) -> Response:
    """A right key becomes a cookie: HttpOnly, of this site only, Secure behind https."""
    form = await request.form(max_fields=2, max_files=0, max_part_size=MAX_GOAL)
    key, goal = str(form.get("key", "")), _own_path(str(form.get("next", "/")))
    token = await run_in_threadpool(_log_in, parts, key.strip())
    if token is None:
        return _page(goal, "This key is unknown, revoked or expired.", status=401)
    answer = RedirectResponse(goal, 303)
    answer.set_cookie(
        COOKIE,
        token,
        max_age=round(parts.settings.login_s),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/logout")
def log_out_browser(request: Request, parts: TheParts) -> Response:
    """End the login of this browser. The cookie is sent by our own pages only, so no further proof is asked for."""
    with parts.database.write() as session:
        log_out(session, request.cookies.get(COOKIE, ""))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def _log_in(parts: Parts, key: str) -> str | None:
    with parts.database.write() as session:
        row = find_key(session, key)
        return None if row is None else log_in(session, row, parts.settings.login_s)


def _own_path(text: str) -> str:
    """The text if it is a path of this site, else `/`; `//host` and `/\\host` would lead elsewhere."""
    return text if text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() else "/"


def _page(goal: str, message: str = "", status: int = 200) -> HTMLResponse:
    return HTMLResponse(PAGE.format(message=escape(message), next=escape(goal)), status)
