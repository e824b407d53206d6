"""Studies as rows: creation, locking, events, cancellation and the state that follows from the stages.

Locking rule: a transaction that changes a stage first locks its study (`lock_study`). So writers of one study
come one after the other, counters need no luck, and no two transactions wait for each other.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import CursorResult, delete, select, update
from sqlalchemy.orm import Session

from service.lifecycle import (
    TERMINAL_STUDIES,
    StageState,
    StudyState,
    check_study_transition,
    study_state,
)
from service.store.database import database_now
from service.store.models import EventRow, LiveStageRow, StageRow, StudyRow


def now(session: Session) -> float:
    """The database's clock, in seconds since 1970."""
    return float(session.execute(select(database_now())).scalar_one())


def rows_changed(result: object) -> int:
    """How many rows an UPDATE or DELETE changed."""
    return cast("CursorResult[Any]", result).rowcount


def lock_study(session: Session, study_id: str) -> StudyRow | None:
    """The study, locked until the transaction ends; None when there is no such study."""
    query = select(StudyRow).where(StudyRow.id == study_id).with_for_update()
    return session.execute(query, execution_options={"populate_existing": True}).scalar_one_or_none()


def touch(session: Session, study: StudyRow) -> float:
    """A visible change without an event: the version grows, so pollers see it."""
    at = now(session)
    study.version += 1
    study.updated_at = at
    session.flush()
    return at


def record(session: Session, study: StudyRow, kind: str, data: dict[str, Any]) -> None:
    """A visible change with an event."""
    at = touch(session, study)
    session.add(EventRow(study_id=study.id, seq=study.version, at=at, kind=kind, data=data))
    session.flush()


def stop_waiting_stages(session: Session, study: StudyRow) -> int:
    """Cancel what has not begun; running stages learn of it at their next beat."""
    waiting = (StageState.BLOCKED.value, StageState.QUEUED.value)
    return rows_changed(
        session.execute(
            update(StageRow)
            .where(StageRow.study_id == study.id, StageRow.state.in_(waiting))
            .values(state=StageState.CANCELLED.value, finished_at=database_now())
            .execution_options(synchronize_session=False)
        )
    )


def settle(session: Session, study: StudyRow) -> None:
    """Give a locked study the state its stages imply; inputs that its ended stages worked on are free for others."""
    alive = (StageState.QUEUED.value, StageState.RUNNING.value)
    ended = select(StageRow.id).where(StageRow.study_id == study.id, StageRow.state.not_in(alive))
    session.execute(
        delete(LiveStageRow).where(LiveStageRow.stage_id.in_(ended)).execution_options(synchronize_session=False)
    )
    rows = session.execute(
        select(StageRow.state, StageRow.summary).where(StageRow.study_id == study.id).order_by(StageRow.position)
    ).all()
    old = StudyState(study.state)
    new = study_state([StageState(row.state) for row in rows], cancel_requested=study.cancel_requested_at is not None)
    if new is old:
        return
    check_study_transition(old, new)
    study.state = new.value
    verdicts = [verdict for row in rows for verdict in _verdicts(row.summary)]
    study.verdicts = verdicts or None
    if new in TERMINAL_STUDIES:
        study.finished_at = now(session)
    record(session, study, "state", {"from": old.value, "to": new.value})


def _verdicts(summary: dict[str, Any] | None) -> list[Any]:
    found = (summary or {}).get("verdicts", [])
    return list(found) if isinstance(found, list) else [found]


def request_cancel(session: Session, study_id: str) -> tuple[StudyRow | None, bool]:
    """Ask a study to stop. Returns the study and whether it could still be stopped; asking again changes nothing."""
    study = lock_study(session, study_id)
    if study is None or StudyState(study.state) in TERMINAL_STUDIES:
        return study, False
    if study.cancel_requested_at is None:
        study.cancel_requested_at = now(session)
        record(session, study, "cancel_requested", {})
        stop_waiting_stages(session, study)
        settle(session, study)
    return study, True
