"""`/v1/studies/{id}/allocations`: new budgets and targets, answered from what is stored; nothing is scanned again.

| asked                                             | answered by                                                  |
|---------------------------------------------------|--------------------------------------------------------------|
| one budget, and the stored front is close enough  | a look-up in this process, at once                           |
| any other budgets on one of the study's targets   | a solve of the stored question by a worker, without model    |
| a new hardware profile or operating point         | the stages that are missing for it, then the same; a scan    |
|                                                   | only where its recipes are new, and only of those            |
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.blobs import Blobs
from service.dependencies import Parts, ReadSession, TheParts
from service.errors import Problem, not_found
from service.ids import new_id
from service.lifecycle import TERMINAL_STUDIES, StageState, StudyState
from service.paging import DEFAULT_LIMIT, MAX_LIMIT, page_of, page_query
from service.queue.outbox import publish_due
from service.store.models import AllocationRow, StageRow, StudyRow
from service.store.stages import create_study
from service.store.studies import now
from service.studies.fronts import look_up, read_plans
from service.studies.idempotency import IdempotencyKey, make_once
from service.studies.plan import answer_kinds, plan_study
from service.studies.schemas import (
    AllocationPage,
    AllocationRequest,
    AllocationResult,
    AllocationView,
    PlannedAllocation,
    StudyError,
)
from service.studies.submit import check_hardware, shards_now, without_device
from service.studies.view import waiting_for
from service.times import iso

router = APIRouter()
PLANS, QUESTION = "plans_0.json", "question_0.npz"
COUNTED = frozenset({"latency_ms", "size_bytes", "bops"})
"""Resources every question counts; peak memory is counted only where a budget of the target bounds it."""
LOOK_EVERY_S = 0.05
Wait = Annotated[float, Query(ge=0, le=60, description="Seconds to hold the answer until the allocation is there.")]


@router.post(
    "/{study_id}/allocations",
    status_code=201,
    responses={200: {"model": AllocationView}, 202: {"model": AllocationView}},
)
async def post_allocation(
    request: Request,
    study_id: str,
    body: AllocationRequest,
    response: Response,
    parts: TheParts,
    wait: Wait = 0.0,
    idempotency_key: IdempotencyKey = None,
) -> AllocationView:
    """Ask for an allocation under other budgets, or on another target: 201 when it is there, 202 while it is solved.

    200 when the Idempotency-Key asked it before.
    """

    def ask() -> tuple[AllocationView, bool]:
        allocation_id, made = make_once(
            request,
            parts,
            idempotency_key,
            body.model_dump(mode="json"),
            lambda session: _ask(session, parts, study_id, body),
        )
        view = _read(parts, study_id, allocation_id)
        if made and not view.is_terminal:
            publish_due(parts.database, parts.send, resend_s=parts.settings.resend_s)
        return view, made

    view, made = await run_in_threadpool(ask)
    view = await _until_there(parts, view, wait)
    response.status_code = (201 if view.is_terminal else 202) if made else 200
    response.headers["Location"] = f"/v1/studies/{study_id}/allocations/{view.id}"
    return view


@router.get("/{study_id}/allocations/{allocation_id}")
async def get_allocation(
    study_id: str, allocation_id: str, response: Response, parts: TheParts, wait: Wait = 0.0
) -> AllocationView:
    """One allocation that was asked for."""
    view = await _until_there(parts, await run_in_threadpool(_read, parts, study_id, allocation_id), wait)
    if not view.is_terminal:
        response.headers["Retry-After"] = "1"
    return view


@router.get("/{study_id}/allocations")
def list_allocations(
    study_id: str,
    session: ReadSession,
    parts: TheParts,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
) -> AllocationPage:
    """All allocations of a study: those asked for later, and those it solved itself."""
    study = _study(session, study_id)
    query = page_query(select(AllocationRow).where(AllocationRow.study_id == study_id), AllocationRow, cursor, limit)
    rows, next_cursor = page_of(list(session.scalars(query)), limit)
    planned = _planned(session, parts.blobs, study) if cursor is None else []
    return AllocationPage(items=[_view(session, parts, row) for row in rows], planned=planned, next_cursor=next_cursor)


def recent_allocations(session: Session, parts: Parts, study_id: str, most: int) -> list[AllocationView]:
    """The last allocations asked of a study, newest first."""
    asked = select(AllocationRow).where(AllocationRow.study_id == study_id)
    newest = asked.order_by(AllocationRow.created_at.desc(), AllocationRow.id.desc()).limit(most)
    return [_view(session, parts, row) for row in session.scalars(newest)]


def _ask(session: Session, parts: Parts, study_id: str, body: AllocationRequest) -> str:
    study = _study(session, study_id)
    position, place = _place(study, body)
    target = {**place, "budgets": body.model_dump(mode="json")["budgets"], "tolerance": None}
    if position is None:
        check_hardware(session, target["hardware"], "/target/hardware")
    else:
        solved = _solved(session, study, position)
        plans = read_plans(parts.blobs, solved[PLANS])
        metric = body.metric or _winning_metric(study, position, plans)
        result = None if body.exact else look_up(plans, target["budgets"], metric)
        if result is not None and result["gap"] <= body.within:
            return _enter(session, study, position, target, metric, "front", result=result)
        counted = COUNTED | set(study.spec["targets"][position]["budgets"])
        if QUESTION in solved and set(target["budgets"]) <= counted:
            run = _run(session, parts, study, target, metric, {QUESTION: solved[QUESTION]})
            return _enter(session, study, position, target, metric, "solved", run_id=run)
    run = _run(session, parts, study, target, body.metric, {})
    return _enter(session, study, position, target, body.metric, "solved", run_id=run)


def _run(
    session: Session, parts: Parts, study: StudyRow, target: dict[str, Any], metric: str | None, files: dict[str, str]
) -> str:
    """The stages that find the allocation, as a study of their own that no list shows."""
    spec = {name: value for name, value in study.spec.items() if name != "evaluator"}
    spec |= {"targets": [target], **({"metric": metric} if metric else {}), **({"files": files} if files else {})}
    stages = plan_study(
        spec,
        answer_kinds(from_question=bool(files)),
        shards=shards_now(session, parts.settings),
        anywhere=without_device(session, parts.settings, spec),
    )
    name = f"allocation of {study.name}"[:200]
    return create_study(
        session, name=name, spec=spec, stages=stages, max_attempts=parts.settings.max_attempts, parent_id=study.id
    ).id


def _enter(
    session: Session,
    study: StudyRow,
    position: int | None,
    target: dict[str, Any],
    metric: str | None,
    origin: str,
    *,
    run_id: str | None = None,
    result: dict[str, Any] | None = None,
) -> str:
    row = AllocationRow(
        id=new_id("allocation"),
        study_id=study.id,
        position=position,
        target=target,
        metric=metric,
        origin=origin,
        run_id=run_id,
        result=result,
        created_at=now(session),
    )
    session.add(row)
    session.flush()
    return row.id


def _place(study: StudyRow, body: AllocationRequest) -> tuple[int | None, dict[str, Any]]:
    """The asked target without goals, and its position among the study's own."""
    places = [
        {"hardware": target["hardware"], "operating_point": target["operating_point"]}
        for target in study.spec["targets"]
    ]
    if isinstance(body.target, int):
        if body.target >= len(places):
            raise not_found("target", str(body.target))
        return body.target, places[body.target]
    place = body.target.model_dump(mode="json")
    return (places.index(place), place) if place in places else (None, place)


def _study(session: Session, study_id: str) -> StudyRow:
    study = session.get(StudyRow, study_id)
    if study is None or study.parent_id is not None:
        raise not_found("study", study_id)
    return study


def _solved(session: Session, study: StudyRow, position: int) -> dict[str, str]:
    """The files of a target's solve stage, sha256 by name. Raises `Problem` 409 `not_ready` before there are any."""
    outputs = session.scalar(
        select(StageRow.outputs).where(
            StageRow.study_id == study.id,
            StageRow.kind == "solve",
            StageRow.target == position,
            StageRow.state == StageState.SUCCEEDED.value,
        )
    )
    files = {output["name"]: output["sha256"] for output in outputs or []}
    if PLANS not in files:
        is_over = study.finished_at is not None
        raise Problem(
            409,
            "not_ready",
            f"the study is {study.state} and has not solved target {position}",
            hint="see its error" if is_over else "poll the study until its solve stage has succeeded",
            retry_after_s=None if is_over else 2,
        )
    return files


def _winning_metric(study: StudyRow, position: int, plans: dict[str, Any]) -> str | None:
    """The metric whose allocation won the target's verdict; None where a baseline did or there is no verdict."""
    verdicts = study.verdicts or []
    chosen = verdicts[position].get("chosen") if len(verdicts) == len(study.spec["targets"]) else None
    return next((plan["metric"] for plan in plans["plans"] if plan["name"] == chosen), None)


def _planned(session: Session, blobs: Blobs, study: StudyRow) -> list[PlannedAllocation]:
    rows = session.execute(
        select(StageRow.target, StageRow.outputs)
        .where(StageRow.study_id == study.id, StageRow.kind == "solve", StageRow.state == StageState.SUCCEEDED.value)
        .order_by(StageRow.target)
    ).all()
    return [
        PlannedAllocation(
            position=row.target, **{name: plan[name] for name in PlannedAllocation.model_fields if name != "position"}
        )
        for row in rows
        for output in row.outputs or []
        if output["name"] == PLANS
        for plan in read_plans(blobs, output["sha256"])["plans"]
    ]


def _read(parts: Parts, study_id: str, allocation_id: str) -> AllocationView:
    with parts.database.read() as session:
        row = session.get(AllocationRow, allocation_id)
        if row is None or row.study_id != study_id:
            raise not_found("allocation", allocation_id)
        return _view(session, parts, row)


def _view(session: Session, parts: Parts, row: AllocationRow) -> AllocationView:
    run = session.get(StudyRow, row.run_id) if row.run_id is not None else None
    state = StudyState.SUCCEEDED if run is None else StudyState(run.state)
    result = row.result
    if run is not None and state is StudyState.SUCCEEDED:
        found = select(StageRow.summary).where(StageRow.study_id == run.id, StageRow.kind == "answer")
        result = (session.scalar(found) or {}).get("answer")
    return AllocationView(
        id=row.id,
        study=row.study_id,
        position=row.position,
        target=row.target,
        origin="solved" if row.origin == "solved" else "front",
        state=state.value,
        is_terminal=state in TERMINAL_STUDIES,
        result=None if result is None else AllocationResult(**{**result, "limits": _numbers(result["limits"])}),
        error=StudyError(**run.error) if run is not None and run.error else None,
        waiting_for=None if run is None else waiting_for(session, run, silent_s=parts.settings.worker_silent_s),
        created_at=iso(row.created_at),
    )


def _numbers(limits: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in limits.items() if isinstance(value, int | float)}


async def _until_there(parts: Parts, view: AllocationView, wait_s: float) -> AllocationView:
    deadline = time.monotonic() + min(wait_s, parts.settings.wait_limit_s)
    while not view.is_terminal and time.monotonic() < deadline:
        await anyio.sleep(LOOK_EVERY_S)
        view = await run_in_threadpool(_read, parts, view.study, view.id)
    return view
