"""Database: engines and transactions for SQLite and PostgreSQL, and the one clock that counts, the database's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Double, Engine, create_engine, event
from sqlalchemy import exc as database_errors
from sqlalchemy.engine import make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

SQLITE_BUSY_MS = 10_000
HANDLER_THREADS = 40
POOL_TIMEOUT_S = 10
# A server that is gone is noticed in seconds, by a new connection and by one that waits for an answer.
POSTGRESQL_CONNECT = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
# A process stopped inside a transaction keeps its locks: the server ends it, and others do not wait for ever.
IDLE_IN_TRANSACTION_S = 15.0
LOCK_S = 10.0
_SQLITE_NOW = "unix_now"
_SQLITE_LOCKED = frozenset({5, 6})  # busy, locked
_SQLITE_OUTAGES = frozenset({5, 6, 10, 13, 14})  # busy, locked, I/O error, full, cannot open
_POSTGRESQL_OUTAGES = ("08", "53", "57P", "55P03", "40", "25P03")  # connection, resources, shutdown, locks, rollback


class database_now(FunctionElement[float]):
    """Seconds since 1970 by the clock of the database, as a double. Leases of all workers are compared with it."""

    inherit_cache = True
    type = Double()


@compiles(database_now, "sqlite")
def _sqlite_now(element: object, compiler: Any, **kw: Any) -> str:
    # SQLite's own functions count whole milliseconds, in which two rows can be written: a list by time needs finer.
    return f"{_SQLITE_NOW}()"


@compiles(database_now, "postgresql")
def _postgresql_now(element: object, compiler: Any, **kw: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


def is_outage(error: BaseException) -> bool:
    """True when the database is away, full or locked for now: the same transaction may succeed later."""
    if isinstance(error, database_errors.TimeoutError):
        return True
    if not isinstance(error, database_errors.DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    if (code := getattr(error.orig, "sqlite_errorcode", None)) is not None:
        return (int(code) & 0xFF) in _SQLITE_OUTAGES
    if not isinstance(error, database_errors.OperationalError | database_errors.InterfaceError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    return state is None or str(state).startswith(_POSTGRESQL_OUTAGES)


def is_lock_timeout(error: BaseException) -> bool:
    """True when PostgreSQL gave up waiting for a lock of another transaction."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == "55P03"


def is_busy(error: BaseException) -> bool:
    """True when either database gave up waiting for another transaction."""
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", 0)
    return is_lock_timeout(error) or (int(code) & 0xFF) in _SQLITE_LOCKED


def is_statement_timeout(error: BaseException) -> bool:
    """True when PostgreSQL ended a statement that took longer than this process allows."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == "57014"


class Database:
    """Write and read transactions on one URL.

    `write()` commits at the end of the block or rolls back; on SQLite it begins IMMEDIATE, because a deferred
    transaction that reads and then writes fails at once when another writer came between. `read()` never writes.
    No transaction may span computing or waiting. PostgreSQL ends a statement after `statement_s` and a wait for a lock
    after `lock_s`, 0 meaning never; SQLite's one lock is waited for `SQLITE_BUSY_MS`.
    """

    def __init__(self, url: str, *, statement_s: float = 0.0, lock_s: float = LOCK_S) -> None:
        self.url = url
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        if self.is_sqlite:
            path = make_url(url).database
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.writer = _sqlite_engine(url, "BEGIN IMMEDIATE")
            self.reader = _sqlite_engine(url, "BEGIN")
        else:
            self.writer = self.reader = _postgresql_engine(url, statement_s, lock_s)

    @contextmanager
    def write(self) -> Iterator[Session]:
        with Session(self.writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self.reader, expire_on_commit=False) as session:
            yield session

    def close(self) -> None:
        self.writer.dispose()
        self.reader.dispose()


def _postgresql_engine(url: str, statement_s: float, lock_s: float) -> Engine:
    limits_s = {
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_S,
        "lock_timeout": lock_s,
        "statement_timeout": statement_s,
    }
    session = "; ".join(f"SET {name} = {round(seconds * 1000)}" for name, seconds in limits_s.items())
    engine = create_engine(
        url,
        pool_pre_ping=True,
        pool_size=5,
        max_overflow=15,
        pool_timeout=POOL_TIMEOUT_S,
        connect_args=POSTGRESQL_CONNECT,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        connection.execute(session)
        connection.commit()

    return engine


def _sqlite_engine(url: str, begin: str) -> Engine:
    # As many connections as the API has handler threads: SQLite's own lock is where writers queue.
    engine = create_engine(
        url,
        pool_size=HANDLER_THREADS,
        max_overflow=HANDLER_THREADS,
        pool_timeout=POOL_TIMEOUT_S,
        connect_args={"timeout": SQLITE_BUSY_MS / 1000, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        connection.isolation_level = None
        connection.create_function(_SQLITE_NOW, 0, time.time)
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def start(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine
