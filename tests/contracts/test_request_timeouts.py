"""A request does not wait for ever inside PostgreSQL; migrations, backups and collections may."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from service.app import create_app
from service.store import database as store
from service.store.database import Database, is_statement_timeout
from tests.contracts.test_rest_api import problem
from tests.service.stack import SentMessages, quick_settings, serving, study_body, upload_model

T4 = {"hardware": "t4", "budgets": {"latency_ms": "0.6x"}}


@pytest.fixture
def patient(postgresql_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """An API without limits on the database that the impatient ones share: its answers depend on no clock."""
    settings = quick_settings(tmp_path / "data", postgresql_url, statement_limit_s=0, lock_limit_s=0)
    with serving(settings, SentMessages()) as client:
        yield client


@contextmanager
def impatient(url: str, folder: Path, **limits_s: float) -> Iterator[httpx.Client]:
    with serving(quick_settings(folder / "data", url, **limits_s), SentMessages()) as client:
        yield client


@contextmanager
def locked(url: str, table: str) -> Iterator[None]:
    """Another program holds the table: the request's statement runs, and does not end."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table)))
        yield


def limits(database: Database) -> tuple[str, ...]:
    with database.read() as session:
        return tuple(
            str(session.execute(text(f"SHOW {name}")).scalar_one()) for name in ("statement_timeout", "lock_timeout")
        )


def test_a_statement_that_takes_too_long_is_ended_with_a_problem(
    patient: httpx.Client, postgresql_url: str, tmp_path: Path
) -> None:
    with impatient(postgresql_url, tmp_path, statement_limit_s=0.2, lock_limit_s=0) as client:
        with locked(postgresql_url, "studies"):
            told = problem(client.get("/v1/studies"), 503, "statement_timeout")
            assert client.get("/healthz").status_code == 200
    assert told["retryable"]
    assert "BITWRIGHT_STATEMENT_LIMIT_S" in told["hint"]


def test_nothing_of_a_request_that_took_too_long_is_kept(
    patient: httpx.Client, postgresql_url: str, tmp_path: Path
) -> None:
    again = {"json": study_body(upload_model(patient), targets=[T4]), "headers": {"Idempotency-Key": "k"}}
    with impatient(postgresql_url, tmp_path, statement_limit_s=0.2, lock_limit_s=0) as client:
        with locked(postgresql_url, "stages"):  # entered after the key and the study itself
            problem(client.post("/v1/studies", **again), 503, "statement_timeout")
    assert patient.get("/v1/studies").json()["items"] == []
    assert patient.post("/v1/studies", **again).status_code == 201


def test_a_lock_is_waited_for_and_then_not(patient: httpx.Client, postgresql_url: str, tmp_path: Path) -> None:
    with impatient(postgresql_url, tmp_path, statement_limit_s=0, lock_limit_s=0.2) as client:
        with locked(postgresql_url, "models"):
            problem(client.get("/v1/models"), 503, "database_busy")
    assert patient.get("/v1/models").status_code == 200


def test_sqlite_says_busy_too(sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SQLITE_BUSY_MS", 100)
    path = tmp_path / "a.sqlite3"
    path.write_bytes(sqlite_template.read_bytes())
    with serving(quick_settings(tmp_path / "data", f"sqlite:///{path}"), SentMessages()) as client:
        model = upload_model(client)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        body = study_body(model, targets=[T4])
        for headers in ({}, {"Idempotency-Key": "k"}):
            problem(client.post("/v1/studies", json=body, headers=headers), 503, "database_busy")
        assert client.get("/v1/studies").status_code == 200, "readers go on"
        other.close()
        assert len(client.get("/v1/studies").json()["items"]) == 0


def test_requests_alone_are_limited(postgresql_url: str, tmp_path: Path) -> None:
    settings = quick_settings(tmp_path, postgresql_url)
    api: Database = create_app(settings, send=SentMessages()).state.parts.database
    other = Database(postgresql_url)  # as migrate, backup, restore, gc, workers and the reaper open it
    try:
        assert limits(api) == ("15s", "5s")
        assert limits(other) == ("0", "10s")
        short = Database(postgresql_url, statement_s=0.05)
        with pytest.raises(OperationalError) as caught, short.read() as session:
            session.execute(text("SELECT pg_sleep(60)"))
        assert is_statement_timeout(caught.value)
        short.close()
    finally:
        api.close()
        other.close()
