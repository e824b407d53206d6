"""`/v1/studies/{id}/log`: the end of what the study's stages printed, while they run and after."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.canonical import content_key
from service.dependencies import ReadSession
from service.errors import not_found
from service.etags import is_same
from service.store.models import StageLogRow, StageRow, StudyRow
from service.studies.plan import kind_named
from service.studies.schemas import StageLog, StudyLog
from service.times import iso

router = APIRouter()
MOST_LINES = 100


@router.get("/{study_id}/log", response_model=StudyLog, responses={304: {"description": "Nothing new"}})
def get_log(
    study_id: str,
    session: ReadSession,
    stage: Annotated[str | None, Query(max_length=64, description="Only stages of this kind.")] = None,
    lines: Annotated[int, Query(ge=1, le=MOST_LINES, description="The most of one stage.")] = 40,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The last lines each stage printed, in the order of the stages; those that printed nothing are left out.

    A running stage tells them with its beats. Of a stage that another study does for this one, its lines are shown.
    With If-None-Match and nothing new: 304.
    """
    if session.get(StudyRow, study_id) is None:
        raise not_found("study", study_id)
    written = _written(session, study_id, stage)
    seen = [[row.id, owner, at] for row, owner, at in written]
    headers = {"ETag": f'"{content_key([lines, seen])[:20]}"'}
    if is_same(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    owners = select(StageLogRow).where(StageLogRow.stage_id.in_([owner for _, owner, _ in written]))
    logs = {log.stage_id: log for log in session.scalars(owners)}
    items = [_shown(row, logs[owner], lines) for row, owner, _ in written if owner in logs]
    return JSONResponse(StudyLog(items=items).model_dump(mode="json"), headers=headers)


def _written(session: Session, study_id: str, kind: str | None) -> list[tuple[Any, str, float]]:
    """The study's stages with a log, whose it is, and when it was written; the texts stay where they are."""
    stages = select(StageRow.id, StageRow.kind, StageRow.target, StageRow.shard, StageRow.follows)
    stages = stages.where(StageRow.study_id == study_id).order_by(StageRow.position)
    rows = session.execute(stages if kind is None else stages.where(StageRow.kind == kind)).all()
    owners = {row.id: row.follows or row.id for row in rows}
    times = select(StageLogRow.stage_id, StageLogRow.written_at).where(StageLogRow.stage_id.in_(owners.values()))
    written_at = {stage_id: at for stage_id, at in session.execute(times)}
    return [(row, owner, written_at[owner]) for row in rows if (owner := owners[row.id]) in written_at]


def _shown(row: Any, log: StageLogRow, most: int) -> StageLog:
    lines = log.text.split("\n")
    return StageLog(
        stage=row.kind,
        target=row.target,
        shard=row.shard if kind_named(row.kind).shards is not None else None,
        attempt=log.attempt,
        written_at=iso(log.written_at),
        is_cut=log.is_cut or len(lines) > most,
        lines=lines[-most:],
    )
