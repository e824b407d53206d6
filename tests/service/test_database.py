"""The clock of the database, on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import time

from service.store.database import Database
from service.store.studies import now


def test_the_clock_counts_finer_than_rows_can_be_written(database: Database) -> None:
    times = []
    for _ in range(50):
        with database.read() as session:
            times.append(now(session))
    assert all(earlier < later for earlier, later in itertools.pairwise(times)), (
        "what is listed by time was written in that order"
    )
    assert abs(times[-1] - time.time()) < 60
