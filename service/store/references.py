"""References: which blobs the database names. Every 64-digit hexadecimal word of a living row counts.

So no list of columns can be forgotten when tables change: a word too many keeps a blob, a column too few loses one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, MetaData, Table, select

from service.store.database import Database

READ_ROWS = 500
_SHA256 = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def reflected_tables(connection: Connection) -> list[Table]:
    """The tables as they are, whatever version made them; what a table refers to comes before it."""
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != "alembic_version"]


def rows_of(connection: Connection, table: Table) -> Iterator[dict[str, Any]]:
    """All rows of a table in the order of its primary key."""
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=READ_ROWS)
    for row in connection.execute(query).mappings():
        yield dict(row)


def named_blobs(row: Mapping[str, Any]) -> set[str]:
    """The blobs a row may mean; none when it is marked as deleted."""
    if row.get("deleted_at") is not None:
        return set()
    texts = (value if isinstance(value, str) else json.dumps(value) for value in row.values() if value is not None)
    return {word for text in texts for word in _SHA256.findall(text)}


def referenced_blobs(database: Database) -> set[str]:
    """All blobs the database names at this moment."""
    found: set[str] = set()
    with database.reader.connect() as connection:
        for table in reflected_tables(connection):
            for row in rows_of(connection, table):
                found |= named_blobs(row)
    return found
