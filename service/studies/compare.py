"""`/v1/compare`: targets of several studies side by side."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.blobs import BlobMissing, Blobs
from service.dependencies import ReadSession, TheParts
from service.errors import FieldError, Problem, not_found
from service.store.models import ArtifactRow, StudyRow
from service.studies.figures import read_figures
from service.studies.schemas import ComparedFigure, ComparedTarget, Comparison, StudyError

router = APIRouter(prefix="/v1/compare", tags=["studies"])
MOST_COMPARED = 6
NAMES = {"latency": "latency_ms", "size": "size_bytes"}


@router.get("")
def compare_studies(
    session: ReadSession, parts: TheParts, studies: Annotated[list[str], Query(min_length=1, max_length=64)]
) -> Comparison:
    """Every target of 2 to 6 studies: verdict and figures. Give `studies` several times, or ids with commas between."""
    ids = list(dict.fromkeys(name for part in studies for name in part.split(",") if name))
    if not 2 <= len(ids) <= MOST_COMPARED:
        text = f"{len(ids)} studies were named; 2 to {MOST_COMPARED} can be compared"
        raise Problem(
            422, "invalid_request", text, hint="?studies=study_a,study_b",
            errors=[FieldError(pointer="query:studies", message=text)],
        )  # fmt: skip
    items: list[ComparedTarget] = []
    for study_id in ids:
        study = session.get(StudyRow, study_id)
        if study is None or study.parent_id is not None:
            raise not_found("study", study_id)
        verdicts = study.verdicts or []
        reports = _reports(session, study_id)
        for position, target in enumerate(study.spec["targets"]):
            items.append(
                ComparedTarget(
                    study=study.id,
                    name=study.name,
                    state=study.state,
                    model=study.model_id,
                    position=position,
                    target=target,
                    verdict=verdicts[position] if len(verdicts) == len(study.spec["targets"]) else None,
                    figures=_figures(parts.blobs, reports.get(position), position),
                    error=StudyError(**study.error) if study.error else None,
                )
            )
    return Comparison(items=items)


def _reports(session: Session, study_id: str) -> dict[int | None, str]:
    rows = session.execute(
        select(ArtifactRow.target, ArtifactRow.sha256).where(
            ArtifactRow.study_id == study_id, ArtifactRow.name == "report.json"
        )
    )
    return {target: sha256 for target, sha256 in rows}


def _figures(blobs: Blobs, sha256: str | None, position: int) -> dict[str, ComparedFigure] | None:
    if sha256 is None:
        return None
    try:
        found = read_figures(blobs, sha256, position)
    except BlobMissing:
        return None
    return {
        NAMES.get(one.name, one.name): ComparedFigure(
            value=one.value, low=one.low, high=one.high, full_precision=one.full
        )
        for one in found
    } or None
