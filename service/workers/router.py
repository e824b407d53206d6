"""`/v1/workers`: the processes that take stages, and what they do now."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import select

from service.dependencies import ReadSession, TheParts
from service.lifecycle import StageState
from service.store.models import StageRow, WorkerRow
from service.store.studies import now
from service.times import iso
from service.version import VERSION

router = APIRouter(prefix="/v1/workers", tags=["workers"])


class RunningStage(BaseModel):
    """A stage a worker holds."""

    study: str
    kind: str
    target: int | None
    started_at: str | None


class WorkerView(BaseModel):
    """A worker. `live`: heard of lately. `sandbox`: what its children are kept in, `namespaces`, `rlimits` or `off`."""

    id: str
    host: str
    version: str
    same_version: bool
    live: bool
    queues: list[str]
    sandbox: str
    running: list[RunningStage]
    started_at: str | None
    seen_at: str | None


class WorkerList(BaseModel):
    items: list[WorkerView]


@router.get("")
def list_workers(session: ReadSession, parts: TheParts) -> WorkerList:
    """All workers not yet forgotten, the oldest first."""
    at = now(session)
    held: dict[str, list[RunningStage]] = {}
    running = select(StageRow).where(StageRow.state == StageState.RUNNING.value).order_by(StageRow.started_at)
    for stage in session.scalars(running):
        view = RunningStage(
            study=stage.study_id, kind=stage.kind, target=stage.target, started_at=iso(stage.started_at)
        )
        held.setdefault(stage.worker_id or "", []).append(view)
    rows = session.scalars(select(WorkerRow).order_by(WorkerRow.started_at, WorkerRow.id))
    return WorkerList(
        items=[
            WorkerView(
                id=row.id,
                host=row.host,
                version=row.version,
                same_version=row.version == VERSION,
                live=row.seen_at > at - parts.settings.worker_silent_s,
                queues=row.queues,
                sandbox=row.sandbox,
                running=held.get(row.id, []),
                started_at=iso(row.started_at),
                seen_at=iso(row.seen_at),
            )
            for row in rows
        ]
    )
