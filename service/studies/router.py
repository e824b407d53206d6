"""`/v1/studies`: submit, list, poll, cancel, and read what a study found."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.artifacts import artifact_response
from service.dependencies import Parts, ReadSession, TheParts
from service.errors import Problem, not_found
from service.lifecycle import StudyState
from service.paging import DEFAULT_LIMIT, MAX_LIMIT, page_of
from service.queue.outbox import left_to_the_reaper, publish_behind_answer, publish_due
from service.store.models import ArtifactRow, EventRow, StudyRow
from service.store.stages import wake_followers
from service.store.studies import request_cancel
from service.studies.allocations import router as allocations
from service.studies.evaluations import router as evaluations
from service.studies.idempotency import IdempotencyKey, make_once
from service.studies.listed import listed_studies
from service.studies.printed import router as printed
from service.studies.schemas import (
    ArtifactList,
    ArtifactView,
    CloneRequest,
    EventList,
    EventView,
    StudyPage,
    StudyRequest,
    StudyView,
)
from service.studies.submit import clone_study, retry_study, submit_study
from service.studies.view import SeenStudy, see_study, study_summary
from service.times import iso

router = APIRouter(prefix="/v1/studies", tags=["studies"])
LOOK_EVERY_S = 0.25
router.include_router(allocations)
router.include_router(evaluations)
router.include_router(printed)


@router.post("", status_code=201, responses={200: {"model": StudyView}})
def post_study(
    request: Request,
    body: StudyRequest,
    response: Response,
    parts: TheParts,
    after: BackgroundTasks,
    idempotency_key: IdempotencyKey = None,
) -> StudyView:
    """Submit a study: 201 and its Location; 200 when the Idempotency-Key made it before."""
    sent = body.model_dump(mode="json")
    made = make_once(request, parts, idempotency_key, sent, lambda session: submit_study(session, parts.settings, body))
    return _made(parts, response, after, *made)


@router.post("/{study_id}/retry", status_code=201, responses={200: {"model": StudyView}})
def post_retry(
    request: Request,
    study_id: str,
    response: Response,
    parts: TheParts,
    after: BackgroundTasks,
    idempotency_key: IdempotencyKey = None,
) -> StudyView:
    """Try a failed or cancelled study again as a new one; what it finished or saved is not computed again."""

    def make(session: Session) -> str:
        return retry_study(session, parts.settings, _own(session, study_id))

    return _made(parts, response, after, *make_once(request, parts, idempotency_key, None, make))


@router.post("/{study_id}/clone", status_code=201, responses={200: {"model": StudyView}})
def post_clone(
    request: Request,
    study_id: str,
    body: CloneRequest,
    response: Response,
    parts: TheParts,
    after: BackgroundTasks,
    idempotency_key: IdempotencyKey = None,
) -> StudyView:
    """A new study that asks what this one asked, but for the fields given."""

    def make(session: Session) -> str:
        return clone_study(session, parts.settings, _own(session, study_id), body)

    sent = body.model_dump(mode="json", exclude_unset=True)
    return _made(parts, response, after, *make_once(request, parts, idempotency_key, sent, make))


def _made(parts: Parts, response: Response, after: BackgroundTasks, study_id: str, created: bool) -> StudyView:
    with parts.database.read() as session:
        seen = _seen(session, parts, study_id)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/studies/{study_id}"
    response.headers["ETag"] = seen.etag
    after.add_task(publish_behind_answer, parts.database, parts.send, resend_s=parts.settings.resend_s)
    return seen.view


@router.get("")
def list_studies(
    session: ReadSession,
    state: Annotated[list[StudyState] | None, Query()] = None,
    model: str | None = None,
    hardware: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
) -> StudyPage:
    """Studies, newest first."""
    query = listed_studies(
        states=[one.value for one in state or ()], model=model, hardware=hardware, cursor=cursor, limit=limit
    )
    rows, next_cursor = page_of(list(session.scalars(query)), limit)
    return StudyPage(items=[study_summary(row) for row in rows], next_cursor=next_cursor)


@router.get("/{study_id}", response_model=StudyView, responses={304: {"description": "Nothing new"}})
async def get_study(
    study_id: str,
    parts: TheParts,
    wait: Annotated[float, Query(ge=0, le=60)] = 0.0,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Poll a study. With If-None-Match and nothing new: 304. `wait` holds the answer until something is new."""
    seen = await run_in_threadpool(_read_study, parts, study_id)
    known = if_none_match if if_none_match is not None or not wait else seen.etag
    deadline = time.monotonic() + min(wait, parts.settings.wait_limit_s)
    while _same(known, seen.etag) and not seen.view.is_terminal and time.monotonic() < deadline:
        await anyio.sleep(LOOK_EVERY_S)
        seen = await run_in_threadpool(_read_study, parts, study_id)
    headers = {"ETag": seen.etag}
    if not seen.view.is_terminal:
        headers["Retry-After"] = str(max(1, round(parts.settings.poll_s)))
    if _same(if_none_match, seen.etag):
        return Response(status_code=304, headers=headers)
    return JSONResponse(seen.view.model_dump(mode="json"), headers=headers)


@router.post("/{study_id}/cancel", status_code=202)
def cancel_study(study_id: str, parts: TheParts, after: BackgroundTasks) -> StudyView:
    """Ask a study to stop. Asking twice is asking once; a finished study answers 409 `state_conflict`."""
    with parts.database.write() as session:
        study, stoppable = request_cancel(session, study_id)
    if study is None:
        raise not_found("study", study_id)
    if not stoppable and study.cancel_requested_at is None:
        raise Problem(
            409, "state_conflict", f"the study is {study.state} already", hint="a finished study stays as it is"
        )
    after.add_task(_free_followers, parts)
    with parts.database.read() as session:
        return _seen(session, parts, study_id).view


def _free_followers(parts: Parts) -> None:
    """Other studies go on with what this one no longer does."""
    with left_to_the_reaper():
        if wake_followers(parts.database):
            publish_due(parts.database, parts.send, resend_s=parts.settings.resend_s)


@router.get("/{study_id}/events")
def list_events(
    study_id: str,
    session: ReadSession,
    after: Annotated[int, Query(ge=0, lt=1 << 63)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> EventList:
    """What happened, oldest first; `after` is the last `seq` already seen."""
    _must_exist(session, study_id)
    query = select(EventRow).where(EventRow.study_id == study_id, EventRow.seq > after).order_by(EventRow.seq)
    rows = session.scalars(query.limit(limit))
    return EventList(items=[EventView(seq=row.seq, at=iso(row.at), kind=row.kind, data=row.data) for row in rows])


@router.get("/{study_id}/artifacts")
def list_artifacts(study_id: str, session: ReadSession) -> ArtifactList:
    """The files the study made."""
    _must_exist(session, study_id)
    rows = session.scalars(
        select(ArtifactRow).where(ArtifactRow.study_id == study_id).order_by(ArtifactRow.target, ArtifactRow.name)
    )
    return ArtifactList(
        items=[
            ArtifactView(
                id=row.id,
                name=row.name,
                target=row.target,
                media_type=row.media_type,
                sha256=row.sha256,
                size_bytes=row.size_bytes,
                href=f"/v1/artifacts/{row.id}",
            )
            for row in rows
        ]
    )


@router.get("/{study_id}/front")
def get_front(
    study_id: str, session: ReadSession, parts: TheParts, target: Annotated[int, Query(ge=0, lt=1 << 31)] = 0
) -> Any:
    """The Pareto front of one target, as the study computed it."""
    return JSONResponse(_published_json(session, parts, study_id, target, "front.json"))


@router.get("/{study_id}/report", responses={200: {"content": {"application/json": {}, "text/html": {}}}})
def get_report(
    request: Request,
    study_id: str,
    session: ReadSession,
    parts: TheParts,
    target: Annotated[int, Query(ge=0, lt=1 << 31)] = 0,
    format: Literal["json", "html"] = "json",
) -> Response:
    """The report of one target, as JSON or as one self-contained page."""
    if format == "html":
        return artifact_response(
            request, parts.blobs, _published(session, study_id, target, "report.html"), inline=True
        )
    return JSONResponse(_published_json(session, parts, study_id, target, "report.json"))


def _must_exist(session: ReadSession, study_id: str) -> StudyRow:
    study = session.get(StudyRow, study_id)
    if study is None:
        raise not_found("study", study_id)
    return study


def _own(session: Session, study_id: str) -> StudyRow:
    """A study that a user submitted, not the run of an allocation."""
    study = _must_exist(session, study_id)
    if study.parent_id is not None:
        raise not_found("study", study_id)
    return study


def _seen(session: ReadSession, parts: Parts, study_id: str) -> SeenStudy:
    seen = see_study(session, study_id, silent_s=parts.settings.worker_silent_s)
    if seen is None:
        raise not_found("study", study_id)
    return seen


def _read_study(parts: Parts, study_id: str) -> SeenStudy:
    with parts.database.read() as session:
        return _seen(session, parts, study_id)


def _same(known: str | None, etag: str) -> bool:
    """RFC 9110 weak comparison of If-None-Match."""
    if known is None:
        return False
    return known.strip() == "*" or etag.removeprefix("W/") in (
        tag.strip().removeprefix("W/") for tag in known.split(",")
    )


def _published(session: ReadSession, study_id: str, target: int, name: str) -> ArtifactRow:
    study = _must_exist(session, study_id)
    row = session.scalars(
        select(ArtifactRow).where(
            ArtifactRow.study_id == study_id, ArtifactRow.target == target, ArtifactRow.name == name
        )
    ).first()
    if row is not None:
        return row
    if target >= len(study.spec["targets"]):
        raise not_found("target", str(target))
    finished = study.finished_at is not None
    raise Problem(
        409,
        "not_ready",
        f"the study is {study.state} and has no {name} for target {target}",
        hint="see its error" if finished else "poll the study until is_terminal",
        retry_after_s=None if finished else 2,
    )


def _published_json(session: ReadSession, parts: Parts, study_id: str, target: int, name: str) -> Any:
    with parts.blobs.open(_published(session, study_id, target, name).sha256) as file:
        return json.load(file)
