"""Checkpoints: proven by the fence, and what they do to the count of attempts, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.store.database import Database, database_now
from service.store.models import SavedPartRow
from tests.contracts.test_stage_claims import claimed, expire, new_study, stages_of, study_of
from workers import claims


def lose(database: Database, study_id: str, *, saving: str | None = None) -> None:
    """An attempt that saves one part, or none, and then falls silent."""
    held = claimed(database, study_id, "check")
    if saving is not None:
        assert claims.checkpoint(database, held, lambda session: save(session, saving))
    expire(database, held.stage_id)
    assert claims.reap(database, backoff_s=0) == 1


def save(session: Session, name: str) -> int:
    """Enter a part; how many are new."""
    if session.get(SavedPartRow, ("key", name)) is not None:
        return 0
    session.add(
        SavedPartRow(
            saved_key="key", name=name, sha256="0" * 64, size_bytes=1, created_at=session.scalar(select(database_now()))
        )
    )
    return 1


def test_attempts_that_save_something_new_are_not_counted(database: Database) -> None:
    study_id = new_study(database, max_attempts=3)
    for number in range(6):
        lose(database, study_id, saving=f"part_{number}")
        assert study_of(database, study_id).error is None, "each attempt carried the stage on"
    lose(database, study_id)
    lose(database, study_id, saving="part_0")  # known already: nothing new
    study = study_of(database, study_id)
    assert study.state == "failed"
    assert study.error is not None
    assert study.error["code"] == "worker_lost"


def test_a_zombie_saves_nothing(database: Database) -> None:
    study_id = new_study(database)
    zombie = claimed(database, study_id, "check")
    expire(database, zombie.stage_id)
    assert claims.reap(database, backoff_s=0) == 1
    assert not claims.checkpoint(database, zombie, lambda session: save(session, "late"))
    heir = claimed(database, study_id, "check")
    assert not claims.checkpoint(database, zombie, lambda session: save(session, "later"))
    assert claims.checkpoint(database, heir, lambda session: save(session, "mine"))
    with database.read() as session:
        assert session.scalars(select(SavedPartRow.name)).all() == ["mine"]


def test_a_claim_lost_while_saving_is_lost_whole(database: Database) -> None:
    """The reaper comes in the middle of a checkpoint: either it waits for it, or nothing of it is kept."""
    study_id = new_study(database)
    held = claimed(database, study_id, "check")
    expire(database, held.stage_id)
    reaped: list[int] = []
    reaper = threading.Thread(target=lambda: reaped.append(claims.reap(database, backoff_s=0)))

    def slowly(session: Session) -> int:
        new = save(session, "part")
        session.flush()
        reaper.start()
        reaper.join(0.3)
        return new

    kept = claims.checkpoint(database, held, slowly)
    reaper.join()
    assert kept
    assert reaped == [1], "it waited for the row's lock"
    assert stages_of(database, study_id)["check"].fence > held.fence
    with database.read() as session:
        assert session.scalars(select(SavedPartRow.name)).all() == ["part"]
