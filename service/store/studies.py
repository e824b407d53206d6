"""Studies as rows: creation, locking, events, cancellation and the state that follows from the stages.

Locking rule: a transaction that changes a stage first locks its study (`lock_study`). So writers of one study
come one after the other, counters need no luck, and no two transactions wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, insert, select, update
from sqlalchemy.orm import Session

from service.canonical import content_key
from service.ids import new_id
from service.lifecycle import (
    TERMINAL_STUDIES,
    StageState,
    StudyState,
    check_study_transition,
    study_state,
)
from service.store.database import database_now
from service.store.models import EventRow, StageEdgeRow, StageRow, StudyRow, StudyTargetRow
from service.studies.plan import PlannedStage


def now(session: Session) -> float:
    """The database's clock, in seconds since 1970."""
    return float(session.execute(select(database_now())).scalar_one())


def rows_changed(result: object) -> int:
    """How many rows an UPDATE or DELETE changed."""
    return cast("CursorResult[Any]", result).rowcount


def create_study(
    session: Session, *, name: str, spec: dict[str, Any], stages: Sequence[PlannedStage], max_attempts: int
) -> StudyRow:
    """A new study with its stages; those that wait for nothing are queued at once."""
    at = now(session)
    study = StudyRow(
        id=new_id("study"),
        name=name,
        model_id=spec["model"],
        dataset_id=spec["dataset"],
        spec=spec,
        spec_hash=content_key(spec),
        state=StudyState.QUEUED.value,
        version=0,
        created_at=at,
        updated_at=at,
    )
    session.add(study)
    session.flush()
    session.execute(
        insert(StudyTargetRow),
        [
            {"study_id": study.id, "position": position, "hardware": target["hardware"]}
            for position, target in enumerate(spec["targets"])
        ],
    )
    ids = [new_id("stage") for _ in stages]
    session.execute(
        insert(StageRow),
        [
            {
                "id": stage_id,
                "study_id": study.id,
                "position": position,
                "kind": stage.kind,
                "shard": stage.shard,
                "target": stage.target,
                "queue": stage.queue,
                "state": (StageState.BLOCKED if stage.after else StageState.QUEUED).value,
                "pending": len(stage.after),
                "attempt": 0,
                "max_attempts": max_attempts,
                "fence": 0,
                "not_before": at,
            }
            for position, (stage_id, stage) in enumerate(zip(ids, stages, strict=True))
        ],
    )
    edges = [
        {"before_id": ids[before], "after_id": stage_id}
        for stage_id, stage in zip(ids, stages, strict=True)
        for before in stage.after
    ]
    if edges:
        session.execute(insert(StageEdgeRow), edges)
    record(session, study, "created", {"spec_hash": study.spec_hash})
    return study


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
    """Give a locked study the state its stages imply."""
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
