"""`/v1/compare`: targets of several studies side by side."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.dependencies import ReadSession
from service.errors import FieldError, Problem, not_found
from service.store.models import StudyRow
from service.studies.schemas import ComparedTarget, Comparison, StudyError

router = APIRouter(prefix="/v1/compare", tags=["studies"])
MOST_COMPARED = 6


@router.get("")
def compare_studies(
    session: ReadSession, studies: Annotated[list[str], Query(min_length=1, max_length=64)]
) -> Comparison:
    """Every target of 2 to 6 studies with its verdict. Give `studies` several times, or ids with commas between."""
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
                    error=StudyError(**study.error) if study.error else None,
                )
            )
    return Comparison(items=items)
