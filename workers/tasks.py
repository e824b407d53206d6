"""Tasks: a message names a stage; everything else is asked of the database."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from functools import cache
from types import FrameType

from celery.signals import worker_process_init

from service.blobs import Blobs
from service.ids import new_id
from service.queue.celery_settings import RUN_STAGE
from service.queue.outbox import Sender, celery_sender, publish_due
from service.settings import Settings, process_settings
from service.store.database import Database
from workers.celery_app import celery_app
from workers.supervisor import Supervisor


@dataclass(frozen=True)
class WorkerParts:
    """The long-lived objects of one worker process."""

    settings: Settings
    database: Database
    supervisor: Supervisor
    send: Sender


@cache
def parts() -> WorkerParts:
    """Made at the first task, so after the fork: no connection is shared with the parent."""
    settings = process_settings()
    database = Database(settings.resolved_database_url)
    name = f"{socket.gethostname()}.{os.getpid()}.{new_id('worker')}"
    blobs = Blobs(settings.resolved_blob_url)
    supervisor = Supervisor(settings, database, blobs, name, lambda: _Process.is_ending)
    return WorkerParts(settings, database, supervisor, celery_sender(celery_app))


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _forget_parent_parts(**_: object) -> None:
    parts.cache_clear()


class _Process:
    """What a signal told this pool process. The parent, told to end too, waits for the task in hand."""

    is_ending = False

    @classmethod
    def end(cls, number: int, frame: FrameType | None) -> None:
        cls.is_ending = True


@celery_app.task(name=RUN_STAGE)  # type: ignore[untyped-decorator]
def run_stage(stage_id: str) -> None:
    """Do a stage if it is there to be done, then announce what became ready."""
    own = parts()
    # Not when the process starts: the pool sets its own handler after that.
    before = signal.signal(signal.SIGTERM, _Process.end)
    try:
        done = own.supervisor.run(stage_id)
    finally:
        signal.signal(signal.SIGTERM, before)
    if done and not _Process.is_ending:
        publish_due(own.database, own.send, resend_s=own.settings.resend_s)
