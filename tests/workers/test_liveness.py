"""A worker that takes nothing although stages are due ends itself; one that is busy, new or cut off does not."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import update

from service.store.database import Database, database_now
from service.store.models import StageRow
from tests.contracts.test_stage_claims import claimed, new_study
from workers.claims import Beat
from workers.heartbeat import Heartbeat
from workers.liveness import Watchdog, is_stalled


def announce_long_ago(database: Database, study_id: str) -> None:
    with database.write() as session:
        times = {"not_before": database_now() - 100, "published_at": database_now() - 1}
        session.execute(update(StageRow).where(StageRow.study_id == study_id).values(**times))


def stalled(database: Database, queues: tuple[str, ...] = ("check",)) -> bool:
    with database.read() as session:
        return is_stalled(session, queues, "w", 50.0)


def test_due_announced_and_unclaimed_is_stalled(database: Database) -> None:
    study_id = new_study(database)
    assert not stalled(database), "due only now"
    announce_long_ago(database, study_id)
    assert stalled(database)
    assert not stalled(database, ("scan",)), "not this worker's queue"


def test_a_busy_worker_is_not_stalled(database: Database) -> None:
    busy = new_study(database)
    claimed(database, busy, "check")  # by "w"
    announce_long_ago(database, new_study(database))
    assert not stalled(database)


def test_what_nobody_announces_is_not_the_workers_fault(database: Database) -> None:
    study_id = new_study(database)
    announce_long_ago(database, study_id)
    with database.write() as session:
        session.execute(update(StageRow).values(published_at=database_now() - 90))
    assert not stalled(database)


def test_the_watchdog_ends_a_stalled_worker_once_it_had_its_time(sqlite_template: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite3"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}")
    study_id = new_study(database)
    announce_long_ago(database, study_id)
    ended = threading.Event()
    begun = time.monotonic()
    watchdog = Watchdog(database, ["check"], "w", stall_s=1.2, end=ended.set)
    watchdog.start()
    with database.write() as session:
        session.execute(update(StageRow).values(published_at=database_now() + 5))
    assert ended.wait(10)
    assert time.monotonic() - begun >= 1.2
    watchdog.stop()
    database.close()


def test_a_heartbeat_beats_while_files_move_and_stops_when_told() -> None:
    beats: list[int] = []

    def beat() -> Beat:
        beats.append(1)
        return Beat.GO_ON if len(beats) < 3 else Beat.LOST

    with Heartbeat(beat, 0.01) as heart:
        while heart.is_alive():
            time.sleep(0.01)
    assert heart.answer is Beat.LOST
    assert len(beats) == 3


def test_a_heartbeat_that_fails_says_so() -> None:
    def beat() -> Beat:
        raise RuntimeError("a fault of ours")

    heart = Heartbeat(beat, 0.01)
    with pytest.raises(RuntimeError, match="fault"), heart:  # noqa: PT012
        while heart.is_alive():
            time.sleep(0.01)
