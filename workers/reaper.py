"""Reaper: takes stages from silent workers and announces what waits. Any number of them may run."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from service.queue.outbox import Sender, publish_due
from service.settings import Settings
from service.store.database import Database
from service.store.fleet import forget_silent_workers
from workers.claims import reap

log = logging.getLogger(__name__)


def reap_once(settings: Settings, database: Database, send: Sender) -> tuple[int, int]:
    """One round; returns how many stages were taken back and how many announced."""
    taken = reap(database, backoff_s=settings.retry_backoff_s)
    with database.write() as session:
        forget_silent_workers(session, settings.worker_silent_s)
    return taken, publish_due(database, send, resend_s=settings.resend_s)


def reap_calmly(settings: Settings, database: Database, send: Sender) -> None:
    """One round; a database that is away is logged and tried again at the next."""
    try:
        taken, _ = reap_once(settings, database, send)
    except SQLAlchemyError as error:
        log.warning("the database is away: %s", error)
        return
    if taken:
        log.warning("took %d stage(s) back from silent workers", taken)


def run_reaper(settings: Settings, database: Database, send: Sender, pause: Callable[[float], bool]) -> None:
    """Rounds until `pause` (which waits that many seconds) says to end."""
    while not pause(settings.reap_s):
        reap_calmly(settings, database, send)
