"""Claims: who may work on a stage, proven at every write.

A worker claims a queued stage by compare-and-set and gets a fence number and a lease. It renews the lease at
each beat and ends the stage with its fence; once the lease ran out and the reaper gave the stage to another, the
fence has grown and the old worker's writes change nothing. Only the database's clock counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.lifecycle import StageState
from service.store.database import Database, database_now, is_lock_timeout
from service.store.models import StageRow, StudyRow
from service.store.stage_logs import write_log
from service.store.stages import advance, close_succeeded, fail_study, wake_followers
from service.store.studies import lock_study, record, rows_changed, settle, touch

log = logging.getLogger(__name__)
REAP_BATCH = 100
BACKOFF_GROWTH = 4
_WITHOUT_ORM_SYNC = {"synchronize_session": False}


@dataclass(frozen=True)
class Claim:
    """The right to work on one stage, as long as `fence` is the newest."""

    stage_id: str
    study_id: str
    kind: str
    target: int | None
    queue: str
    spec: dict[str, Any]
    attempt: int
    fence: int


class Beat(Enum):
    """What a supervisor does after a beat."""

    GO_ON = "go_on"
    STOP = "stop"
    LOST = "lost"


@dataclass(frozen=True)
class OutputFile:
    """A file a stage wrote, already in the blob store."""

    name: str
    sha256: str
    size_bytes: int
    media_type: str = "application/octet-stream"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "size_bytes": self.size_bytes, "media_type": self.media_type}


@dataclass(frozen=True)
class StageLog:
    """The end of what an attempt at a stage printed, fit to be shown; `is_cut` when it was more."""

    attempt: int
    text: str
    is_cut: bool


def _study_of(session: Session, stage_id: str) -> StudyRow | None:
    study_id = session.scalar(select(StageRow.study_id).where(StageRow.id == stage_id))
    return None if study_id is None else lock_study(session, study_id)


def claim(database: Database, stage_id: str, *, worker_id: str, lease_s: float) -> Claim | None:
    """Take a queued stage; None when there is nothing to take: a doubled, late or reordered message."""
    with database.write() as session:
        study = _study_of(session, stage_id)
        if study is None:
            return None
        row = session.execute(
            update(StageRow)
            .where(
                StageRow.id == stage_id,
                StageRow.state == StageState.QUEUED.value,
                StageRow.not_before <= database_now(),
            )
            .values(
                state=StageState.RUNNING.value,
                attempt=StageRow.attempt + 1,
                fence=StageRow.fence + 1,
                worker_id=worker_id,
                lease_until=database_now() + lease_s,
                started_at=database_now(),
                progress=None,
                error=None,
            )
            .returning(StageRow.kind, StageRow.target, StageRow.queue, StageRow.attempt, StageRow.fence)
            .execution_options(**_WITHOUT_ORM_SYNC)
        ).one_or_none()
        if row is None:
            return None
        record(session, study, "stage_started", {"stage": row.kind, "target": row.target, "attempt": row.attempt})
        settle(session, study)
        return Claim(stage_id, study.id, row.kind, row.target, row.queue, dict(study.spec), row.attempt, row.fence)


def beat(
    database: Database,
    held: Claim,
    *,
    lease_s: float,
    progress: dict[str, Any] | None = None,
    printed: StageLog | None = None,
) -> Beat:
    """Renew the lease, tell the progress and what was printed, and learn whether to go on.

    What was printed has an address of its own and does not move the study's version.
    """
    values: dict[str, Any] = {"lease_until": database_now() + lease_s}
    if progress is not None:
        values["progress"] = progress
    with database.write() as session:
        # Progress is visible, so it moves the study's version; a bare renewal needs no lock on the study.
        study = lock_study(session, held.study_id) if progress is not None else None
        renewed = session.execute(_held(held).values(**values).returning(StageRow.id)).one_or_none()
        if renewed is None:
            return Beat.LOST
        if printed is not None:
            write_log(session, held.stage_id, attempt=printed.attempt, text=printed.text, is_cut=printed.is_cut)
        if study is None:
            study = session.get(StudyRow, held.study_id)
        else:
            touch(session, study)
        assert study is not None
        return Beat.STOP if study.cancel_requested_at is not None or study.error is not None else Beat.GO_ON


def checkpoint(database: Database, held: Claim, write: Callable[[Session], int]) -> bool:
    """Keep part of a stage's work: `write` adds rows and returns how many are new. False when the claim is lost.

    The fence is proven in the transaction that writes. An attempt that brought something new starts the count of
    attempts anew: a long stage may lose many workers as long as each carries it on.
    """
    with database.write() as session:
        mine = select(StageRow.id).where(
            StageRow.id == held.stage_id, StageRow.fence == held.fence, StageRow.state == StageState.RUNNING.value
        )
        if session.execute(mine.with_for_update()).one_or_none() is None:
            return False
        if write(session) > 0:
            session.execute(_held(held).values(attempt=1))
    return True


def set_input_key(database: Database, held: Claim, input_key: str) -> bool:
    """Write down what the claimed stage's input hashes to; False when the claim is lost."""
    with database.write() as session:
        return rows_changed(session.execute(_held(held).values(input_key=input_key))) == 1


def finished_twin(database: Database, input_key: str) -> tuple[str, list[OutputFile], dict[str, Any]] | None:
    """A succeeded stage with the same input: its id, files and summary."""
    with database.read() as session:
        row = session.execute(
            select(StageRow.id, StageRow.outputs, StageRow.summary)
            .where(StageRow.input_key == input_key, StageRow.state == StageState.SUCCEEDED.value)
            .order_by(StageRow.finished_at.desc())
            .limit(1)
        ).one_or_none()
    if row is None:
        return None
    return row.id, [OutputFile(**output) for output in row.outputs or []], dict(row.summary or {})


def succeed(
    database: Database,
    held: Claim,
    *,
    outputs: list[OutputFile],
    summary: dict[str, Any],
    reused_from: str | None = None,
    also: Callable[[Session], None] | None = None,
) -> bool:
    """Finish a stage, its files, what waits for it and the study's state together. False when the claim is lost.

    `also` writes, in the same transaction, what else follows from the output.
    """
    with database.write() as session:
        study = lock_study(session, held.study_id)
        finished = _close(
            session,
            held,
            StageState.SUCCEEDED,
            outputs=[output.to_json() for output in outputs],
            summary=summary,
            reused_from=reused_from,
        )
        if study is None or not finished:
            return False
        if also is not None:
            also(session)
        stage = session.get_one(StageRow, held.stage_id)
        files = [output.to_json() for output in outputs]
        close_succeeded(session, study, stage, files, reused=reused_from is not None)
        advance(session, study)
        settle(session, study)
    wake_followers(database)
    return True


def fail(database: Database, held: Claim, error: dict[str, Any]) -> bool:
    """End a stage and its study with `{category, code, message, hint, stage}`. False when the claim is lost."""
    with database.write() as session:
        study = lock_study(session, held.study_id)
        if study is None or not _close(session, held, StageState.FAILED, error=error):
            return False
        fail_study(session, study, error)
    wake_followers(database)
    return True


def cancel(database: Database, held: Claim) -> bool:
    """End a stage whose child was stopped on request. False when the claim is lost."""
    with database.write() as session:
        study = lock_study(session, held.study_id)
        if study is None or not _close(session, held, StageState.CANCELLED):
            return False
        record(session, study, "stage_cancelled", _named(held))
        settle(session, study)
    wake_followers(database)
    return True


def give_back(database: Database, held: Claim, error: dict[str, Any], *, backoff_s: float) -> bool:
    """The child died: queue the stage again, or fail it after its last attempt. False when the claim is lost."""
    with database.write() as session:
        study = lock_study(session, held.study_id)
        if study is None:
            return False
        given = _retry_or_fail(session, study, _held(held), held.stage_id, error, backoff_s)
    wake_followers(database)
    return given


def put_back(database: Database, held: Claim) -> bool:
    """The worker ends in good order: queue the stage again, and the attempt does not count."""
    with database.write() as session:
        study = lock_study(session, held.study_id)
        returned = _held(held).values(
            state=StageState.QUEUED.value,
            attempt=StageRow.attempt - 1,
            fence=StageRow.fence + 1,
            lease_until=None,
            published_at=None,
            not_before=database_now(),
            progress=None,
        )
        if study is None or rows_changed(session.execute(returned)) != 1:
            return False
        record(session, study, "stage_put_back", _named(held))
        settle(session, study)
    return True


def reap(database: Database, *, backoff_s: float) -> int:
    """Take stages from workers whose lease ran out; returns how many. Safe to run in several processes at once."""
    expired = select(StageRow.id, StageRow.study_id, StageRow.kind).where(
        StageRow.state == StageState.RUNNING.value, StageRow.lease_until < database_now()
    )
    with database.read() as session:
        found = session.execute(expired.limit(REAP_BATCH)).all()
    taken = 0
    for stage_id, study_id, kind in found:
        error = {
            "category": "infrastructure",
            "code": "worker_lost",
            "message": "the worker stopped renewing its lease",
            "hint": "submit the study again; finished stages are reused",
            "stage": kind,
        }
        still_expired = (
            update(StageRow)
            .where(
                StageRow.id == stage_id,
                StageRow.state == StageState.RUNNING.value,
                StageRow.lease_until < database_now(),
            )
            .execution_options(**_WITHOUT_ORM_SYNC)
        )
        try:
            with database.write() as session:
                study = lock_study(session, study_id)
                if study is not None and _retry_or_fail(session, study, still_expired, stage_id, error, backoff_s):
                    taken += 1
        except OperationalError as problem:
            # A stopped process may hold the lock of one study; the others are not to wait for it.
            if not is_lock_timeout(problem):
                raise
            log.warning("study %s is locked; its expired stage %s waits for the next round", study_id, stage_id)
    wake_followers(database)
    return taken


def _held(held: Claim) -> Any:
    """An UPDATE of the stage that changes nothing unless the claim still holds."""
    return (
        update(StageRow)
        .where(StageRow.id == held.stage_id, StageRow.fence == held.fence, StageRow.state == StageState.RUNNING.value)
        .execution_options(**_WITHOUT_ORM_SYNC)
    )


def _close(session: Session, held: Claim, state: StageState, **values: Any) -> bool:
    closing = _held(held).values(state=state.value, lease_until=None, finished_at=database_now(), **values)
    return rows_changed(session.execute(closing)) == 1


def _retry_or_fail(
    session: Session, study: StudyRow, change: Any, stage_id: str, error: dict[str, Any], backoff_s: float
) -> bool:
    """Apply `change` (an UPDATE that guards itself) with the state a dead attempt leads to."""
    stage = session.execute(
        select(StageRow.attempt, StageRow.max_attempts, StageRow.target).where(StageRow.id == stage_id)
    ).one()
    stopping = study.cancel_requested_at is not None or study.error is not None
    last = stage.attempt >= stage.max_attempts
    values: dict[str, Any] = {"fence": StageRow.fence + 1, "lease_until": None, "error": error}
    if stopping or last:
        state = StageState.CANCELLED if stopping else StageState.FAILED
        values |= {"state": state.value, "finished_at": database_now()}
    else:
        wait_s = backoff_s * BACKOFF_GROWTH ** (stage.attempt - 1)
        values |= {
            "state": StageState.QUEUED.value,
            "published_at": None,
            "not_before": database_now() + wait_s,
            "progress": None,
        }
    if rows_changed(session.execute(change.values(**values))) != 1:
        return False
    told = {"stage": error["stage"], "target": stage.target, "attempt": stage.attempt, "code": error["code"]}
    record(session, study, "attempt_lost", told)
    if last and not stopping:
        fail_study(session, study, error)
    else:
        settle(session, study)
    return True


def _named(held: Claim) -> dict[str, Any]:
    return {"stage": held.kind, "target": held.target}
