"""Health: `/healthz` says the process answers, `/readyz` that it can do its work."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from service.dependencies import Parts, TheParts
from service.store.fleet import live_workers
from service.store.migrate import is_current
from service.times import iso

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"]


class WorkerHealth(BaseModel):
    """A live worker; `sandbox` is the isolation its children get: namespaces, rlimits or off."""

    id: str
    queues: list[str]
    sandbox: str
    version: str
    seen_at: str | None


class Readiness(BaseModel):
    """`ready` needs the database at the newest schema; workers are told, not required."""

    ready: bool
    database: str
    schema_current: bool
    workers: list[WorkerHealth]


@router.get("/healthz")
def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Readiness}})
def readyz(response: Response, parts: TheParts) -> Readiness:
    """The database answers and has the newest schema."""
    readiness = _readiness(parts)
    response.status_code = 200 if readiness.ready else 503
    return readiness


def _readiness(parts: Parts) -> Readiness:
    kind = "sqlite" if parts.database.is_sqlite else "postgresql"
    try:
        if not is_current(parts.database):
            return Readiness(ready=False, database=kind, schema_current=False, workers=[])
        with parts.database.read() as session:
            workers = [
                WorkerHealth(
                    id=row.id, queues=row.queues, sandbox=row.sandbox, version=row.version, seen_at=iso(row.seen_at)
                )
                for row in live_workers(session, parts.settings.worker_silent_s)
            ]
    except SQLAlchemyError as error:
        return Readiness(ready=False, database=f"{kind}: {type(error).__name__}", schema_current=False, workers=[])
    return Readiness(ready=True, database=kind, schema_current=True, workers=workers)
