"""What a container's health check learns of worker, reaper and API."""

from __future__ import annotations

import socket

import httpx
import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from service.settings import Settings
from service.store.database import Database, database_now
from service.store.fleet import announce_worker
from service.store.models import StageRow
from tests.contracts.test_stage_claims import claimed, new_study
from workers.health_cli import is_neglected
from workers.server_cli import app


def health(settings: Settings, role: str) -> int:
    return CliRunner().invoke(app, ["health", role], env=settings.as_environment()).exit_code


def neglected(database: Database) -> bool:
    with database.read() as session:
        return is_neglected(session, 60.0)


def change(database: Database, **values: object) -> None:
    with database.write() as session:
        session.execute(update(StageRow).where(StageRow.kind == "check").values(**values))


def test_a_worker_is_well_while_it_is_heard_of(database: Database, settings: Settings) -> None:
    assert health(settings, "worker") == 1
    with database.write() as session:
        announce_worker(
            session,
            worker_id="w",
            host=socket.gethostname(),
            version="0",
            queues=[],
            sandbox="rlimits",
            profiles=[],
        )
    assert health(settings, "worker") == 0


def test_a_reaper_is_well_while_nothing_is_overdue(database: Database, settings: Settings) -> None:
    new_study(database)
    assert not neglected(database), "due only now"
    assert health(settings, "reaper") == 0
    change(database, not_before=database_now() - 100)
    assert neglected(database), "due for long and never announced"
    change(database, published_at=database_now() - 90)
    assert not neglected(database), "announced; taking it is the workers' part"
    assert health(settings, "reaper") == 0


def test_a_long_expired_lease_is_the_reapers_fault(database: Database) -> None:
    claimed(database, new_study(database), "check")
    assert not neglected(database)
    change(database, lease_until=database_now() - 61)
    assert neglected(database)


def test_the_api_is_well_when_it_is_ready(http: httpx.Client, settings: Settings) -> None:
    port = http.base_url.port
    assert health(settings.model_copy(update={"port": port}), "api") == 0
    assert health(settings.model_copy(update={"port": port, "allowed_hosts": ("elsewhere",)}), "api") == 1


@pytest.mark.parametrize("role", ["worker", "reaper"])
def test_a_database_that_is_away_is_ill(role: str, settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": "postgresql+psycopg://x@127.0.0.1:9/x"})
    assert health(away, role) == 1
