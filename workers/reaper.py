"""Reaper: takes stages from silent workers and announces what waits. Any number of them may run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from service.queue.outbox import Sender, publish_due
from service.settings import Settings
from service.store.database import Database
from service.store.fleet import forget_silent_workers
from service.store.uploads import expire_datasets
from workers.claims import reap

log = logging.getLogger(__name__)


class Reaper:
    """Rounds on one database and broker.

    After an outage of the database no worker could renew its lease, so for one lease nobody's stage is taken: the
    living renew theirs first.
    """

    def __init__(
        self, settings: Settings, database: Database, send: Sender, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._database = database
        self._send = send
        self._clock = clock
        self._spare_until = -math.inf

    def round(self) -> tuple[int, int]:
        """How many stages were taken back and how many announced. A database that is away is logged, not raised."""
        try:
            return self._round()
        except SQLAlchemyError as error:
            log.warning("the database is away: %s", str(error).partition("\n")[0])
            self._spare_until = self._clock() + self._settings.lease_s
            return 0, 0

    def _round(self) -> tuple[int, int]:
        taken = 0
        if self._clock() >= self._spare_until:
            taken = reap(self._database, backoff_s=self._settings.retry_backoff_s)
        if taken:
            log.warning("took %d stage(s) back from silent workers", taken)
        with self._database.write() as session:
            forget_silent_workers(session, self._settings.worker_silent_s)
            expire_datasets(session)
        return taken, publish_due(self._database, self._send, resend_s=self._settings.resend_s)


def run_reaper(reaper: Reaper, every_s: float, pause: Callable[[float], bool]) -> None:
    """Rounds until `pause` (which waits that many seconds) says to end."""
    while not pause(every_s):
        reaper.round()
