"""What is waited for, what is not, and for how long."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from service.store.database import Database, is_outage
from workers.patience import patiently


def failing(times: int, error: Exception) -> tuple[list[int], object]:
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return calls, call


def gone() -> OperationalError:
    return OperationalError("SELECT 1", {}, psycopg.OperationalError("connection refused"))


def test_an_outage_is_waited_for() -> None:
    calls, call = failing(3, gone())
    pauses: list[float] = []
    assert patiently(call, limit_s=60, pause=pauses.append) == "done"  # type: ignore[arg-type]
    assert len(calls) == 4
    assert pauses == [0.1, 0.2, 0.4]


def test_patience_ends_with_its_limit_and_with_the_worker() -> None:
    for wish in ({"limit_s": 0.0}, {"limit_s": 60.0, "give_up": lambda: True}):
        calls, call = failing(3, gone())
        with pytest.raises(OperationalError):
            patiently(call, **wish)  # type: ignore[arg-type]
        assert len(calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        ValueError("ours"),
        ProgrammingError("SELECT", {}, psycopg.errors.UndefinedTable("no such table")),
        IntegrityError("INSERT", {}, psycopg.errors.UniqueViolation("twice")),
    ],
)
def test_other_errors_are_raised_at_once(error: Exception) -> None:
    calls, call = failing(1, error)
    with pytest.raises(type(error)):
        patiently(call, limit_s=60)  # type: ignore[arg-type]
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (psycopg.errors.AdminShutdown("terminating"), True),
        (psycopg.errors.CannotConnectNow("starting up"), True),
        (psycopg.errors.DiskFull("no space"), True),
        (psycopg.errors.TooManyConnections("too many"), True),
        (psycopg.errors.LockNotAvailable("lock timeout"), True),
        (psycopg.errors.DeadlockDetected("deadlock"), True),
        (psycopg.errors.IdleInTransactionSessionTimeout("idle"), True),
        (psycopg.errors.InvalidPassword("wrong"), False),
    ],
)
def test_states_of_postgresql_that_pass(error: Exception, outage: bool) -> None:
    assert is_outage(OperationalError("SELECT", {}, error)) is outage


def test_states_of_sqlite_that_pass(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.sqlite3'}")
    with pytest.raises(OperationalError) as missing, database.read() as session:
        session.execute(text("SELECT * FROM nothing"))
    assert not is_outage(missing.value), "a missing table does not come by waiting"
    with database.write() as session:
        session.execute(text("CREATE TABLE t (x TEXT)"))
    fill = text("INSERT INTO t VALUES (zeroblob(100000))")
    with database.write() as session:
        session.execute(text("PRAGMA max_page_count=3"))
        with pytest.raises(OperationalError) as full:
            session.execute(fill)
    assert is_outage(full.value)
    database.close()
    elsewhere = Database(f"sqlite:///{tmp_path}")  # a folder is no database
    with pytest.raises(OperationalError) as closed, elsewhere.read() as session:
        session.execute(text("SELECT 1"))
    assert is_outage(closed.value)
    assert isinstance(closed.value.orig, sqlite3.OperationalError)
    elsewhere.close()
