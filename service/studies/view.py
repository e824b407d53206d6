"""A study as the API and the dashboard show it, read in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.canonical import content_key
from service.lifecycle import TERMINAL_STAGES, TERMINAL_STUDIES, StageState, StudyState
from service.store.fleet import live_queues
from service.store.models import StageRow, StudyRow
from service.store.studies import now
from service.studies.plan import EVALUATIONS, kind_named
from service.studies.schemas import Progress, StageView, StudyError, StudySummary, StudyView, WaitingFor
from service.times import iso
from service.version import VERSION

LINKS = ("cancel", "retry", "clone", "events", "log", "artifacts", "allocations", "front", "report")


@dataclass(frozen=True)
class SeenStudy:
    """A study at one moment with the ETag that stands for it."""

    view: StudyView
    etag: str


def see_study(session: Session, study_id: str, *, silent_s: float) -> SeenStudy | None:
    """The study now; None when there is no such study."""
    study = session.get(StudyRow, study_id)
    if study is None:
        return None
    stages = _stages(session, study)
    leaders = _leaders(session, stages)
    waits = waiting_for(session, study, silent_s=silent_s, stages=stages)
    at = now(session)
    shown = [leaders.get(stage.follows or "", stage) for stage in stages]
    summary = study_summary(study)
    view = StudyView(
        **summary.model_dump(),
        version=study.version,
        stage="evaluation" if waits is not None and waits.kind == "evaluations" else _current_stage(stages, shown),
        progress=_progress(stages, shown, at),
        waiting_for=waits,
        stages=[_stage_view(stage, leader, at) for stage, leader in zip(stages, shown, strict=True)],
        spec=study.spec,
        links={name: f"/v1/studies/{study.id}/{name}" for name in LINKS},
    )
    # What a followed stage does is not in this study's version, so it has its own part in the tag.
    led = [[leader.fence, leader.state, leader.progress] for leader in leaders.values()]
    return SeenStudy(view, etag_of(study.id, study.version, [waits.model_dump() if waits else None, led]))


def waiting_for(
    session: Session, study: StudyRow, *, silent_s: float, stages: Sequence[StageRow] | None = None
) -> WaitingFor | None:
    """What the study waits for when nothing of it runs, nor can: a worker, or the user's own evaluations."""
    if StudyState(study.state) in TERMINAL_STUDIES:
        return None
    stages = _stages(session, study) if stages is None else stages
    if any(stage.state == StageState.RUNNING.value for stage in stages):
        return None
    leaders = _leaders(session, stages)
    queued = [stage for stage in [*stages, *leaders.values()] if stage.state == StageState.QUEUED.value]
    live = live_queues(session, silent_s)
    if any(stage.queue in live for stage in queued) or any(
        stage.state == StageState.RUNNING.value for stage in leaders.values()
    ):
        return None
    if queued:
        queue = queued[0].queue
        other = live_queues(session, silent_s, of_this_version=False) - live
        reason = f"no live worker takes stages from the queue {queue!r}"
        if queue in other:
            reason += f"; those that do are of another version than this server's, {VERSION}"
        return WaitingFor(kind="worker", queue=queue, reason=reason)
    if any(stage.awaits == EVALUATIONS and stage.pending == 1 for stage in stages):
        reason = f"your evaluator's numbers: POST /v1/studies/{study.id}/evaluations"
        return WaitingFor(kind="evaluations", queue=None, reason=reason)
    return None


def _stages(session: Session, study: StudyRow) -> list[StageRow]:
    return list(session.scalars(select(StageRow).where(StageRow.study_id == study.id).order_by(StageRow.position)))


def _leaders(session: Session, stages: Sequence[StageRow]) -> dict[str, StageRow]:
    """Stages of other studies that do the work of some of these, by id."""
    followed = [stage.follows for stage in stages if stage.follows is not None]
    if not followed:
        return {}
    return {stage.id: stage for stage in session.scalars(select(StageRow).where(StageRow.id.in_(followed)))}


def etag_of(study_id: str, version: int, beside: object) -> str:
    """Weak, because `eta_s` moves with the clock while nothing else changed."""
    return f'W/"{study_id}.{version}.{content_key(beside)[:8]}"'


def study_summary(study: StudyRow) -> StudySummary:
    return StudySummary(
        id=study.id,
        name=study.name,
        state=study.state,
        is_terminal=StudyState(study.state) in TERMINAL_STUDIES,
        model=study.model_id,
        dataset=study.dataset_id,
        hardware=[target["hardware"] for target in study.spec["targets"]],
        verdicts=study.verdicts,
        error=StudyError(**study.error) if study.error else None,
        created_at=iso(study.created_at),
        updated_at=iso(study.updated_at),
        finished_at=iso(study.finished_at),
    )


def _current_stage(stages: Sequence[StageRow], shown: Sequence[StageRow]) -> str | None:
    for state in (StageState.RUNNING, StageState.QUEUED):
        for stage, leader in zip(stages, shown, strict=True):
            if leader.state == state.value:
                return stage.kind
    return None


def _stage_progress(stage: StageRow, at: float) -> Progress | None:
    if stage.progress is None:
        return None
    done, total = stage.progress["done"], stage.progress["total"]
    eta_s = None
    if stage.state == StageState.RUNNING.value and stage.started_at is not None and 0 < done <= total:
        eta_s = round((at - stage.started_at) * (total - done) / done, 1)
    return Progress(done=done, total=total, unit=stage.progress["unit"], eta_s=eta_s, message=stage.progress["message"])


def _progress(stages: Sequence[StageRow], shown: Sequence[StageRow], at: float) -> Progress:
    """The first running stage's progress; shards count together, and the slowest of them sets the time left."""
    running = [stage for stage in shown if stage.state == StageState.RUNNING.value and stage.progress is not None]
    told = [progress for stage in running if stage.kind == running[0].kind and (progress := _stage_progress(stage, at))]
    if told and len({progress.unit for progress in told}) == 1:
        etas = [progress.eta_s for progress in told if progress.eta_s is not None]
        return Progress(
            done=sum(progress.done for progress in told),
            total=sum(progress.total for progress in told),
            unit=told[0].unit,
            eta_s=max(etas, default=None),
            message=told[0].message,
        )
    finished = sum(StageState(stage.state) in TERMINAL_STAGES for stage in stages)
    return Progress(done=finished, total=len(stages), unit="stages", eta_s=None)


def _stage_view(stage: StageRow, leader: StageRow, at: float) -> StageView:
    return StageView(
        kind=stage.kind,
        target=stage.target,
        shard=stage.shard if kind_named(stage.kind).shards is not None else None,
        state=stage.state,
        attempt=stage.attempt,
        reused=stage.reused_from is not None,
        shared=stage.follows is not None,
        progress=_stage_progress(leader, at),
        started_at=iso(stage.started_at),
        finished_at=iso(stage.finished_at),
        error=StudyError(**stage.error) if stage.error else None,
    )
