"""What a study can be asked besides its state: allocations, evaluations, retry, clone, compare. Both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, select, update

from service.blobs import Blobs
from service.settings import Settings
from service.store.database import Database, database_now
from service.store.fleet import worker_gone
from service.store.models import DeploymentRow, IdempotencyKeyRow, StageRow, StudyRow, WorkerRow
from tests.contracts.test_rest_api import post_study, problem
from tests.contracts.test_stage_claims import ERROR, claimed, finish, stages_of
from tests.service.stack import study_body, upload_model
from workers import claims
from workers.supervisor import Supervisor


@pytest.fixture
def worker(settings: Settings, database: Database) -> Supervisor:
    return Supervisor(settings, database, Blobs(settings.resolved_blob_url), "worker_test")


def work_off(worker: Supervisor, database: Database) -> list[str]:
    """Do every queued stage; the kinds in the order they were done."""
    done: list[str] = []
    while True:
        with database.read() as session:
            query = select(StageRow.id, StageRow.kind).where(StageRow.state == "queued").order_by(StageRow.position)
            stage = session.execute(query).first()
        if stage is None:
            return done
        assert worker.run(stage.id)
        done.append(stage.kind)


def ask(http: httpx.Client, study: str, wait: float = 0.0, **body: Any) -> httpx.Response:
    return http.post(f"/v1/studies/{study}/allocations?wait={wait}", json=body)


def test_allocations_come_from_the_front_or_from_a_solve_and_never_from_a_scan(
    http: httpx.Client, worker: Supervisor, database: Database
) -> None:
    study = post_study(http)["id"]
    problem(ask(http, study, budgets={"latency_ms": 1.5}), 409, "not_ready")
    assert work_off(worker, database) == ["check", "scan", "measure", "solve", "evaluate"]
    front = ask(http, study, budgets={"latency_ms": 1.45}, within=1.0)
    assert front.status_code == 201, front.text
    found = front.json()
    assert (found["origin"], found["state"], found["is_terminal"]) == ("front", "succeeded", True)
    assert found["result"]["predicted"] == {"latency_ms": pytest.approx(1.4)}, "the dearest point within the budget"
    assert found["result"]["surrogate_loss"] == pytest.approx(0.5 / 9)
    assert found["result"]["gap"] == pytest.approx((0.5 / 9 - 0.5 / 16) / (0.5 / 16)), "what the next point may gain"
    share = ask(http, study, budgets={"latency_ms": "0.5x"}, within=1.0).json()
    assert share["result"]["limits"] == {"latency_ms": 1.5}, "half of full precision's 3 ms"
    assert work_off(worker, database) == [], "nothing was asked of a worker"

    exact = ask(http, study, budgets={"latency_ms": 1.45}, within=1.0, exact=True)
    assert (exact.status_code, exact.json()["origin"], exact.json()["state"]) == (202, "solved", "queued")
    assert work_off(worker, database) == ["answer"]
    again = http.get(exact.headers["location"]).json()
    assert (again["state"], again["result"]["precisions"]) == ("succeeded", {"a": "w4a8"})
    twice = ask(http, study, budgets={"latency_ms": 1.45})
    assert (twice.status_code, twice.json()["result"]) == (201, again["result"]), "asked before, so stored"
    assert ask(http, study, budgets={"size_bytes": 10, "bops": 1.0}).status_code == 202
    assert work_off(worker, database) == ["answer"]

    place = {"hardware": "tiny-gpu", "operating_point": {"batch": 2}}
    other = ask(http, study, target=place, budgets={"latency_ms": "0.5x"})
    assert (other.status_code, other.json()["position"]) == (202, None)
    assert work_off(worker, database) == ["check", "scan", "measure", "solve", "answer"]
    same = ask(http, study, target={"hardware": "tiny-cpu"}, budgets={"latency_ms": 1.45}, within=1.0).json()
    assert (same["position"], same["origin"]) == (0, "front")

    listed = http.get(f"/v1/studies/{study}/allocations?limit=4").json()
    assert len(listed["items"]) == 4
    assert [plan["name"] for plan in listed["planned"]] == ["gauss_newton"]
    rest = http.get(f"/v1/studies/{study}/allocations?cursor={listed['next_cursor']}").json()
    assert (len(rest["items"]), rest["planned"]) == (3, [])
    assert [one["id"] for one in http.get("/v1/studies").json()["items"]] == [study], "runs are no studies"


def test_an_allocation_can_be_waited_for(http: httpx.Client, worker: Supervisor, database: Database) -> None:
    study = post_study(http)["id"]
    work_off(worker, database)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, http, study, 20.0, budgets={"bops": 1.0})
        while not work_off(worker, database):
            assert not asked.done(), asked.result().text
        answer = asked.result()
    assert (answer.status_code, answer.json()["state"]) == (201, "succeeded")


def test_wrong_allocations_are_refused(http: httpx.Client, worker: Supervisor, database: Database) -> None:
    study = post_study(http)["id"]
    problem(ask(http, study, budgets={}), 422, "invalid_request")
    problem(ask(http, study, budgets={"watts": 1}), 422, "invalid_request")
    problem(ask(http, study, budgets={"bops": 1.0}, target=7), 404, "not_found")
    problem(ask(http, study, budgets={"bops": 1.0}, target={"hardware": "abacus"}), 404, "hardware_unknown")
    problem(ask(http, "study_none", budgets={"bops": 1.0}), 404, "not_found")
    problem(http.get(f"/v1/studies/{study}/allocations/none"), 404, "not_found")


def test_an_allocation_waits_for_the_worker_of_its_device(
    http: httpx.Client, worker: Supervisor, database: Database
) -> None:
    study = post_study(http)["id"]
    work_off(worker, database)
    with database.write() as session:
        worker_gone(session, "worker_test")
    asked = ask(http, study, budgets={"bops": 1.0}).json()
    assert asked["waiting_for"]["queue"] == "solve"
    assert not asked["is_terminal"]


def test_the_users_own_evaluator_makes_the_verdict(http: httpx.Client, worker: Supervisor, database: Database) -> None:
    plain = post_study(http)["id"]
    problem(http.get(f"/v1/studies/{plain}/evaluations"), 409, "no_evaluator")
    study = post_study(http, evaluator={"metric": "mAP"})["id"]
    address = f"/v1/studies/{study}/evaluations"
    problem(http.get(address), 409, "not_ready")
    work_off(worker, database)
    waiting = http.get(f"/v1/studies/{study}").json()
    assert (waiting["state"], waiting["stage"], waiting["waiting_for"]["kind"]) == (
        "running", "evaluation", "evaluations",
    )  # fmt: skip
    finalists = http.get(address).json()
    assert [finalist["name"] for finalist in finalists["finalists"]] == ["fp32", "mixed"]
    names = {artifact["name"] for artifact in http.get(f"/v1/studies/{study}/artifacts").json()["items"]}
    assert {finalist["file"] for finalist in finalists["finalists"]} <= names

    def post(**metrics: dict[str, float]) -> httpx.Response:
        results = [{"finalist": name, "metrics": found} for name, found in metrics.items()]
        return http.post(address, json={"results": results})

    problem(post(other={"mAP": 0.1}), 422, "finalist_unknown")
    problem(post(fp32={"loss": 0.1}), 422, "metric_missing")
    problem(
        http.post(address, json={"results": [{"finalist": "fp32", "metrics": {"mAP": "x"}}]}), 422, "invalid_request"
    )
    assert post(fp32={"mAP": 0.1}).json()["missing"] == ["mixed"]
    assert work_off(worker, database) == []
    done = post(mixed={"mAP": 0.40}, fp32={"mAP": 0.42, "time_s": 3.0})
    assert (done.status_code, done.json()["missing"]) == (200, [])
    assert work_off(worker, database) == ["verdict"]
    ended = http.get(f"/v1/studies/{study}").json()
    assert (ended["state"], ended["verdicts"][0]["chosen"]) == ("succeeded", "fp32")
    problem(post(mixed={"mAP": 0.9}), 409, "state_conflict")


def test_a_failed_study_is_tried_again_from_where_it_got(
    http: httpx.Client, worker: Supervisor, database: Database
) -> None:
    study = post_study(http, name="first")
    problem(http.post(f"/v1/studies/{study['id']}/retry"), 409, "state_conflict")
    finish(database, study["id"], "check")
    assert claims.fail(database, claimed(database, study["id"], "scan0"), ERROR)
    headers = {"Idempotency-Key": "again"}
    answers = [http.post(f"/v1/studies/{study['id']}/retry", headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    again = answers[0].json()
    assert again["id"] == answers[1].json()["id"] != study["id"]
    assert (again["name"], again["spec"]) == ("first", study["spec"])
    assert [stage["reused"] for stage in again["stages"] if stage["kind"] == "check"] == [True]
    events = http.get(f"/v1/studies/{again['id']}/events").json()["items"]
    assert events[0]["data"]["retry_of"] == study["id"]
    assert http.get(f"/v1/studies/{study['id']}").json()["state"] == "failed", "what has ended stays as it ended"


def test_cloning_with_changes(http: httpx.Client) -> None:
    study = post_study(http, seed=4, options={"front_points": 9})
    targets = [{"hardware": "tiny-gpu", "budgets": {"bops": 1.0}}]
    clone = http.post(f"/v1/studies/{study['id']}/clone", json={"targets": targets, "name": "second"})
    assert clone.status_code == 201
    assert clone.headers["location"] == f"/v1/studies/{clone.json()['id']}"
    assert (clone.json()["spec"]["seed"], clone.json()["spec"]["options"]) == (4, {"front_points": 9})
    assert clone.json()["hardware"] == ["tiny-gpu"]
    problem(http.post(f"/v1/studies/{study['id']}/clone", json={"model": "other"}), 422, "invalid_request")


def test_studies_are_compared(http: httpx.Client, worker: Supervisor, database: Database) -> None:
    first, second = post_study(http)["id"], post_study(http, seed=2)["id"]
    work_off(worker, database)
    found = http.get(f"/v1/compare?studies={first},{second}").json()["items"]
    assert [(one["study"], one["verdict"]["verdict"]) for one in found] == [(first, "chosen"), (second, "chosen")]
    latency = {"value": 1.7, "low": pytest.approx(1.666), "high": pytest.approx(1.734), "full_precision": 3.0}
    assert [one["figures"]["latency_ms"] for one in found] == [latency, latency], "as their reports measured it"
    assert sorted(found[0]["figures"]) == ["accuracy", "latency_ms", "loss", "size_bytes"]
    assert http.get("/v1/compare", params={"studies": [first, second]}).json()["items"] == found
    waiting = post_study(http, seed=3)["id"]
    beside = http.get(f"/v1/compare?studies={first},{waiting}").json()["items"]
    assert [one["figures"] is None for one in beside] == [False, True]
    problem(http.get(f"/v1/compare?studies={first}"), 422, "invalid_request")
    problem(http.get(f"/v1/compare?studies={first},study_none"), 404, "not_found")


def test_a_key_belongs_to_one_request_for_a_day(http: httpx.Client, database: Database) -> None:
    body, headers = study_body(upload_model(http)), {"Idempotency-Key": "one"}
    first = http.post("/v1/studies", json=body, headers=headers).json()["id"]
    elsewhere = http.post(f"/v1/studies/{first}/clone", json={}, headers=headers)
    problem(elsewhere, 422, "idempotency_key_reused")
    with database.write() as session:
        session.execute(update(IdempotencyKeyRow).values(created_at=database_now() - 86_500))
    assert http.post("/v1/studies", json=body, headers=headers).status_code == 201, "a day later it is a new request"


def test_a_key_whose_request_has_not_ended_is_in_flight(
    http: httpx.Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.is_sqlite:
        pytest.skip("writers of SQLite come one after the other, so the second always finds what the first made")
    body = study_body(upload_model(http))
    inside, go_on = threading.Event(), threading.Event()
    from service.studies import router

    sound = router.submit_study

    def slow(*arguments: Any, **named: Any) -> str:
        made = sound(*arguments, **named)
        if not inside.is_set():
            inside.set()
            go_on.wait(30)
        return made

    monkeypatch.setattr(router, "submit_study", slow)
    with ThreadPoolExecutor(1) as pool:
        headers = {"Idempotency-Key": "slow"}
        first = pool.submit(http.post, "/v1/studies", json=body, headers=headers)
        assert inside.wait(10)
        second = http.post("/v1/studies", json=body, headers=headers)
        found = problem(second, 409, "idempotency_in_flight")
        assert found["retryable"]
        go_on.set()
        assert first.result().status_code == 201
    again = http.post("/v1/studies", json=body, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first.result().json()["id"])


def test_a_follower_shows_its_leaders_progress(http: httpx.Client, database: Database) -> None:
    leader, follower = post_study(http)["id"], post_study(http)["id"]
    address = f"/v1/studies/{follower}"
    before = http.get(address)
    assert before.json()["stages"][0]["shared"]
    held = claimed(database, leader, "check")
    claims.beat(database, held, lease_s=60, progress={"done": 3, "total": 4, "unit": "layers", "message": "conv1"})
    after = http.get(f"{address}?wait=10", headers={"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200
    assert (after.json()["stage"], after.json()["progress"]["done"]) == ("check", 3)


def test_shards_count_together(http: httpx.Client, database: Database, settings: Settings) -> None:
    with database.write() as session:
        row = session.get_one(WorkerRow, "worker_test")
        fields = {
            name: getattr(row, name) for name in ("host", "version", "queues", "sandbox", "started_at", "seen_at")
        }
        session.add(WorkerRow(id="worker_second", **fields))
    study = post_study(http)
    assert [stage["shard"] for stage in study["stages"] if stage["kind"] == "scan_shard"] == [0, 1]
    finish(database, study["id"], "check")
    with database.read() as session:
        shards = list(session.scalars(select(StageRow.id).where(StageRow.kind == "scan_shard")))
    for done, shard in enumerate(shards, start=1):
        held = claims.claim(database, shard, worker_id="w", lease_s=60)
        assert held is not None
        claims.beat(database, held, lease_s=60, progress={"done": done, "total": 8, "unit": "rows", "message": ""})
    progress = http.get(f"/v1/studies/{study['id']}").json()["progress"]
    assert (progress["done"], progress["total"], progress["unit"]) == (3, 16, "rows")


def test_a_worker_of_another_version_takes_nothing_and_the_study_says_so(
    http: httpx.Client, worker: Supervisor, database: Database
) -> None:
    study = post_study(http)["id"]
    with database.write() as session:
        session.execute(update(DeploymentRow).values(version="9.9.9"))
    assert not worker.run(stages_of(database, study)["check"].id)
    assert stages_of(database, study)["check"].state == "queued"
    with database.write() as session:
        session.execute(update(WorkerRow).values(version="0.0.1"))
    waiting = http.get(f"/v1/studies/{study}").json()["waiting_for"]
    assert waiting["queue"] == "check"
    assert "another version" in waiting["reason"]


def test_a_poll_that_finds_nothing_new_is_small(http: httpx.Client) -> None:
    study = post_study(http)
    address = f"/v1/studies/{study['id']}"
    etag = http.get(address).headers["etag"]
    idle = http.get(address, headers={"If-None-Match": etag})
    size = len(idle.content) + sum(len(name) + len(value) + 4 for name, value in idle.headers.raw) + 30
    assert idle.status_code == 304
    assert size < 1000


def test_runs_go_with_their_study(http: httpx.Client, worker: Supervisor, database: Database) -> None:
    study = post_study(http)["id"]
    work_off(worker, database)
    ask(http, study, budgets={"bops": 1.0})
    with database.write() as session:
        assert session.scalar(select(StudyRow.id).where(StudyRow.parent_id == study)) is not None
        session.execute(delete(StudyRow).where(StudyRow.id == study))
    with database.read() as session:
        assert session.scalars(select(StudyRow.id)).all() == []
