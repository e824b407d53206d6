"""A state machine over studies, workers, crashes and clocks: only legal steps, fences that only grow, nothing twice.

Hypothesis draws the order of submissions, claims, ends, deaths, cancellations, retries and reaps; after each step every
stage and study must have moved along `service.lifecycle`. Both databases.
"""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import delete, select

from service.lifecycle import (
    STAGE_TRANSITIONS,
    STUDY_TRANSITIONS,
    TERMINAL_STUDIES,
    StageState,
    StudyState,
    study_state,
)
from service.store.database import Database
from service.store.models import Base, EventRow, LiveStageRow, ModelRow, StageRow, StudyRow
from service.store.stages import create_study, wake_followers
from service.store.studies import now, request_cancel
from service.studies.plan import plan_study
from tests.contracts.test_stage_claims import ERROR, expire
from workers import claims
from workers.claims import Claim

STEPS, EXAMPLES = 20, 5


class Studies(RuleBasedStateMachine):
    """What the database must look like whatever happens; `database` is set on the subclass a test makes."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Claim] = []
        self.seen_stages: dict[str, tuple[StageState, int]] = {}
        self.seen_studies: dict[str, tuple[StudyState, int]] = {}
        self.workers = itertools.count()
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                if table.name not in ("alembic_version", "deployments"):
                    session.execute(delete(table))
            fields = {"sha256": "0", "name": "m", "size_bytes": 1, "files": [], "created_at": now(session)}
            session.add(ModelRow(id="model_1", **fields))

    def stages(self, state: StageState) -> list[StageRow]:
        with self.database.read() as session:
            return list(session.scalars(select(StageRow).where(StageRow.state == state.value).order_by(StageRow.id)))

    @rule(seed=st.integers(0, 1), devices=st.integers(1, 2), shards=st.integers(1, 2))
    def submit(self, seed: int, devices: int, shards: int) -> None:
        """Few seeds, so that studies often ask the same."""
        target: dict[str, Any] = {"operating_point": {"batch": 1}, "budgets": {"bops": 1.0}}
        spec = {
            "model": "model_1", "dataset": None, "seed": seed, "options": {},
            "targets": [{"hardware": f"hw{index}", **target} for index in range(devices)],
        }  # fmt: skip
        with self.database.write() as session:
            planned = plan_study(spec, shards=shards)
            create_study(session, name="s", spec=spec, stages=planned, max_attempts=2)

    @precondition(lambda self: self.stages(StageState.QUEUED))
    @rule(which=st.integers(0, 99))
    def claim(self, which: int) -> None:
        queued = self.stages(StageState.QUEUED)
        stage = queued[which % len(queued)]
        held = claims.claim(self.database, stage.id, worker_id=str(next(self.workers)), lease_s=600)
        if held is not None:
            assert held.fence == stage.fence + 1
            self.held.append(held)
            assert claims.claim(self.database, stage.id, worker_id="double", lease_s=600) is None

    def is_mine(self, held: Claim) -> bool:
        with self.database.read() as session:
            stage = session.get_one(StageRow, held.stage_id)
        return stage.fence == held.fence and stage.state == StageState.RUNNING.value

    @precondition(lambda self: self.held)
    @rule(
        which=st.integers(0, 99), end=st.sampled_from(["succeed", "fail", "cancel", "give_back", "put_back", "forget"])
    )
    def end(self, which: int, end: str) -> None:
        """A worker ends its stage, perhaps long after another has it; `forget` is a worker that is killed."""
        held = self.held[which % len(self.held)]
        mine = self.is_mine(held)
        match end:
            case "succeed":
                verdicts = {"verdicts": [{"verdict": "chosen"}]} if held.kind == "evaluate" else {}
                done = claims.succeed(self.database, held, outputs=[], summary=verdicts)
            case "fail":
                done = claims.fail(self.database, held, {**ERROR, "stage": held.kind})
            case "cancel":
                done = claims.cancel(self.database, held)
            case "give_back":
                done = claims.give_back(self.database, held, {**ERROR, "stage": held.kind}, backoff_s=0)
            case "put_back":
                done = claims.put_back(self.database, held)
            case _:
                expire(self.database, held.stage_id) if mine else None
                return
        assert done == mine, "only the newest claim may write"

    @rule()
    def reap(self) -> None:
        claims.reap(self.database, backoff_s=0)

    @rule(which=st.integers(0, 99))
    def cancel_study(self, which: int) -> None:
        with self.database.read() as session:
            studies = list(session.scalars(select(StudyRow.id).order_by(StudyRow.id)))
        if studies:
            with self.database.write() as session:
                request_cancel(session, studies[which % len(studies)])
            wake_followers(self.database)

    @invariant()
    def states_follow_the_lifecycle(self) -> None:
        with self.database.read() as session:
            stages = list(session.scalars(select(StageRow)))
            studies = list(session.scalars(select(StudyRow)))
            live = {row.input_key: row.stage_id for row in session.scalars(select(LiveStageRow))}
            finished = list(
                session.execute(
                    select(EventRow.study_id, EventRow.data).where(EventRow.kind == "stage_succeeded")
                ).all()
            )
        for stage in stages:
            state = StageState(stage.state)
            old, fence = self.seen_stages.get(stage.id, (StageState.BLOCKED, 0))
            assert stage.fence >= fence, "a fence only grows"
            assert state is old or _reachable(old, state), f"{old} became {state}"
            self.seen_stages[stage.id] = (state, stage.fence)
            if state in (StageState.QUEUED, StageState.RUNNING):
                assert live[stage.input_key or ""] == stage.id, "one live stage for an input"
        assert len(live) == sum(stage.state in ("queued", "running") for stage in stages)
        for study in studies:
            old_study, version = self.seen_studies.get(study.id, (StudyState.QUEUED, 0))
            state_now = StudyState(study.state)
            assert study.version >= version
            assert old_study not in TERMINAL_STUDIES or state_now is old_study, "what has ended stays as it ended"
            assert state_now is old_study or state_now in _after(old_study)
            own = [StageState(stage.state) for stage in stages if stage.study_id == study.id]
            assert state_now is study_state(own, cancel_requested=study.cancel_requested_at is not None)
            self.seen_studies[study.id] = (state_now, study.version)
        once = [
            (study_id, data["stage"], data["target"]) for study_id, data in finished if data["stage"] != "scan_shard"
        ]
        assert len(once) == len(set(once)), "no stage is finished twice"

    def teardown(self) -> None:
        """Whatever happened, every study ends once workers do their work."""
        for held in self.held:
            if self.is_mine(held):
                expire(self.database, held.stage_id)
        for _ in range(200):
            claims.reap(self.database, backoff_s=0)
            queued = self.stages(StageState.QUEUED)
            for stage in queued:
                held = claims.claim(self.database, stage.id, worker_id="last", lease_s=600)
                if held is not None:
                    assert claims.succeed(self.database, held, outputs=[], summary={})
            if not queued:
                break
        with self.database.read() as session:
            states = {StudyState(state) for state in session.scalars(select(StudyRow.state))}
        assert states <= TERMINAL_STUDIES, states


def _after(state: StudyState) -> set[StudyState]:
    """States that some legal steps lead to: one call may take several."""
    found, frontier = set(), {state}
    while frontier:
        frontier = {after for before in frontier for after in STUDY_TRANSITIONS[before]} - found
        found |= frontier
    return found


def _reachable(old: StageState, new: StageState) -> bool:
    found, frontier = set(), {old}
    while frontier:
        frontier = {after for before in frontier for after in STAGE_TRANSITIONS[before]} - found
        found |= frontier
    return new in found


def test_studies_move_along_their_lifecycle_whatever_happens(database: Database) -> None:
    machine = type("StudiesOnThisDatabase", (Studies,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
