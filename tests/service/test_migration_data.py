"""Upgrading an old database keeps every row: SQLite changes a table by replacing it, which must not cascade."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import text

from service.store.database import Database
from service.store.migrate import _config, migrate
from tests.service.stack import _administer, _named

FIRST_ROWS = (
    "INSERT INTO models VALUES ('model_1', 'aa', 'net.onnx', 1, '[]', 1.0)",
    "INSERT INTO studies (id, name, model_id, spec, spec_hash, state, version, created_at, updated_at)"
    " VALUES ('study_1', 'old', 'model_1', '{}', 'h', 'succeeded', 3, 1.0, 1.0)",
    "INSERT INTO study_targets VALUES ('study_1', 0, 'cpu')",
    "INSERT INTO stages (id, study_id, position, kind, shard, queue, state, pending, attempt, max_attempts, fence,"
    " not_before) VALUES ('stage_1', 'study_1', 0, 'check', 0, 'check', 'succeeded', 0, 1, 3, 1, 1.0)",
    "INSERT INTO artifacts VALUES"
    " ('artifact_1', 'study_1', 'stage_1', 0, 'report.json', 'application/json', 'bb', 1, 1.0)",
    "INSERT INTO events VALUES ('study_1', 1, 1.0, 'created', '{}')",
)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'old.sqlite3'}"
    uri = str(request.getfixturevalue("postgresql_server"))
    _administer(uri, f'CREATE DATABASE "{tmp_path.name}"')
    return _named(uri, tmp_path.name)


def test_an_upgrade_keeps_every_row(empty_database: str) -> None:
    database = Database(empty_database)
    command.upgrade(_config(database), "0001")
    with database.write() as session:
        for statement in FIRST_ROWS:
            session.execute(text(statement))
    migrate(database)
    with database.read() as session:
        for table in ("models", "studies", "study_targets", "stages", "artifacts", "events"):
            assert session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() == 1, table
        assert session.execute(text("SELECT created_at FROM study_targets")).scalar_one() == 1.0, "its study's time"
        if database.is_sqlite:
            assert session.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
    with database.write() as session:
        if database.is_sqlite:
            assert session.execute(text("PRAGMA foreign_keys")).scalar_one() == 1, "constraints hold again"
        session.execute(text("INSERT INTO study_targets (study_id, position, hardware) VALUES ('study_1', 1, 'old')"))
        at = session.execute(text("SELECT created_at FROM study_targets WHERE hardware = 'old'")).scalar_one()
        assert at > 1.0, "an API of the version before goes on entering studies"
    database.close()
