"""Dashboard: two server-rendered pages that poll the public API. No build step, no request to anyone else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from sqlalchemy import select

from service.dependencies import ReadSession, TheParts
from service.errors import not_found
from service.keys.access import page_access
from service.paging import page_of, page_query
from service.store.models import StudyRow
from service.studies.view import see_study, study_summary
from service.version import VERSION

HERE = Path(__file__).parent
PAGE_ROWS = 50
templates = Jinja2Templates(HERE / "templates")
templates.env.globals["server_version"] = VERSION
router = APIRouter(include_in_schema=False, dependencies=[page_access()])


@router.get("/")
def studies_page(
    request: Request, session: ReadSession, cursor: Annotated[str | None, Query(max_length=200)] = None
) -> Response:
    """All studies, newest first."""
    rows = list(session.scalars(page_query(select(StudyRow), StudyRow, cursor, PAGE_ROWS)))
    rows, next_cursor = page_of(rows, PAGE_ROWS)
    listed = [study_summary(row) for row in rows]
    return templates.TemplateResponse(request, "studies.html", {"studies": listed, "next_cursor": next_cursor})


@router.get("/studies/{study_id}")
def study_page(request: Request, study_id: str, session: ReadSession, parts: TheParts) -> Response:
    """One study; the script polls it and draws the front and the bits when they are there."""
    seen = see_study(session, study_id, silent_s=parts.settings.worker_silent_s)
    if seen is None:
        raise not_found("study", study_id)
    return templates.TemplateResponse(request, "study.html", {"study": seen.view})


def install_dashboard(app: FastAPI) -> None:
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
