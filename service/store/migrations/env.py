"""Alembic environment: runs on the engine that `service.store.migrate` hands over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from sqlalchemy import Connection, text

from service.store.database import Database
from service.store.migrate import POSTGRESQL_LOCK
from service.store.models import Base

database: Database = context.config.attributes["database"]


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    """SQLite changes a table by copying it and dropping the old one, which takes with it what refers to it."""
    sqlite = connection.connection.dbapi_connection if database.is_sqlite else None
    if sqlite is None:
        yield
        return
    sqlite.execute("PRAGMA foreign_keys=OFF")  # is ignored inside a transaction, so before its BEGIN
    try:
        yield
    finally:
        sqlite.execute("PRAGMA foreign_keys=ON")


# On SQLite the writer's BEGIN IMMEDIATE is the lock; PostgreSQL needs one taken by hand.
with database.writer.connect() as connection, _foreign_keys_off(connection), connection.begin():
    if not database.is_sqlite:
        connection.execute(text("SET LOCAL lock_timeout = 0"))  # another migrator may be at it for long
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": POSTGRESQL_LOCK})
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=database.is_sqlite,
        transactional_ddl=True,
        transaction_per_migration=False,
    )
    context.run_migrations()
    if database.is_sqlite and (broken := connection.execute(text("PRAGMA foreign_key_check")).all()):
        raise RuntimeError(f"the migration would leave rows that refer to nothing: {broken[:5]}")
