"""Paging: opaque cursors over (created_at, id), newest first, stable while new rows arrive."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any

from fastapi import Query
from sqlalchemy import Select, select, tuple_

from service.errors import FieldError, Problem

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_CURSOR = 200
Cursor = Annotated[str | None, Query(max_length=MAX_CURSOR, description="`next_cursor` of the page before")]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]


def encode_cursor(created_at: float, row_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([created_at, row_id]).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[float, str]:
    """Raises `Problem` (`bad_cursor`) for text no earlier page gave."""
    try:
        created_at, row_id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(created_at, float) or not isinstance(row_id, str):
            raise ValueError("not a cursor")
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise Problem(
            422,
            "bad_cursor",
            "the cursor is not one that an earlier page gave",
            hint="start without a cursor",
            errors=[FieldError(pointer="query:cursor", message="not a cursor")],
        ) from None
    return created_at, row_id


def page_query(query: Select[Any], row: Any, cursor: str | None, limit: int, *, walk: Any = None) -> Select[Any]:
    """The rows of one page and one more, which tells whether another page follows; `query` selects the entity `row`.

    Ids are found first and the wide rows read for them alone: with a filter no index orders, sorting whole rows took
    twice as long. `walk` are the columns (created_at, id) of another table that `query` joins, where an index of that
    one has the filtered rows in order; several of its rows may name one entity.
    """
    created_at, row_id = (row.created_at, row.id) if walk is None else walk
    if cursor is not None:
        query = query.where(tuple_(created_at, row_id) < tuple_(*decode_cursor(cursor)))
    ids = query.with_only_columns(row_id).order_by(created_at.desc(), row_id.desc()).limit(limit + 1)
    if walk is not None:
        ids = ids.group_by(created_at, row_id)
    return select(row).where(row.id.in_(ids)).order_by(row.created_at.desc(), row.id.desc())


def page_of(rows: list[Any], limit: int) -> tuple[list[Any], str | None]:
    """The rows of the page and the cursor of the next one."""
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], encode_cursor(last.created_at, last.id)
