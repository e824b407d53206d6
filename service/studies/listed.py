"""Lists of studies: newest first, filtered, a page at a time, each page found by an index."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, select

from service.paging import page_query
from service.store.models import StudyRow, StudyTargetRow


def listed_studies(
    *,
    states: Collection[str] = (),
    model: str | None = None,
    hardware: str | None = None,
    name: str | None = None,
    cursor: str | None = None,
    limit: int,
) -> Select[Any]:
    """One page of the studies users made, and one row more; `name` is a part of it, in any case.

    Studies of a hardware are walked in the order of its targets: a page costs the same however many there are.
    """
    query = select(StudyRow).where(StudyRow.parent_id.is_(None))
    if states:
        query = query.where(StudyRow.state.in_(states))
    if model is not None:
        query = query.where(StudyRow.model_id == model)
    if name is not None:
        query = query.where(StudyRow.name.icontains(name, autoescape=True))
    if hardware is None:
        return page_query(query, StudyRow, cursor, limit)
    query = query.join(StudyTargetRow, StudyTargetRow.study_id == StudyRow.id)
    query = query.where(StudyTargetRow.hardware == hardware)
    walk = (StudyTargetRow.created_at, StudyTargetRow.study_id)
    return page_query(query, StudyRow, cursor, limit, walk=walk)
