"""Models and datasets as rows: entered once per content, needed by studies, deleted when nothing needs them.

A deleted row stays, because studies name it; its bytes belong to nobody any more. Sending the same bytes again brings
the row back under its old id.
"""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.lifecycle import TERMINAL_STUDIES, StudyState
from service.store.database import Database, database_now
from service.store.models import DatasetRow, ModelRow, StudyRow
from service.store.studies import now, rows_changed

Upload = TypeVar("Upload", ModelRow, DatasetRow)
UNFINISHED = tuple(state.value for state in StudyState if state not in TERMINAL_STUDIES)
NAMED_STUDIES = 10


class InUse(Exception):
    """Studies that have not ended need it; `studies` names up to ten of them."""

    def __init__(self, studies: list[str]) -> None:
        super().__init__(f"needed by {', '.join(studies)}")
        self.studies = studies


def enter(database: Database, fresh: Upload, *, lifetime_s: float | None = None) -> tuple[Upload, bool]:
    """The row of these bytes and whether it is new: a known one is returned, a deleted one brought back.

    `lifetime_s` says when a dataset may go; sending it again can only give it longer.
    """
    try:
        with database.write() as session:
            return _enter(session, fresh, lifetime_s)
    except IntegrityError:  # the same bytes came twice at once
        with database.write() as session:
            return _enter(session, fresh, lifetime_s)


def _enter(session: Session, fresh: Upload, lifetime_s: float | None) -> tuple[Upload, bool]:
    kind = type(fresh)
    at = now(session)
    end = None if lifetime_s is None else at + lifetime_s
    row = session.scalars(select(kind).where(kind.sha256 == fresh.sha256).with_for_update()).one_or_none()
    created = row is None or row.deleted_at is not None
    if row is None:
        row = fresh
        session.add(row)
    if created:
        row.name, row.created_at, row.deleted_at = fresh.name, at, None
    if isinstance(row, DatasetRow) and (created or row.expires_at is not None):
        row.expires_at = end if created or end is None else max(end, row.expires_at or end)
    session.flush()
    return row, created


def usable(session: Session, kind: type[Upload], row_id: str) -> Upload | None:
    """The row for a new study: held against deletion until the transaction ends; None when unknown or deleted."""
    query = select(kind).where(kind.id == row_id, kind.deleted_at.is_(None))
    if kind is DatasetRow:
        query = query.where(or_(DatasetRow.expires_at.is_(None), DatasetRow.expires_at > database_now()))
    return session.scalars(query.with_for_update(read=True, key_share=True)).one_or_none()


def delete(session: Session, kind: type[Upload], row_id: str, *, force: bool = False) -> bool:
    """Mark it deleted; False when there is no such row or it is deleted already.

    Raises `InUse` while studies that have not ended need it. With `force` those studies fail at their next stage.
    """
    row = session.scalars(select(kind).where(kind.id == row_id).with_for_update()).one_or_none()
    if row is None or row.deleted_at is not None:
        return False
    if not force and (studies := _needed_by(session, kind, row_id)):
        raise InUse(studies)
    row.deleted_at = now(session)
    session.flush()
    return True


def expire_datasets(session: Session) -> int:
    """Mark datasets deleted whose time has passed and that no unfinished study needs; returns how many."""
    needed = select(StudyRow.id).where(StudyRow.dataset_id == DatasetRow.id, StudyRow.state.in_(UNFINISHED))
    ending = update(DatasetRow).where(
        DatasetRow.deleted_at.is_(None), DatasetRow.expires_at < database_now(), ~needed.exists()
    )
    changed = session.execute(ending.values(deleted_at=database_now()).execution_options(synchronize_session=False))
    return rows_changed(changed)


def _needed_by(session: Session, kind: type[Any], row_id: str) -> list[str]:
    column = StudyRow.model_id if kind is ModelRow else StudyRow.dataset_id
    query = select(StudyRow.id).where(column == row_id, StudyRow.state.in_(UNFINISHED)).limit(NAMED_STUDIES)
    return list(session.scalars(query))
