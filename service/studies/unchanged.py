"""Unchanged: polls that find nothing new, answered from the study's version alone.

Most requests a busy server gets are polls with the ETag of the last answer. Its version is compared with the
database's at every poll, and with it the versions of studies whose stages this one follows. Beside those an ETag holds
what the study waits for, which follows from the queues that live workers take from: these are read once in `LOOK_S` for
all studies. An answer serves only who showed the same key or cookie, for `KEY_S` at most: a revoked key ends.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sqlalchemy import bindparam, func, literal_column, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.store.database import Database
from service.store.fleet import live_queues
from service.store.models import StageRow, StudyRow

LOOK_S = 1.0
KEY_S = 10.0
KEPT = 10_000
_PATH = re.compile(r"/v1/studies/(study_[0-9a-z]+)")
_ETAG = re.compile(rb'W/"(study_[0-9a-z]+)\.\d+\.[0-9a-z]+"')
_ROUTE = SimpleNamespace(path="/v1/studies/{study_id}")
_CREDENTIALS = (b"authorization", b"cookie")
_LED, _LEADER = aliased(StageRow), aliased(StudyRow)
_VERSIONS = select(
    StudyRow.version,
    select(func.coalesce(func.sum(_LEADER.version), literal_column("0")))
    .select_from(StageRow)
    .join(_LED, _LED.id == StageRow.follows)
    .join(_LEADER, _LEADER.id == _LED.study_id)
    .where(StageRow.study_id == StudyRow.id)
    .correlate(StudyRow)
    .scalar_subquery(),
).where(StudyRow.id == bindparam("id"))
_SQLITE_VERSIONS = str(_VERSIONS.compile(dialect=sqlite.dialect(paramstyle="named")))
_KEPT_HEADERS = (b"etag", b"retry-after")


@dataclass(frozen=True)
class _Answer:
    """The ETag a study was last answered with, the live queues and time then, and the headers that go with a 304."""

    etag: bytes
    versions: tuple[int, int]
    queues: frozenset[str]
    at: float
    headers: tuple[tuple[bytes, bytes], ...]


class UnchangedPolls:
    """ASGI middleware around the application, inside the gateway."""

    def __init__(self, app: ASGIApp, database: Database, silent_s: float) -> None:
        self._app = app
        self._database = database
        self._silent_s = silent_s
        self._versions = _Versions(database)
        self._queues: frozenset[str] = frozenset()
        self._looked_at = -LOOK_S
        self._answers: dict[tuple[str, bytes], _Answer] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        study_id = self._polled(scope)
        if study_id is None:
            await self._app(scope, receive, send)
            return
        known, shown = None, hashlib.sha256()
        for name, value in scope["headers"]:
            if name == b"if-none-match":
                known = value
            elif name in _CREDENTIALS:
                shown.update(name + b":" + value + b"\n")
        key = study_id, shown.digest()
        answer = None if scope["query_string"] else self._answers.get(key)
        await self._look()
        if (
            answer is not None
            and known == answer.etag
            and answer.queues == self._queues
            and time.monotonic() - answer.at < KEY_S
        ):
            if await self._versions.of(study_id) == answer.versions:
                scope["route"], scope["path_params"] = _ROUTE, {"study_id": study_id}
                await send({"type": "http.response.start", "status": 304, "headers": list(answer.headers)})
                await send({"type": "http.response.body", "body": b""})
                return
        # Asked before the study is read, so that an answer is never taken for newer than it is.
        versions = await self._versions.of(study_id)
        await self._app(scope, receive, send if versions is None else self._noting(key, versions, send))

    async def _look(self) -> None:
        """Know which queues live workers take from, as of at most `LOOK_S` ago."""
        if time.monotonic() - self._looked_at < LOOK_S:
            return
        self._looked_at = time.monotonic()

        def read() -> frozenset[str]:
            with self._database.read() as session:
                return live_queues(session, self._silent_s)

        try:
            self._queues = await run_in_threadpool(read)
        except SQLAlchemyError:
            self._answers.clear()

    def _polled(self, scope: Scope) -> str | None:
        """The study a GET asks for; None for every other request."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return None
        match = _PATH.fullmatch(scope["path"])
        return None if match is None else match.group(1)

    def _noting(self, key: tuple[str, bytes], versions: tuple[int, int], send: Send) -> Send:
        asked_at, queues = time.monotonic(), self._queues

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (200, 304):
                headers = tuple((name, value) for name, value in message["headers"] if name in _KEPT_HEADERS)
                etag = dict(headers).get(b"etag", b"")
                match = _ETAG.fullmatch(etag)
                if match is not None and match.group(1) == key[0].encode():
                    if len(self._answers) >= KEPT:
                        self._answers.clear()
                    self._answers[key] = _Answer(etag, versions, queues, asked_at, headers)
            await send(message)

        return send_and_note


class _Versions:
    """Versions of studies as the database has them now."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sqlite_path = make_url(database.url).database if database.is_sqlite else None
        self._sqlite: sqlite3.Connection | None = None

    async def of(self, study_id: str) -> tuple[int, int] | None:
        """The study's version and the sum of those it follows; None when that cannot be told here."""
        if self._sqlite_path:
            return self._of_sqlite(self._sqlite_path, study_id)
        return await run_in_threadpool(self._of_server, study_id)

    def _of_sqlite(self, path: str, study_id: str) -> tuple[int, int] | None:
        # One look-up in a local file takes microseconds, a session or a thread to do it in ten times that. It never
        # waits: in WAL mode readers do not wait for writers, and a file that is locked after all is an error at once.
        try:
            if self._sqlite is None:
                self._sqlite = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0, isolation_level=None)
            row: Any = self._sqlite.execute(_SQLITE_VERSIONS, {"id": study_id}).fetchone()
        except sqlite3.Error:
            self._sqlite = None
            return None
        return None if row is None else (int(row[0]), int(row[1]))

    def _of_server(self, study_id: str) -> tuple[int, int] | None:
        try:
            with self._database.reader.connect() as connection:
                row = connection.execute(_VERSIONS, {"id": study_id}).one_or_none()
        except SQLAlchemyError:
            return None
        return None if row is None else (int(row[0]), int(row[1]))
