"""`/v1/studies/{id}/evaluations`: the user's own evaluator downloads the finalists and posts what it measured."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.dependencies import ReadSession, TheParts
from service.errors import FieldError, Problem, not_found
from service.lifecycle import StageState
from service.queue.outbox import publish_behind_answer
from service.store.models import EvaluationRow, StageRow, StudyRow
from service.store.stages import advance, count_down
from service.store.studies import lock_study, now, record, settle
from service.studies.schemas import EvaluationRequest, EvaluationView, Finalist

router = APIRouter()


@router.post("/{study_id}/evaluations")
def post_evaluations(study_id: str, body: EvaluationRequest, parts: TheParts, after: BackgroundTasks) -> EvaluationView:
    """Post what your evaluator measured of some finalists. Once all are there the verdict is made from these numbers.

    A finalist posted again replaces its numbers, until the verdict has begun (409).
    """
    with parts.database.write() as session:
        view = _enter(session, study_id, body)
    after.add_task(publish_behind_answer, parts.database, parts.send, resend_s=parts.settings.resend_s)
    return view


@router.get("/{study_id}/evaluations")
def get_evaluations(
    study_id: str, session: ReadSession, target: Annotated[int, Query(ge=0, lt=1 << 31)] = 0
) -> EvaluationView:
    """The finalists of one target and what has been posted of them."""
    study = session.get(StudyRow, study_id)
    if study is None:
        raise not_found("study", study_id)
    return _view(session, study, target)


def _enter(session: Session, study_id: str, body: EvaluationRequest) -> EvaluationView:
    study = lock_study(session, study_id)
    if study is None:
        raise not_found("study", study_id)
    known = {finalist.name for finalist in _view(session, study, body.target).finalists}
    metric = study.spec["evaluator"]["metric"]
    for position, result in enumerate(body.results):
        if result.finalist not in known:
            _refuse(position, "finalist_unknown", f"there is no finalist {result.finalist!r}", ", ".join(sorted(known)))
        if metric not in result.metrics:
            _refuse(position, "metric_missing", f"the study is judged by {metric!r}", f"add it to {result.finalist!r}")
    verdict = _verdict_stage(session, study, body.target)
    if verdict.state != StageState.BLOCKED.value or verdict.awaits is None:
        raise Problem(
            409, "state_conflict", "the verdict of this target has begun", hint="clone the study to judge it anew"
        )
    at = now(session)
    for result in body.results:
        session.merge(
            EvaluationRow(
                study_id=study.id,
                target=body.target,
                finalist=result.finalist,
                metrics=dict(result.metrics),
                created_at=at,
            )
        )
    session.flush()
    view = _view(session, study, body.target)
    record(session, study, "evaluations", {"target": body.target, "missing": len(view.missing)})
    if not view.missing:
        verdict.awaits = None
        session.flush()
        count_down(session, [verdict.id])
        advance(session, study)
        settle(session, study)
    return view.model_copy(update={"state": study.state})


def _verdict_stage(session: Session, study: StudyRow, target: int) -> StageRow:
    query = select(StageRow).where(StageRow.study_id == study.id, StageRow.kind == "verdict", StageRow.target == target)
    return session.scalars(query, execution_options={"populate_existing": True}).one()


def _view(session: Session, study: StudyRow, target: int) -> EvaluationView:
    evaluator = study.spec.get("evaluator")
    if evaluator is None:
        raise Problem(
            409,
            "no_evaluator",
            "the study judges its finalists itself",
            hint='submit it with "evaluator": {"metric": "mAP"} to judge them yourself',
        )
    if target >= len(study.spec["targets"]):
        raise not_found("target", str(target))
    summary = session.scalar(
        select(StageRow.summary).where(
            StageRow.study_id == study.id,
            StageRow.kind == "evaluate",
            StageRow.target == target,
            StageRow.state == StageState.SUCCEEDED.value,
        )
    )
    if summary is None:
        raise Problem(
            409,
            "not_ready",
            f"the study is {study.state} and has no finalists for target {target} yet",
            hint="poll it until waiting_for.kind is evaluations",
            retry_after_s=None if study.finished_at is not None else 2,
        )
    rows = session.scalars(
        select(EvaluationRow).where(EvaluationRow.study_id == study.id, EvaluationRow.target == target),
        execution_options={"populate_existing": True},
    )
    posted: dict[str, dict[str, Any]] = {row.finalist: row.metrics for row in rows}
    finalists = [Finalist(**each, metrics=posted.get(each["name"])) for each in summary["finalists"]]
    missing = [finalist.name for finalist in finalists if finalist.metrics is None]
    return EvaluationView(
        target=target, metric=evaluator["metric"], state=study.state, finalists=finalists, missing=missing
    )


def _refuse(position: int, code: str, message: str, hint: str) -> None:
    pointer = f"/results/{position}"
    raise Problem(422, code, message, hint=hint, errors=[FieldError(pointer=pointer, message=message)])
