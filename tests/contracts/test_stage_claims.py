"""The rules of claim, lease, fence, fan-in, outbox and reaper, on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text, update

from service.lifecycle import TERMINAL_STUDIES, StageState, StudyState
from service.queue.outbox import publish_due
from service.store.database import Database, database_now
from service.store.migrate import is_current, migrate
from service.store.models import ArtifactRow, Base, EventRow, ModelRow, StageRow, StudyRow
from service.store.stages import create_study
from service.store.studies import now, request_cancel
from service.studies.plan import plan_study
from tests.service.stack import SentMessages
from workers import claims
from workers.claims import Beat, Claim, OutputFile

ERROR = {"category": "user", "code": "op_unsupported", "message": "Loop", "hint": "", "stage": "check"}

SEEDS = itertools.count()
"""No two studies ask the same, so none shares a stage with another."""


def new_study(database: Database, targets: int = 1, max_attempts: int = 3) -> str:
    spec: dict[str, Any] = {
        "model": "model_1",
        "dataset": None,
        "targets": [{"hardware": f"hw{index}", "budgets": {"latency_ms": "0.6x"}} for index in range(targets)],
        "seed": next(SEEDS),
        "options": {},
    }
    with database.write() as session:
        if session.get(ModelRow, "model_1") is None:
            session.add(ModelRow(id="model_1", sha256="0", name="m", size_bytes=1, files=[], created_at=now(session)))
            session.flush()
        return create_study(session, name="s", spec=spec, stages=plan_study(spec), max_attempts=max_attempts).id


def stages_of(database: Database, study_id: str) -> dict[str, StageRow]:
    with database.read() as session:
        rows = session.scalars(select(StageRow).where(StageRow.study_id == study_id).order_by(StageRow.position))
        return {f"{row.kind}{'' if row.target is None else row.target}": row for row in rows}


def study_of(database: Database, study_id: str) -> StudyRow:
    with database.read() as session:
        return session.get_one(StudyRow, study_id)


def claimed(database: Database, study_id: str, name: str, lease_s: float = 60.0) -> Claim:
    held = claims.claim(database, stages_of(database, study_id)[name].id, worker_id="w", lease_s=lease_s)
    assert held is not None, f"{name} cannot be claimed"
    return held


def finish(database: Database, study_id: str, name: str, **summary: Any) -> None:
    held = claimed(database, study_id, name)
    output = OutputFile("report.json", "ab" * 32, 2, "application/json")
    assert claims.succeed(database, held, outputs=[output], summary=summary)


def expire(database: Database, stage_id: str) -> None:
    with database.write() as session:
        session.execute(update(StageRow).where(StageRow.id == stage_id).values(lease_until=database_now() - 1))


def test_migrations_make_the_tables_of_the_models(database: Database) -> None:
    with database.writer.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    assert is_current(database)
    migrate(database)  # again: nothing to do


def test_the_clock_is_the_databases_and_moves(database: Database) -> None:
    with database.read() as session:
        first = now(session)
    assert abs(first - time.time()) < 5
    time.sleep(0.02)
    with database.read() as session:
        assert now(session) > first


def test_committed_increments_are_all_kept(database: Database) -> None:
    with database.write() as session:
        session.execute(text("CREATE TABLE counter (n INTEGER)"))
        session.execute(text("INSERT INTO counter VALUES (0)"))

    def add_ten(_: int) -> None:
        for _ in range(10):
            with database.write() as session:
                lock = "" if database.is_sqlite else " FOR UPDATE"
                n = session.execute(text(f"SELECT n FROM counter{lock}")).scalar_one()
                session.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_ten, range(4)))
    with database.read() as session:
        assert session.execute(text("SELECT n FROM counter")).scalar_one() == 40


def test_a_study_goes_through_its_stages_to_success(database: Database) -> None:
    study_id = new_study(database, targets=2)
    states = {name: row.state for name, row in stages_of(database, study_id).items()}
    assert states == {
        "check": "queued", "scan_shard": "blocked", "scan0": "blocked", "scan1": "blocked", "measure0": "blocked",
        "measure1": "blocked", "solve0": "blocked", "solve1": "blocked", "evaluate0": "blocked", "evaluate1": "blocked",
    }  # fmt: skip
    finish(database, study_id, "check")
    assert study_of(database, study_id).state == "running"
    for name in ("scan_shard", "scan0", "scan1", "measure0"):
        finish(database, study_id, name)
        assert stages_of(database, study_id)["solve1"].state == "blocked"
    finish(database, study_id, "solve0")
    finish(database, study_id, "measure1")
    finish(database, study_id, "solve1")
    finish(database, study_id, "evaluate1", verdicts=[{"verdict": "infeasible"}])
    assert study_of(database, study_id).verdicts is None
    finish(database, study_id, "evaluate0", verdicts=[{"verdict": "chosen"}])
    study = study_of(database, study_id)
    assert study.state == "succeeded"
    assert study.verdicts == [{"verdict": "chosen"}, {"verdict": "infeasible"}]
    assert study.finished_at is not None
    with database.read() as session:
        assert {row.target for row in session.scalars(select(ArtifactRow))} == {0, 1}
        events = list(session.scalars(select(EventRow).order_by(EventRow.seq)))
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert study.version == events[-1].seq


def test_one_of_many_claims_wins(database: Database) -> None:
    stage_id = stages_of(database, new_study(database))["check"].id
    start = threading.Barrier(6)

    def attempt(worker: int) -> Claim | None:
        start.wait()
        return claims.claim(database, stage_id, worker_id=str(worker), lease_s=60)

    with ThreadPoolExecutor(6) as pool:
        won = [held for held in pool.map(attempt, range(6)) if held is not None]
    assert len(won) == 1
    assert won[0].fence == won[0].attempt == 1


def test_the_last_two_finishers_release_what_waits(database: Database) -> None:
    for _ in range(10):
        study_id = new_study(database)
        finish(database, study_id, "check")
        held = [claimed(database, study_id, name) for name in ("scan0", "measure0")]
        start = threading.Barrier(2)

        def end(one: Claim, start: threading.Barrier = start) -> bool:
            start.wait()
            return claims.succeed(database, one, outputs=[], summary={})

        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(end, held))
        assert stages_of(database, study_id)["solve0"].state == "queued"


def test_nothing_to_claim_is_quiet(database: Database) -> None:
    study_id = new_study(database)
    stages = stages_of(database, study_id)
    assert claims.claim(database, "stage_unknown", worker_id="w", lease_s=1) is None
    assert claims.claim(database, stages["scan0"].id, worker_id="w", lease_s=1) is None
    with database.write() as session:
        later = update(StageRow).where(StageRow.id == stages["check"].id).values(not_before=database_now() + 60)
        session.execute(later)
    assert claims.claim(database, stages["check"].id, worker_id="w", lease_s=1) is None


def test_a_beat_renews_the_lease_and_tells_the_progress(database: Database) -> None:
    study_id = new_study(database)
    held = claimed(database, study_id, "check", lease_s=1.0)
    before, version = stages_of(database, study_id)["check"].lease_until, study_of(database, study_id).version
    assert claims.beat(database, held, lease_s=60.0) is Beat.GO_ON
    assert study_of(database, study_id).version == version
    progress = {"done": 1, "total": 2, "unit": "layers", "message": ""}
    assert claims.beat(database, held, lease_s=60.0, progress=progress) is Beat.GO_ON
    stage = stages_of(database, study_id)["check"]
    assert stage.progress == progress
    assert before is not None
    assert stage.lease_until is not None
    assert stage.lease_until > before + 50
    assert study_of(database, study_id).version == version + 1


def test_an_expired_lease_goes_to_another_and_the_zombie_is_refused(database: Database) -> None:
    study_id = new_study(database)
    zombie = claimed(database, study_id, "check")
    assert claims.reap(database, backoff_s=0) == 0
    expire(database, zombie.stage_id)
    assert claims.reap(database, backoff_s=0) == 1
    assert claims.reap(database, backoff_s=0) == 0
    heir = claimed(database, study_id, "check")
    assert heir.fence > zombie.fence
    version = study_of(database, study_id).version
    assert claims.beat(database, zombie, lease_s=60) is Beat.LOST
    assert claims.beat(database, zombie, lease_s=60, progress={"done": 9}) is Beat.LOST
    assert not claims.set_input_key(database, zombie, "late")
    assert not claims.succeed(database, zombie, outputs=[], summary={})
    assert not claims.fail(database, zombie, ERROR)
    assert not claims.cancel(database, zombie)
    assert not claims.give_back(database, zombie, ERROR, backoff_s=0)
    assert study_of(database, study_id).version == version
    assert claims.succeed(database, heir, outputs=[], summary={})


def test_a_stage_that_kills_its_workers_fails_after_its_last_attempt(database: Database) -> None:
    study_id = new_study(database, max_attempts=2)
    for _ in range(2):
        assert study_of(database, study_id).error is None
        expire(database, claimed(database, study_id, "check").stage_id)
        assert claims.reap(database, backoff_s=0) == 1
    study = study_of(database, study_id)
    assert study.state == "failed"
    assert study.error is not None
    assert (study.error["category"], study.error["code"]) == ("infrastructure", "worker_lost")
    assert {row.state for row in stages_of(database, study_id).values()} == {"failed", "cancelled"}


def test_a_lost_attempt_waits_longer_each_time(database: Database) -> None:
    study_id = new_study(database)
    held = claimed(database, study_id, "check")
    assert claims.give_back(database, held, ERROR, backoff_s=50.0)
    stage = stages_of(database, study_id)["check"]
    with database.read() as session:
        wait_s = stage.not_before - now(session)
    assert stage.state == "queued"
    assert 45 < wait_s <= 50
    assert claims.claim(database, stage.id, worker_id="w", lease_s=1) is None


def test_a_stage_put_back_keeps_its_attempts(database: Database) -> None:
    study_id = new_study(database, max_attempts=1)
    held = claimed(database, study_id, "check")
    assert claims.put_back(database, held)
    assert not claims.put_back(database, held)
    stage = stages_of(database, study_id)["check"]
    assert (stage.state, stage.attempt, stage.published_at) == ("queued", 0, None)
    assert study_of(database, study_id).state == "queued"
    assert not claims.succeed(database, held, outputs=[], summary={})
    finish(database, study_id, "check")


def test_an_error_ends_the_study_once_running_stages_have_stopped(database: Database) -> None:
    study_id = new_study(database)
    finish(database, study_id, "check")
    scan, measure = claimed(database, study_id, "scan0"), claimed(database, study_id, "measure0")
    assert claims.fail(database, scan, {**ERROR, "stage": "scan"})
    assert study_of(database, study_id).state == "running"
    assert claims.beat(database, measure, lease_s=60) is Beat.STOP
    assert claims.cancel(database, measure)
    study = study_of(database, study_id)
    assert study.state == "failed"
    assert study.error == {**ERROR, "stage": "scan"}


def test_cancelling_stops_waiting_stages_at_once_and_running_ones_at_the_beat(database: Database) -> None:
    waiting, running = new_study(database), new_study(database)
    held = claimed(database, running, "check")
    for study_id, state in ((waiting, "cancelled"), (running, "cancelling")):
        with database.write() as session:
            study, stoppable = request_cancel(session, study_id)
            assert stoppable
            assert study is not None
            assert study.state == state
    version = study_of(database, running).version
    with database.write() as session:
        request_cancel(session, running)
    assert study_of(database, running).version == version, "asking twice is asking once"
    assert claims.beat(database, held, lease_s=60) is Beat.STOP
    assert claims.cancel(database, held)
    assert study_of(database, running).state == "cancelled"
    with database.write() as session:
        assert request_cancel(session, running)[1] is False


def test_the_reaper_closes_a_cancelled_stage_of_a_dead_worker(database: Database) -> None:
    study_id = new_study(database)
    held = claimed(database, study_id, "check")
    with database.write() as session:
        request_cancel(session, study_id)
    expire(database, held.stage_id)
    assert claims.reap(database, backoff_s=0) == 1
    assert study_of(database, study_id).state == "cancelled"


def test_the_outbox_sends_what_is_due_and_again_when_nobody_came(database: Database, messages: SentMessages) -> None:
    study_id = new_study(database)
    stage_id = stages_of(database, study_id)["check"].id
    messages.broken = True
    assert publish_due(database, messages, resend_s=0.1) == 0
    messages.broken = False
    assert publish_due(database, messages, resend_s=60) == 0, "marked already; only resend_s brings it back"
    time.sleep(0.15)
    assert publish_due(database, messages, resend_s=0.1) == 1
    assert messages.sent == [(stage_id, "check")]
    claimed(database, study_id, "check")
    time.sleep(0.15)
    assert publish_due(database, messages, resend_s=0.1) == 0, "a running stage is nobody's to take"


def test_two_outboxes_do_not_send_the_same_message(database: Database) -> None:
    for _ in range(20):
        new_study(database)
    sent = SentMessages()
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: publish_due(database, sent, resend_s=60), range(4)))
    assert sum(counts) == len(sent.sent) == len(set(sent.sent)) == 20


def test_finished_twin_is_found_by_input(database: Database) -> None:
    study_id = new_study(database)
    held = claimed(database, study_id, "check")
    assert claims.set_input_key(database, held, "key")
    assert claims.finished_twin(database, "key") is None
    output = OutputFile("graph.json", "cd" * 32, 3)
    assert claims.succeed(database, held, outputs=[output], summary={"layers": 2})
    assert claims.finished_twin(database, "key") == (held.stage_id, [output], {"layers": 2})


@pytest.mark.parametrize("seed", range(3))
def test_random_deaths_doubles_and_zombies_still_end_every_study(database: Database, seed: int) -> None:
    """Workers die, wake up late and get doubled messages: every study ends, no stage is finished twice."""
    import random

    dice = random.Random(seed)
    studies = [new_study(database, targets=dice.choice((1, 2)), max_attempts=9) for _ in range(2)]
    zombies: list[Claim] = []
    late_writes = 0
    for _ in range(600):
        queued = [
            stage.id
            for study_id in studies
            for stage in stages_of(database, study_id).values()
            if stage.state == StageState.QUEUED.value
        ]
        if not queued:
            claims.reap(database, backoff_s=0)
            if all(StudyState(study_of(database, one).state) in TERMINAL_STUDIES for one in studies):
                break
            continue
        stage_id = dice.choice(queued)
        held = claims.claim(database, stage_id, worker_id="w", lease_s=60)
        assert held is not None
        assert claims.claim(database, stage_id, worker_id="double", lease_s=60) is None
        if dice.random() < 0.3:
            expire(database, stage_id)
            zombies.append(held)
            if dice.random() < 0.5:
                claims.reap(database, backoff_s=0)
        else:
            assert claims.succeed(database, held, outputs=[], summary={})
        for zombie in zombies:
            reaped = stages_by_id(database, zombie.stage_id).fence != zombie.fence
            if reaped:
                late_writes += claims.succeed(database, zombie, outputs=[], summary={"late": True})
    assert late_writes == 0
    assert {study_of(database, one).state for one in studies} == {"succeeded"}
    with database.read() as session:
        done = list(session.scalars(select(EventRow.data).where(EventRow.kind == "stage_succeeded")))
        count = len(list(session.scalars(select(StageRow.id))))
    assert len(done) == count


def stages_by_id(database: Database, stage_id: str) -> StageRow:
    with database.read() as session:
        return session.get_one(StageRow, stage_id)
