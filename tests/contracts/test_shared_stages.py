"""Stages that ask the same are done once: satisfied from the store, or followed while they live. Both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, update

from service.store.database import Database
from service.store.fleet import announce_worker
from service.store.models import DatasetRow, EventRow, HardwareProfileRow, LiveStageRow, ModelRow, StageRow
from service.store.stages import create_study, wake_followers
from service.store.studies import now, request_cancel
from service.studies.plan import plan_study
from tests.contracts.test_stage_claims import ERROR, claimed, expire, finish, stages_of, study_of
from workers import claims


def ask(
    database: Database, hardware: tuple[str, ...] = ("hw0",), shards: int = 1, max_attempts: int = 3, **changes: Any
) -> str:
    """A study; two with the same arguments ask the same."""
    targets = [{"hardware": slug, "operating_point": {"batch": 1}, "budgets": {"bops": 1.0}} for slug in hardware]
    spec = {"model": "model_1", "dataset": None, "targets": targets, "seed": 0, "options": {}, **changes}
    with database.write() as session:
        if session.get(ModelRow, "model_1") is None:
            session.add(ModelRow(id="model_1", sha256="0", name="m", size_bytes=1, files=[], created_at=now(session)))
            session.flush()
        stages = plan_study(spec, shards=shards)
        return create_study(session, name="s", spec=spec, stages=stages, max_attempts=max_attempts).id


def states(database: Database, study_id: str) -> dict[str, str]:
    return {name: row.state for name, row in stages_of(database, study_id).items()}


def carry_through(database: Database, study_id: str) -> None:
    for name in ("check", "scan0", "measure0", "solve0", "evaluate0"):
        if stages_of(database, study_id)[name].state == "queued":
            finish(database, study_id, name, **({"verdicts": [{"verdict": "chosen"}]} if name == "evaluate0" else {}))


def test_a_second_study_follows_the_live_stages_of_the_first(database: Database) -> None:
    first, second = ask(database), ask(database)
    follower = stages_of(database, second)["check"]
    assert (follower.state, follower.follows) == ("blocked", stages_of(database, first)["check"].id)
    assert claims.claim(database, follower.id, worker_id="w", lease_s=1) is None
    finish(database, first, "check")
    assert states(database, second)["check"] == "succeeded"
    assert stages_of(database, second)["check"].reused_from == stages_of(database, first)["check"].id
    carry_through(database, first)
    assert study_of(database, second).state == "succeeded"
    assert study_of(database, second).verdicts == [{"verdict": "chosen"}]
    with database.read() as session:
        finished = list(session.scalars(select(EventRow.data).where(EventRow.kind == "stage_succeeded")))
        assert sum(not data["reused"] for data in finished) == 5, "each stage was done once"
        assert list(session.scalars(select(LiveStageRow))) == []


def test_a_finished_study_satisfies_its_like_at_once_and_without_a_worker(database: Database) -> None:
    carry_through(database, ask(database))
    again = ask(database)
    study = study_of(database, again)
    assert (study.state, study.verdicts) == ("succeeded", [{"verdict": "chosen"}])
    assert study.finished_at is not None


def test_another_target_shares_all_but_its_own_chain(database: Database) -> None:
    announce(database, "hw0", ["int8"], "a board")
    announce(database, "hw1", ["int8"], "another board")
    carry_through(database, ask(database))
    found = states(database, ask(database, ("hw1", "hw0")))
    assert {name for name, state in found.items() if state == "succeeded"} == {
        "check", "scan_shard", "scan0", "scan1", "measure1", "solve1", "evaluate1",
    }  # fmt: skip
    assert found["measure0"] == "queued"


def announce(database: Database, slug: str, recipes: list[Any], name: str) -> None:
    profile = {"slug": slug, "device": {"name": name}, "support": [], "recipes": recipes}
    with database.write() as session:
        announce_worker(
            session, worker_id=slug, host="h", version="0", queues=[], sandbox="rlimits", profiles=[profile]
        )


def test_a_new_device_with_known_numerics_needs_no_scan(database: Database) -> None:
    announce(database, "hw0", ["int8"], "a board")
    announce(database, "hw1", ["int8"], "another board")
    announce(database, "hw2", ["int4"], "a third")
    carry_through(database, ask(database))
    same, other = states(database, ask(database, ("hw1",))), states(database, ask(database, ("hw2",)))
    assert (same["check"], same["scan0"], same["measure0"]) == ("succeeded", "succeeded", "queued")
    assert (other["check"], other["scan0"]) == ("succeeded", "queued")


def test_targets_of_differing_numerics_are_scanned_together_and_known_apart(database: Database) -> None:
    for slug, recipes in (("hw0", ["int8"]), ("hw1", ["int8"]), ("hw2", ["int4"]), ("hw3", ["int2"])):
        announce(database, slug, recipes, f"the board {slug}")
    mixed = ask(database, ("hw0", "hw1", "hw2"))
    finish(database, mixed, "check")
    assert states(database, mixed)["scan_shard"] == "queued", "one stage scans the union"
    assert {states(database, mixed)[name] for name in ("scan0", "scan1", "scan2")} == {"blocked"}
    finish(database, mixed, "scan_shard")
    scans = stages_of(database, mixed)
    assert [scans[name].state for name in ("scan0", "scan1", "scan2")] == ["queued", "blocked", "queued"]
    assert scans["scan1"].follows == scans["scan0"].id, "equal numerics, one scan"
    finish(database, mixed, "scan0")
    assert states(database, mixed)["scan1"] == "succeeded"
    finish(database, mixed, "scan2")
    for slug in ("hw0", "hw2"):
        assert states(database, ask(database, (slug,)))["scan0"] == "succeeded", "whatever was asked beside it"
    again = states(database, ask(database, ("hw2", "hw1"), shards=3))
    assert {state for name, state in again.items() if name.startswith("scan")} == {"succeeded"}
    wider = states(database, ask(database, ("hw0", "hw3")))
    assert wider["scan_shard"] == "queued", "some numerics are new"


def test_a_new_driver_measures_again(database: Database) -> None:
    announce(database, "hw0", ["int8"], "a board")
    carry_through(database, ask(database))
    with database.write() as session:
        session.execute(update(HardwareProfileRow).values(profile_key="a newer driver"))
    found = states(database, ask(database))
    assert (found["scan0"], found["measure0"]) == ("succeeded", "queued")


@pytest.mark.parametrize("ending", ["fail", "cancel_queued", "cancel_running", "worker_lost"])
def test_followers_take_over_when_their_leader_ends_without_success(database: Database, ending: str) -> None:
    first, second, third = (ask(database, max_attempts=1) for _ in range(3))
    if ending == "cancel_queued":
        with database.write() as session:
            request_cancel(session, first)
        assert wake_followers(database) == 2
    else:
        held = claimed(database, first, "check")
        if ending == "fail":
            assert claims.fail(database, held, ERROR)
        elif ending == "cancel_running":
            with database.write() as session:
                request_cancel(session, first)
            assert claims.cancel(database, held)
        else:
            expire(database, held.stage_id)
            assert claims.reap(database, backoff_s=0) == 1
    leaders = [study for study in (second, third) if states(database, study)["check"] == "queued"]
    assert len(leaders) == 1, "one of them takes over, the other follows it"
    (follower,) = {second, third} - set(leaders)
    assert stages_of(database, follower)["check"].follows == stages_of(database, leaders[0])["check"].id
    finish(database, leaders[0], "check")
    assert states(database, follower)["check"] == "succeeded"


def test_a_stage_put_back_or_given_another_attempt_keeps_its_followers(database: Database) -> None:
    first, second = ask(database), ask(database)
    assert claims.put_back(database, claimed(database, first, "check"))
    assert claims.give_back(database, claimed(database, first, "check"), ERROR, backoff_s=0)
    assert stages_of(database, second)["check"].follows == stages_of(database, first)["check"].id


def test_a_crash_between_success_and_wake_up_is_made_good_by_the_reaper(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ask(database), ask(database)
    with monkeypatch.context() as crash:
        crash.setattr(claims, "wake_followers", lambda _: 0)
        finish(database, first, "check")
    assert states(database, second)["check"] == "blocked"
    claims.reap(database, backoff_s=0)
    assert states(database, second)["check"] == "succeeded"


def test_studies_submitted_at_once_have_one_live_stage(database: Database) -> None:
    ask(database, seed=1)
    start = threading.Barrier(6)

    def submit(_: int) -> str:
        start.wait()
        return ask(database)

    with ThreadPoolExecutor(6) as pool:
        studies = list(pool.map(submit, range(6)))
    found = [states(database, study)["check"] for study in studies]
    assert sorted(found) == ["blocked"] * 5 + ["queued"]
    carry_through(database, next(study for study in studies if states(database, study)["check"] == "queued"))
    assert {study_of(database, study).state for study in studies} == {"succeeded"}


def test_shards_are_satisfied_by_a_scan_that_was_done_whole(database: Database) -> None:
    def shards_of(study_id: str) -> list[StageRow]:
        with database.read() as session:
            query = select(StageRow).where(StageRow.study_id == study_id, StageRow.kind == "scan_shard")
            return list(session.scalars(query))

    fresh = ask(database, shards=3)
    finish(database, fresh, "check")
    assert [shard.state for shard in shards_of(fresh)] == ["queued"] * 3
    assert states(database, fresh)["scan0"] == "blocked", "its shards come first"
    with database.write() as session:
        request_cancel(session, fresh)
    carry_through(database, ask(database))
    again = ask(database, shards=3)
    assert [shard.state for shard in shards_of(again)] == ["succeeded"] * 3
    assert study_of(database, again).state == "succeeded"


def test_a_deleted_dataset_ends_the_study_with_a_users_error(database: Database) -> None:
    with database.write() as session:
        fields = {"sha256": "d", "name": "d", "format": "npz", "size_bytes": 1, "created_at": now(session)}
        session.add(DatasetRow(id="dataset_1", **fields))
    study_id = ask(database, dataset="dataset_1")
    held = claimed(database, study_id, "check")
    with database.write() as session:
        session.execute(update(DatasetRow).values(deleted_at=1.0))
    assert claims.succeed(database, held, outputs=[], summary={})
    study = study_of(database, study_id)
    assert study.state == "failed"
    assert study.error is not None
    assert (study.error["category"], study.error["code"]) == ("user", "dataset_deleted")
    assert "failed" in states(database, study_id).values()
