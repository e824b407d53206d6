"""Stages as rows: made with their study, satisfied from what is stored, shared while they live, and finished.

A stage is ready when nothing is left that it waits for. In the transaction that makes it ready its input is hashed: a
finished stage with that input satisfies it at once; one that is queued or running in another study is followed; only
else is it queued. `live_stages` holds the one stage that works on an input, so that two studies never both do. Every
function here expects its study locked, except `wake_followers`, which locks one study after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, exists, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.canonical import content_key
from service.ids import new_id
from service.lifecycle import StageState, StudyState
from service.store.database import Database, database_now
from service.store.models import (
    ArtifactRow,
    LiveStageRow,
    SavedPartRow,
    StageEdgeRow,
    StageRow,
    StudyRow,
    StudyTargetRow,
)
from service.store.studies import lock_study, now, record, rows_changed, settle, stop_waiting_stages
from service.studies.inputs import InputConflict, InputDeleted, stage_inputs
from service.studies.plan import PlannedStage, kind_named

WAKE_BATCH = 100
_WITHOUT_ORM_SYNC = {"synchronize_session": False}


def create_study(
    session: Session,
    *,
    name: str,
    spec: dict[str, Any],
    stages: Sequence[PlannedStage],
    max_attempts: int,
    parent_id: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> StudyRow:
    """A new study with its stages; what is stored satisfies its first ones at once, the others are queued.

    `origin` says what it was made from, for its first event.
    """
    at = now(session)
    study = StudyRow(
        id=new_id("study" if parent_id is None else "run"),
        name=name,
        model_id=spec["model"],
        dataset_id=spec["dataset"],
        spec=spec,
        spec_hash=content_key(spec),
        state=StudyState.QUEUED.value,
        version=0,
        created_at=at,
        updated_at=at,
        parent_id=parent_id,
    )
    session.add(study)
    session.flush()
    session.execute(
        insert(StudyTargetRow),
        [
            {"study_id": study.id, "position": position, "hardware": target["hardware"], "created_at": at}
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
                "state": StageState.BLOCKED.value,
                "pending": len(stage.after) + (stage.awaits is not None),
                "awaits": stage.awaits,
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
    record(session, study, "created", {"spec_hash": study.spec_hash, **(origin or {})})
    advance(session, study)
    settle(session, study)
    return study


def advance(session: Session, study: StudyRow) -> None:
    """Satisfy, follow or queue every stage that has become ready, and what becomes ready by that."""
    while ready := _ready(session, study):
        for stage in ready:
            if study.error is None and study.cancel_requested_at is None:
                _start(session, study, stage)
        if study.error is not None or study.cancel_requested_at is not None:
            stop_waiting_stages(session, study)
            return


def _ready(session: Session, study: StudyRow) -> list[StageRow]:
    query = select(StageRow).where(
        StageRow.study_id == study.id,
        StageRow.state == StageState.BLOCKED.value,
        StageRow.pending == 0,
        StageRow.follows.is_(None),
    )
    # Every study enters its inputs kind by kind, so that no two wait for each other's.
    return list(session.scalars(query.order_by(StageRow.position), execution_options={"populate_existing": True}))


def _start(session: Session, study: StudyRow, stage: StageRow) -> None:
    try:
        inputs = stage_inputs(session, study, stage)
    except InputDeleted as error:
        hint = "upload the dataset again and start the study anew"
        _refuse(session, study, stage, ("user", "dataset_deleted", str(error), hint))
        return
    except InputConflict as error:
        hint = "this is a fault of the server; report it with the study's id"
        _refuse(session, study, stage, ("infrastructure", "output_conflict", str(error), hint))
        return
    values = {"input_key": inputs.key, "saved_key": inputs.saved_key}
    if _satisfy(session, study, stage, values, _whole_of(session, study, stage)):
        return
    entered = _enter_live(session, inputs.key, stage.id)
    if _satisfy(session, study, stage, values):  # its twin ended while we waited for that stage's transaction
        return
    if entered:
        queued = {"state": StageState.QUEUED.value, "not_before": database_now(), "published_at": None}
        session.execute(_blocked(stage).values(**values, **queued))
        return
    leader = session.scalar(select(LiveStageRow.stage_id).where(LiveStageRow.input_key == inputs.key))
    session.execute(_blocked(stage).values(**values, follows=leader))
    record(session, study, "stage_shared", {"stage": stage.kind, "target": stage.target})


def _blocked(stage: StageRow) -> Any:
    return (
        update(StageRow)
        .where(StageRow.id == stage.id, StageRow.state == StageState.BLOCKED.value)
        .execution_options(**_WITHOUT_ORM_SYNC)
    )


def _enter_live(session: Session, input_key: str, stage_id: str) -> bool:
    """Enter the stage as the one that works on an input; False when there is one. Waits for a writer of the same."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    entering = dialect.insert(LiveStageRow).values(input_key=input_key, stage_id=stage_id)
    entered = session.execute(entering.on_conflict_do_nothing().returning(LiveStageRow.stage_id)).scalar_one_or_none()
    return entered is not None


def _satisfy(
    session: Session, study: StudyRow, stage: StageRow, values: dict[str, Any], whole: StageRow | None = None
) -> bool:
    """End a ready stage with the output of a finished one that had the same input, or because its whole has ended."""
    twin = _finished(session, values["input_key"])
    if twin is not None:
        outputs, summary, reused_from = twin.outputs, twin.summary, twin.id
    elif whole is not None:
        outputs, summary, reused_from = [], {}, whole.id
    else:
        return False
    ended = {"state": StageState.SUCCEEDED.value, "started_at": database_now(), "finished_at": database_now()}
    found = {"outputs": outputs, "summary": summary, "reused_from": reused_from, "follows": None}
    session.execute(_blocked(stage).values(**values, **ended, **found))
    close_succeeded(session, study, stage, outputs or [], reused=True)
    return True


def _finished(session: Session, input_key: str) -> StageRow | None:
    query = select(StageRow).where(StageRow.input_key == input_key, StageRow.state == StageState.SUCCEEDED.value)
    return session.scalars(query.order_by(StageRow.finished_at.desc()).limit(1)).first()


def _whole_of(session: Session, study: StudyRow, stage: StageRow) -> StageRow | None:
    """A finished stage, of any study, of those that did what this shard is a part of; None while one is missing."""
    kind = kind_named(stage.kind)
    if kind.shards is None:
        return None
    wholes = session.scalars(select(StageRow).where(StageRow.study_id == study.id, StageRow.kind == kind.shards))
    found = [_finished(session, stage_inputs(session, study, whole).key) for whole in wholes]
    return found[0] if all(found) else None


def _refuse(session: Session, study: StudyRow, stage: StageRow, reason: tuple[str, str, str, str]) -> None:
    category, code, message, hint = reason
    error = {"category": category, "code": code, "message": message, "hint": hint, "stage": stage.kind}
    failed = {"state": StageState.FAILED.value, "error": error, "finished_at": database_now()}
    session.execute(_blocked(stage).values(**failed))
    fail_study(session, study, error)


def close_succeeded(
    session: Session, study: StudyRow, stage: StageRow, outputs: Iterable[Mapping[str, Any]], *, reused: bool
) -> None:
    """What follows from a stage's success: its artifacts, one less to wait for behind it, and the event."""
    if kind_named(stage.kind).publishes:
        at = now(session)
        rows = [
            {
                "id": new_id("artifact"),
                "study_id": study.id,
                "stage_id": stage.id,
                "target": stage.target,
                "created_at": at,
                **output,
            }
            for output in outputs
        ]
        if rows:
            session.execute(insert(ArtifactRow), rows)
    followers = select(StageEdgeRow.after_id).where(StageEdgeRow.before_id == stage.id)
    count_down(session, followers)
    which = {"stage": stage.kind, "shard": stage.shard, "target": stage.target}
    record(session, study, "stage_succeeded", {**which, "reused": reused})


def count_down(session: Session, stage_ids: Any) -> None:
    """One less that these blocked stages wait for. The study's lock makes the counter safe."""
    session.execute(
        update(StageRow)
        .where(StageRow.id.in_(stage_ids), StageRow.state == StageState.BLOCKED.value)
        .values(pending=StageRow.pending - 1)
        .execution_options(**_WITHOUT_ORM_SYNC)
    )


def fail_study(session: Session, study: StudyRow, error: dict[str, Any]) -> None:
    """A stage failed: the study keeps the first error, and what has not begun never does."""
    if study.error is None:
        study.error = error
    record(session, study, "stage_failed", {"stage": error["stage"], "code": error["code"]})
    stop_waiting_stages(session, study)
    settle(session, study)


def wake_followers(database: Database) -> int:
    """Free the stages whose leader has ended, one study after the other; returns how many.

    Cheap where there is none. A crash before it leaves the followers to the next call, the reaper's at the latest.
    """
    leader_lives = exists().where(LiveStageRow.stage_id == StageRow.follows)
    waiting = select(StageRow.id, StageRow.study_id).where(
        StageRow.follows.is_not(None), StageRow.state == StageState.BLOCKED.value, ~leader_lives
    )
    with database.read() as session:
        found = session.execute(waiting.limit(WAKE_BATCH)).all()
    woken = 0
    for stage_id, study_id in found:
        with database.write() as session:
            study = lock_study(session, study_id)
            freed = (
                update(StageRow)
                .where(StageRow.id == stage_id, StageRow.state == StageState.BLOCKED.value, ~leader_lives)
                .values(follows=None)
                .returning(StageRow.id)
                .execution_options(**_WITHOUT_ORM_SYNC)
            )
            if study is None or session.execute(freed).one_or_none() is None:
                continue
            advance(session, study)
            settle(session, study)
            woken += 1
    return woken


def study_outputs(session: Session, study_id: str) -> dict[str, list[str]]:
    """The files that the study's finished stages wrote: sha256 each, by the stage's input key."""
    rows = session.execute(
        select(StageRow.input_key, StageRow.outputs).where(
            StageRow.study_id == study_id, StageRow.state == StageState.SUCCEEDED.value, StageRow.input_key.is_not(None)
        )
    ).all()
    return {str(row.input_key): [output["sha256"] for output in row.outputs or []] for row in rows}


def forget_outputs(session: Session, input_keys: Collection[str]) -> None:
    """Outputs of these inputs are no longer whole: nothing is satisfied by them again."""
    session.execute(
        update(StageRow)
        .where(StageRow.input_key.in_(input_keys), StageRow.state == StageState.SUCCEEDED.value)
        .values(input_key=None)
        .execution_options(**_WITHOUT_ORM_SYNC)
    )


def forget_saved_parts(session: Session, kept_s: float) -> int:
    """Parts older than that are taken up by nothing any more; returns how many there were."""
    old = delete(SavedPartRow).where(SavedPartRow.created_at < database_now() - kept_s)
    return rows_changed(session.execute(old.execution_options(**_WITHOUT_ORM_SYNC)))
