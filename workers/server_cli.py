"""`bitwright-server`: the server's processes, one command each, and `up` for all of them on one machine."""

from __future__ import annotations

import ipaddress
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from celery.exceptions import SecurityWarning
from sqlalchemy.exc import SQLAlchemyError

from service.logs import configure_logging
from service.queue.celery_settings import make_celery
from service.queue.outbox import celery_sender
from service.settings import Settings, process_settings
from service.store.database import Database
from service.store.fleet import live_workers
from service.store.migrate import migrate as migrate_database
from workers import health_cli, keys_cli, measure_cli, store_cli
from workers.cli_errors import ServerCommands, alone_in, refuse_taken_port
from workers.hardware import Announcement, Presence, has_gpu, probe_profiles, queues_for, wanted_hardware
from workers.liveness import Watchdog
from workers.patience import patiently
from workers.processes import ManagedProcess, end_all
from workers.reaper import Reaper, run_reaper
from workers.sandbox import SandboxUnavailable, hide_environment

app = typer.Typer(cls=ServerCommands, no_args_is_help=True, add_completion=False, help=__doc__)
app.add_typer(keys_cli.app, name="keys")
app.add_typer(health_cli.app, name="health")
app.add_typer(store_cli.app)
app.add_typer(measure_cli.app)
LOOK_EVERY_S = 0.25
MIGRATE_PATIENCE_S = 60.0
DataFolder = Annotated[Path | None, typer.Option(help="Folder of database, messages and files; default .bitwright")]
Stages = Annotated[str | None, typer.Option(help="Where stage children find their functions, as module:attribute")]


def _settings(data_folder: Path | None = None, stages: str | None = None, **changes: object) -> Settings:
    given = {"data_folder": data_folder, "stages": stages, **changes}
    return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


@contextmanager
def _ending() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_open_bind(settings: Settings) -> None:
    if settings.auth == "off" and not is_loopback(settings.host):
        typer.echo(
            f"refusing to listen on {settings.host}: without keys, only this machine may reach the server; "
            "set BITWRIGHT_AUTH=keys and make one: bitwright-server keys create",
            err=True,
        )
        raise typer.Exit(2)


@app.command()
def migrate(data_folder: DataFolder = None) -> None:
    """Bring the database to the newest schema."""
    settings = _settings(data_folder)
    configure_logging(settings, "migrate")
    database = Database(settings.resolved_database_url)
    patiently(lambda: migrate_database(database), limit_s=MIGRATE_PATIENCE_S)
    database.close()


@app.command()
def api(data_folder: DataFolder = None) -> None:
    """Serve the API and the dashboard."""
    import uvicorn

    from service.app import create_app
    from service.http_protocol import HttpProtocol

    settings = _settings(data_folder)
    configure_logging(settings, "api")
    _refuse_open_bind(settings)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        http=HttpProtocol,
        ws="none",
        log_config=None,  # our handler writes uvicorn's lines too
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
    )


@app.command()
def worker(
    concurrency: Annotated[int, typer.Option(min=1, help="Stages at once; measurements want 1")] = 1,
    hardware: Annotated[
        str | None, typer.Option(help="Profiles to announce, by comma; auto: those configured and this machine's GPU")
    ] = None,
) -> None:
    """Announce this machine's hardware and take stages from its queues. Reads BITWRIGHT_* only."""
    settings = process_settings()
    configure_logging(settings, "worker")
    profiles = probe_profiles(settings.kernels, wanted_hardware(hardware, settings.hardware))
    if has_gpu(profiles) and "stage_memory_bytes" not in settings.model_fields_set:
        os.environ["BITWRIGHT_STAGE_MEMORY_BYTES"] = "0"  # CUDA reserves far more addresses than it uses
        process_settings.cache_clear()
        settings = process_settings()
    hide_environment()
    queues = queues_for(profiles)
    try:
        announcement = Announcement.of_this_machine(queues, profiles, settings.sandbox)
    except SandboxUnavailable as error:
        typer.echo(f"BITWRIGHT_SANDBOX={settings.sandbox}: {error}", err=True)
        raise typer.Exit(2) from None
    database = Database(settings.resolved_database_url)
    with _ending() as ended:
        if not _enter(announcement, database, ended):
            return

    from workers.celery_app import celery_app
    from workers.tasks import be_worker

    be_worker(announcement.worker_id)
    database.close()  # what a pool process inherits is not to include an open connection
    # Celery warns root because a pickled message is a program; ours are JSON and name one stage.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    presence = Presence(settings, announcement)
    presence.start()
    watchdog = Watchdog(database, queues, announcement.worker_id, settings.stall_s)
    watchdog.start()
    try:
        celery_app.worker_main(
            [
                "--quiet",
                "worker",
                "--without-heartbeat",
                "--without-gossip",
                "--without-mingle",
                f"--concurrency={concurrency}",
                f"--queues={','.join(queues)}",
                f"--hostname={announcement.worker_id}@%h",
                "--loglevel=WARNING",
            ]
        )
    finally:
        watchdog.stop()
        presence.end()
        database.close()


def _enter(announcement: Announcement, database: Database, ended: threading.Event) -> bool:
    """Announce the worker, waiting for a database that is away; False when told to end meanwhile."""
    try:
        patiently(lambda: announcement.enter(database), limit_s=float("inf"), give_up=ended.is_set, pause=ended.wait)
    except SQLAlchemyError:
        if not ended.is_set():
            raise
        return False
    return True


@app.command()
def reaper(data_folder: DataFolder = None) -> None:
    """Take stages back from dead workers and announce waiting ones."""
    settings = _settings(data_folder)
    configure_logging(settings, "reaper")
    database = Database(settings.resolved_database_url)
    with _ending() as ended:
        rounds = Reaper(settings, database, celery_sender(make_celery(settings)))
        run_reaper(rounds, settings.reap_s, ended.wait)
    database.close()


@app.command()
def up(
    data_folder: DataFolder = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on")] = None,
    stages: Stages = None,
) -> None:
    """Everything on this machine: database, API, dashboard, one worker and the reaper. Ctrl-C ends it."""
    settings = _settings(data_folder, stages, host=host, port=port)
    configure_logging(settings, "up")
    _refuse_open_bind(settings)
    refuse_taken_port(settings.host, settings.port)
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    with alone_in(settings.data_folder):
        _run_everything(settings)


def _run_everything(settings: Settings) -> None:
    """API and worker as processes that are started again when they end, the reaper here, until a signal."""
    database = Database(settings.resolved_database_url)
    patiently(lambda: migrate_database(database), limit_s=MIGRATE_PATIENCE_S)
    rounds = Reaper(settings, database, celery_sender(make_celery(settings)))
    environment = settings.as_environment()
    processes = [
        ManagedProcess("api", ("workers.server_cli", "api"), environment),
        ManagedProcess("worker", ("workers.server_cli", "worker"), environment),
    ]
    started_at = time.time()
    told = False
    next_round = 0.0
    with _ending() as ended:
        try:
            while not ended.is_set():
                for process in processes:
                    process.keep_running()
                if time.monotonic() >= next_round:
                    rounds.round()
                    next_round = time.monotonic() + settings.reap_s
                if not told and _answers(settings) and _has_worker(settings, database, started_at):
                    typer.echo(f"Bitwright is up: http://{settings.host}:{settings.port}/")
                    told = True
                ended.wait(LOOK_EVERY_S)
        finally:
            end_all(processes)
            database.close()


def _answers(settings: Settings) -> bool:
    import http.client

    connection = http.client.HTTPConnection(settings.host, settings.port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _has_worker(settings: Settings, database: Database, since: float) -> bool:
    with database.read() as session:
        return any(row.started_at >= since - 1 for row in live_workers(session, settings.worker_silent_s))


if __name__ == "__main__":
    app()
