"""Alembic environment: runs on the engine that `service.store.migrate` hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from service.store.database import Database
from service.store.migrate import POSTGRESQL_LOCK
from service.store.models import Base

database: Database = context.config.attributes["database"]

# On SQLite the writer's BEGIN IMMEDIATE is the lock; PostgreSQL needs one taken by hand.
with database.writer.begin() as connection:
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
