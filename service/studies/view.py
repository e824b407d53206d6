"""A study as the API and the dashboard show it, read in one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.canonical import content_key
from service.lifecycle import TERMINAL_STAGES, TERMINAL_STUDIES, StageState, StudyState
from service.store.fleet import live_queues
from service.store.models import StageRow, StudyRow
from service.store.studies import now
from service.studies.schemas import Progress, StageView, StudyError, StudySummary, StudyView, WaitingFor
from service.times import iso


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
    stages = list(session.scalars(select(StageRow).where(StageRow.study_id == study_id).order_by(StageRow.position)))
    waiting_for = _waiting_for(stages, live_queues(session, silent_s))
    at = now(session)
    summary = study_summary(study)
    view = StudyView(
        **summary.model_dump(),
        version=study.version,
        stage=_current_stage(stages),
        progress=_progress(stages, at),
        waiting_for=waiting_for,
        stages=[_stage_view(stage, at) for stage in stages],
        spec=study.spec,
        links={name: f"/v1/studies/{study.id}/{name}" for name in ("cancel", "events", "artifacts", "front", "report")},
    )
    return SeenStudy(view, etag_of(study.id, study.version, waiting_for))


def etag_of(study_id: str, version: int, waiting_for: WaitingFor | None) -> str:
    """Weak, because `eta_s` moves with the clock while nothing else changed."""
    waits = content_key(waiting_for.model_dump())[:8] if waiting_for else "0"
    return f'W/"{study_id}.{version}.{waits}"'


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


def _current_stage(stages: list[StageRow]) -> str | None:
    for state in (StageState.RUNNING, StageState.QUEUED):
        for stage in stages:
            if stage.state == state.value:
                return stage.kind
    return None


def _waiting_for(stages: list[StageRow], live: frozenset[str]) -> WaitingFor | None:
    if any(stage.state == StageState.RUNNING.value for stage in stages):
        return None
    queued = [stage.queue for stage in stages if stage.state == StageState.QUEUED.value]
    if not queued or any(queue in live for queue in queued):
        return None
    return WaitingFor(queue=queued[0], reason=f"no live worker takes stages from the queue {queued[0]!r}")


def _stage_progress(stage: StageRow, at: float) -> Progress | None:
    if stage.progress is None:
        return None
    done, total = stage.progress["done"], stage.progress["total"]
    eta_s = None
    if stage.state == StageState.RUNNING.value and stage.started_at is not None and 0 < done <= total:
        eta_s = round((at - stage.started_at) * (total - done) / done, 1)
    return Progress(done=done, total=total, unit=stage.progress["unit"], eta_s=eta_s, message=stage.progress["message"])


def _progress(stages: list[StageRow], at: float) -> Progress:
    for stage in stages:
        if stage.state == StageState.RUNNING.value and (progress := _stage_progress(stage, at)):
            return progress
    finished = sum(StageState(stage.state) in TERMINAL_STAGES for stage in stages)
    return Progress(done=finished, total=len(stages), unit="stages", eta_s=None)


def _stage_view(stage: StageRow, at: float) -> StageView:
    return StageView(
        kind=stage.kind,
        target=stage.target,
        state=stage.state,
        attempt=stage.attempt,
        reused=stage.reused_from is not None,
        progress=_stage_progress(stage, at),
        started_at=iso(stage.started_at),
        finished_at=iso(stage.finished_at),
        error=StudyError(**stage.error) if stage.error else None,
    )
