"""Dashboard: server-rendered pages that poll themselves. No build step, no request to anyone else."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.staticfiles import StaticFiles
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.middleware.gzip import GZipMiddleware

from service.blobs import BlobMissing, Blobs
from service.dashboard.fleet import router as fleet
from service.dashboard.pages import HERE, page
from service.dashboard.questions import asked_of, evaluations_of, evaluator_words, is_solved
from service.dashboard.results import Results, read_results
from service.dependencies import ReadSession, TheParts
from service.errors import Problem, not_found
from service.keys.access import page_access
from service.lifecycle import StageState, StudyState
from service.paging import page_of
from service.store.fleet import live_queues
from service.store.models import (
    ArtifactRow,
    DatasetRow,
    EventRow,
    HardwareProfileRow,
    ModelRow,
    StageRow,
    StudyRow,
)
from service.studies.listed import listed_studies
from service.studies.view import see_study, study_summary
from service.times import iso

PAGE_ROWS = 50
LOG_ROWS = 200
MAX_COMPARED = 6
router = APIRouter(include_in_schema=False, dependencies=[page_access()])
Text = Annotated[str, Query(max_length=200)]


@router.get("/")
def studies_page(
    request: Request,
    session: ReadSession,
    state: Text = "",
    hardware: Text = "",
    model: Text = "",
    name: Text = "",
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """Studies, newest first, filtered as the form says."""
    query = listed_studies(
        states=[state] if state else (),
        model=model or None,
        hardware=hardware or None,
        name=name or None,
        cursor=cursor,
        limit=PAGE_ROWS,
    )
    rows, next_cursor = page_of(list(session.scalars(query)), PAGE_ROWS)
    filters = {"state": state, "hardware": hardware, "model": model, "name": name}
    return page(
        request,
        "studies.html",
        studies=[study_summary(row) for row in rows],
        running=_running_stages(session, [row.id for row in rows if row.finished_at is None]),
        next_cursor=next_cursor,
        filters=filters,
        is_filtered=any(filters.values()),
        states=[one.value for one in StudyState],
        profiles=list(session.scalars(select(HardwareProfileRow.slug).order_by(HardwareProfileRow.slug))),
    )


@router.get("/studies/{study_id}")
def study_page(request: Request, study_id: str, session: ReadSession, parts: TheParts) -> Response:
    """One study: what it was asked, how far it is, what it found. The script draws the charts from `data/…`."""
    seen = see_study(session, study_id, silent_s=parts.settings.worker_silent_s)
    if seen is None:
        raise not_found("study", study_id)
    events = select(EventRow).where(EventRow.study_id == study_id).order_by(EventRow.seq.desc()).limit(LOG_ROWS)
    artifacts = list(
        session.scalars(
            select(ArtifactRow).where(ArtifactRow.study_id == study_id).order_by(ArtifactRow.target, ArtifactRow.name)
        )
    )
    view = seen.view
    results = [_results(parts.blobs, artifacts, position) for position in range(len(view.spec["targets"]))]
    asked = asked_of(session, parts, study_id)
    evaluator = view.spec.get("evaluator")
    return page(
        request,
        "study.html",
        study=view,
        goes_on=not view.is_terminal or any(not one.view.is_terminal for one in asked),
        asked=asked,
        solved=is_solved(view),
        profiles=list(session.scalars(select(HardwareProfileRow.slug).order_by(HardwareProfileRow.slug))),
        evaluations=evaluations_of(session, view, artifacts),
        evaluator=evaluator_words(evaluator) if evaluator else "",
        model=session.get(ModelRow, view.model),
        dataset=session.get(DatasetRow, view.dataset) if view.dataset else None,
        targets=view.spec["targets"],
        results=results,
        has_results=any(results),
        events=[{"row": row, "iso_at": iso(row.at)} for row in reversed(session.scalars(events).all())],
        artifacts=artifacts,
    )


@router.get("/studies/{study_id}/data/{position}")
def study_data(request: Request, study_id: str, position: int, session: ReadSession, parts: TheParts) -> Response:
    """One target's results as columns, gzipped; they never change."""
    rows = list(session.scalars(select(ArtifactRow).where(ArtifactRow.study_id == study_id)))
    results = _results(parts.blobs, rows, position)
    if results is None:
        raise not_found("result of study", study_id)
    headers = {"ETag": f'"{results.etag}-{position}"', "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(results.columns_gz, media_type="application/json", headers=headers)


@router.get("/compare")
def compare_page(
    request: Request, session: ReadSession, parts: TheParts, studies: Annotated[str, Query(max_length=400)] = ""
) -> Response:
    """Two to six finished studies side by side; `studies` are ids with commas between them."""
    ids = list(dict.fromkeys(one.strip() for one in studies.split(",") if one.strip()))
    if len(ids) > MAX_COMPARED:
        raise Problem(422, "too_many_studies", f"{len(ids)} studies were named", hint=f"compare at most {MAX_COMPARED}")
    compared: list[dict[str, Any]] = []
    for study_id in ids:
        row = session.get(StudyRow, study_id)
        if row is None:
            raise not_found("study", study_id)
        artifacts = list(session.scalars(select(ArtifactRow).where(ArtifactRow.study_id == study_id)))
        for position, target in enumerate(row.spec["targets"]):
            results = _results(parts.blobs, artifacts, position)
            compared.append(
                {
                    "study": study_summary(row),
                    "model": session.get(ModelRow, row.model_id),
                    "target": target,
                    "position": position,
                    "verdict": _verdict_of(row, position),
                    "results": results,
                    "figures": {figure.name: figure for figure in results.figures} if results else {},
                }
            )
    return page(request, "compare.html", compared=compared, ids=ids)


@router.get("/submit")
def submit_page(
    request: Request, session: ReadSession, parts: TheParts, model: Text = "", dataset: Text = ""
) -> Response:
    """The form for a new study; `model` and `dataset` may name what is uploaded already."""
    live = live_queues(session, parts.settings.worker_silent_s)
    profiles = list(session.scalars(select(HardwareProfileRow).order_by(HardwareProfileRow.slug)))
    present = [row for row in profiles if f"measure.{row.slug}" in live]
    return page(
        request,
        "submit.html",
        model=session.get(ModelRow, model) if model else None,
        dataset=session.get(DatasetRow, dataset) if dataset else None,
        present=present,
        absent=[row for row in profiles if row not in present],
    )


def _running_stages(session: Session, study_ids: list[str]) -> dict[str, StageRow]:
    """The stage each of these studies is in now, if a worker holds one."""
    running = select(StageRow).where(StageRow.study_id.in_(study_ids), StageRow.state == StageState.RUNNING.value)
    return {stage.study_id: stage for stage in session.scalars(running.order_by(StageRow.position.desc()))}


def _results(blobs: Blobs, artifacts: list[ArtifactRow], position: int) -> Results | None:
    for row in artifacts:
        if row.name == "report.json" and row.target == position:
            try:
                return read_results(blobs, row, position)
            except BlobMissing:
                return None
    return None


def _verdict_of(row: StudyRow, position: int) -> dict[str, Any] | None:
    verdicts = row.verdicts or []
    return verdicts[position] if position < len(verdicts) else None


def install_dashboard(app: FastAPI) -> None:
    app.include_router(router)
    app.include_router(fleet)
    app.mount("/static", GZipMiddleware(StaticFiles(directory=HERE / "static")), name="static")
