"""`bitwright-server health`: is this process doing its work? For container health checks; exit status 0 or 1.

The worker and the reaper are judged by what moves in the database: a process that runs and does nothing is ill.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from typing import NoReturn

import typer
from sqlalchemy import exists, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.lifecycle import StageState
from service.settings import Settings
from service.store.database import Database, database_now
from service.store.fleet import live_workers
from service.store.models import StageRow

app = typer.Typer(no_args_is_help=True, help="Is this process doing its work? Exit status 0 or 1.")
ANSWER_S = 5.0
LATE_ROUNDS = 20


@app.command()
def api() -> None:
    """The API answers and its database is at the newest schema."""
    settings = Settings()
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    connection = http.client.HTTPConnection(host, settings.port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/readyz", headers={"Host": settings.allowed_hosts[0]})
        answer = connection.getresponse()
        if answer.status != 200:
            _ill(f"{answer.status}: {answer.read(2000).decode('utf-8', 'replace')}")
    except OSError as error:
        _ill(str(error))
    finally:
        connection.close()


@app.command()
def worker() -> None:
    """A worker of this host has been heard of lately."""
    _judge(lambda session, settings: any_worker_of(session, socket.gethostname(), settings.worker_silent_s))


@app.command()
def reaper() -> None:
    """No lease is long expired and no due stage long unannounced."""
    _judge(lambda session, settings: not is_neglected(session, LATE_ROUNDS * settings.reap_s + settings.lease_s))


def any_worker_of(session: Session, host: str, silent_s: float) -> bool:
    return any(row.host == host for row in live_workers(session, silent_s))


def is_neglected(session: Session, late_s: float) -> bool:
    """True when some reaper should have acted more than `late_s` ago."""
    expired = (StageRow.state == StageState.RUNNING.value) & (StageRow.lease_until < database_now() - late_s)
    unannounced = (
        (StageRow.state == StageState.QUEUED.value)
        & StageRow.published_at.is_(None)
        & (StageRow.not_before < database_now() - late_s)
    )
    return bool(session.scalar(select(exists().where(or_(expired, unannounced)))))


def _judge(is_well: Callable[[Session, Settings], bool]) -> None:
    settings = Settings()
    database = Database(settings.resolved_database_url)
    try:
        with database.read() as session:
            if not is_well(session, settings):
                _ill("nothing moves")
    except SQLAlchemyError as error:
        _ill(str(error).partition("\n")[0])
    finally:
        database.close()


def _ill(why: str) -> NoReturn:
    typer.echo(why, err=True)
    raise typer.Exit(1)
