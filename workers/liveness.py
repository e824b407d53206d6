"""Liveness: a worker is alive when stages move, not when its process runs.

A consumer can lose its broker without noticing; the process then looks healthy and takes nothing. The database
shows it: a stage of this worker's queues is due and announced, and stays unclaimed while this worker is idle.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection

from sqlalchemy import exists, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.lifecycle import StageState
from service.store.database import Database, database_now
from service.store.models import StageRow
from workers.forking import no_fork_while_open

log = logging.getLogger(__name__)
END_GRACE_S = 10.0
LOOKS = 6
STALLED_STATUS = 75  # EX_TEMPFAIL: whoever keeps the process running starts it again


def is_stalled(session: Session, queues: Collection[str], worker_id: str, stall_s: float) -> bool:
    """True when a stage was due and announced for `stall_s`, nobody took it, and this worker does nothing."""
    waiting = exists().where(
        StageRow.state == StageState.QUEUED.value,
        StageRow.queue.in_(queues),
        StageRow.not_before < database_now() - stall_s,
        StageRow.published_at > database_now() - stall_s,
    )
    busy = exists().where(StageRow.state == StageState.RUNNING.value, StageRow.worker_id == worker_id)
    return bool(session.scalar(select(waiting & ~busy)))


def end_this_process() -> None:
    """SIGTERM first, so that the worker signs off; then, as a stalled consumer may not listen, the hard way."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_GRACE_S)
    os._exit(STALLED_STATUS)


class Watchdog(threading.Thread):
    """Ends this worker's process when it stalls, at the earliest `stall_s` after it began to watch."""

    def __init__(
        self,
        database: Database,
        queues: Collection[str],
        worker_id: str,
        stall_s: float,
        end: Callable[[], None] = end_this_process,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._database = database
        self._queues = queues
        self._worker_id = worker_id
        self._stall_s = stall_s
        self._end = end
        self._stopped = threading.Event()

    def run(self) -> None:
        patient_until = time.monotonic() + self._stall_s
        while not self._stopped.wait(self._stall_s / LOOKS):
            try:
                with no_fork_while_open(self._database), self._database.read() as session:
                    stalled = is_stalled(session, self._queues, self._worker_id, self._stall_s)
            except SQLAlchemyError:  # an outage is no stall; the time it took is not held against the worker
                patient_until = time.monotonic() + self._stall_s
                continue
            if stalled and time.monotonic() >= patient_until:
                log.error("stages are due and this worker takes none; starting anew")
                self._end()
                return

    def stop(self) -> None:
        self._stopped.set()
        self.join(timeout=1.0)
