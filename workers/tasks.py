"""Tasks: a message names a stage; everything else is asked of the database."""

from __future__ import annotations

import mmap
import os
import signal
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
from workers.sandbox import own_orphans
from workers.supervisor import Supervisor

# One byte that the worker and its pool processes share, since they are forked after this line: set when the worker
# is told to end, so that a pool process puts its stage back instead of being waited for.
_ending = mmap.mmap(-1, 1)
_worker_id = new_id("worker")


def be_worker(worker_id: str) -> None:
    """The name under which this process and the pool it forks claim stages."""
    global _worker_id
    _worker_id = worker_id


def is_ending() -> bool:
    """True when the worker, or this process of its pool alone, was told to end."""
    return bool(_ending[0]) or _pool_process.told_to_end


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
    blobs = Blobs(settings.resolved_blob_url)
    supervisor = Supervisor(settings, database, blobs, _worker_id, is_ending)
    return WorkerParts(settings, database, supervisor, celery_sender(celery_app))


class _PoolProcess:
    """A pool process that is told to end by itself, as when SIGTERM goes to a whole service: its stage goes back."""

    def __init__(self) -> None:
        self.told_to_end = False
        self.busy = False

    def on_sigterm(self, number: int, frame: object) -> None:
        self.told_to_end = True
        if not self.busy:
            self.leave()

    def leave(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


_pool_process = _PoolProcess()


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _begin_pool_process(**_: object) -> None:
    parts.cache_clear()
    own_orphans()
    signal.signal(signal.SIGTERM, _pool_process.on_sigterm)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _tell_pool_processes(**_: object) -> None:
    _ending[0] = 1


@celery_app.task(name=RUN_STAGE)  # type: ignore[untyped-decorator]
def run_stage(stage_id: str) -> None:
    """Do a stage if it is there to be done, then announce what became ready."""
    if is_ending():
        return  # the stage stays queued; its message is sent again
    own = parts()
    _pool_process.busy = True
    try:
        if own.supervisor.run(stage_id) and not is_ending():
            publish_due(own.database, own.send, resend_s=own.settings.resend_s)
    finally:
        _pool_process.busy = False
        if _pool_process.told_to_end and not _ending[0]:  # else the whole worker ends, in its own order
            _pool_process.leave()
