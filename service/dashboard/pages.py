"""Rendering: one HTML page from a template, with an ETag so that a page that polls itself learns of changes only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

from service.dashboard.words import FILTERS, event_words, span
from service.keys.access import Caller
from service.version import VERSION

HERE = Path(__file__).parent
templates = Jinja2Templates(HERE / "templates")
templates.env.filters.update(FILTERS)
templates.env.globals.update(server_version=VERSION, event_words=event_words, span=span)


def page(request: Request, name: str, **context: Any) -> Response:
    """The page, or 304 when the browser has it already. Templates see the `caller` and hide what it may not do."""
    caller: Caller = request.state.caller
    body = templates.get_template(name).render(request=request, caller=caller, **context).encode()
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:20]}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"ETag": etag})
    return HTMLResponse(body, headers={"ETag": etag})
