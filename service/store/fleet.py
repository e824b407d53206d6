"""Fleet as rows: workers that are alive and the hardware they announced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from service.canonical import content_key
from service.store.database import database_now
from service.store.models import DeploymentRow, HardwareProfileRow, WorkerRow
from service.store.studies import now, rows_changed
from service.version import VERSION

DEPLOYMENT = "server"


def live_queues(session: Session, silent_s: float, *, of_this_version: bool = True) -> frozenset[str]:
    """Queues that some worker heard of in the last `silent_s` seconds takes stages from; workers of another version
    than this process take none."""
    query = select(WorkerRow.queues).where(WorkerRow.seen_at > database_now() - silent_s)
    if of_this_version:
        query = query.where(WorkerRow.version == VERSION)
    return frozenset(queue for queues in session.scalars(query) for queue in queues)


def live_workers(session: Session, silent_s: float) -> list[WorkerRow]:
    """Workers heard of in the last `silent_s` seconds, oldest first."""
    query = select(WorkerRow).where(WorkerRow.seen_at > database_now() - silent_s).order_by(WorkerRow.started_at)
    return list(session.scalars(query))


def announce_worker(
    session: Session,
    *,
    worker_id: str,
    host: str,
    version: str,
    queues: Iterable[str],
    sandbox: str,
    profiles: Iterable[Mapping[str, Any]],
) -> None:
    """Enter a worker and the hardware it found; a known slug takes the newer document."""
    at = now(session)
    session.merge(
        WorkerRow(
            id=worker_id,
            host=host,
            version=version,
            queues=list(queues),
            sandbox=sandbox,
            started_at=at,
            seen_at=at,
        )
    )
    for profile in profiles:
        slug = str(profile["slug"])
        known = session.get(HardwareProfileRow, slug)
        session.merge(
            HardwareProfileRow(
                slug=slug,
                profile=dict(profile),
                profile_key=content_key(dict(profile)),
                source="worker",
                created_at=known.created_at if known else at,
                announced_at=at,
            )
        )


def worker_seen(session: Session, worker_id: str) -> bool:
    """The worker is alive; False when its row is gone and it must announce itself again."""
    beat = update(WorkerRow).where(WorkerRow.id == worker_id).values(seen_at=database_now())
    return rows_changed(session.execute(beat)) == 1


def worker_gone(session: Session, worker_id: str) -> None:
    """The worker ends."""
    session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def forget_silent_workers(session: Session, silent_s: float) -> int:
    """Remove workers unheard of for ten times `silent_s`."""
    old = delete(WorkerRow).where(WorkerRow.seen_at < database_now() - 10 * silent_s)
    return rows_changed(session.execute(old))


def enter_version(session: Session) -> None:
    """This process's version serves from now on: it has just brought the database to its schema."""
    session.merge(DeploymentRow(name=DEPLOYMENT, version=VERSION, changed_at=now(session)))


def serving_version(session: Session) -> str:
    """The version that serves; this process's own where none was entered yet."""
    row = session.get(DeploymentRow, DEPLOYMENT)
    return VERSION if row is None else row.version
