"""Tasks: a message names a stage; everything else is asked of the database."""

from __future__ import annotations

import mmap
import os
import socket
from dataclasses import dataclass
from functools import cache

from celery.signals import worker_process_init, worker_shutting_down

from service.blobs import Blobs
from service.ids import new_id
from service.queue.celery_settings import RUN_STAGE
from service.queue.outbox import Sender, celery_sender, publish_due
from service.settings import Settings, process_settings
from service.store.database import Database
from workers.celery_app import celery_app
from workers.supervisor import Supervisor

# One byte that the worker and its pool processes share, since they are forked after this line: set when the worker
# is told to end, so that a pool process puts its stage back instead of being waited for.
_ending = mmap.mmap(-1, 1)


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
    supervisor = Supervisor(settings, database, blobs, name, lambda: bool(_ending[0]))
    return WorkerParts(settings, database, supervisor, celery_sender(celery_app))


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _forget_parent_parts(**_: object) -> None:
    parts.cache_clear()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _tell_pool_processes(**_: object) -> None:
    _ending[0] = 1


@celery_app.task(name=RUN_STAGE)  # type: ignore[untyped-decorator]
def run_stage(stage_id: str) -> None:
    """Do a stage if it is there to be done, then announce what became ready."""
    own = parts()
    if own.supervisor.run(stage_id) and not _ending[0]:
        publish_due(own.database, own.send, resend_s=own.settings.resend_s)
