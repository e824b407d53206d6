"""One contract for both stacks, with all processes: SQLite + a folder of messages, and PostgreSQL + Redis."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.faults.running_stack import STACKS, Stack, wait_until


@pytest.fixture(scope="module", params=STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    found = STACKS[request.param]()
    try:
        found.start()
        yield found
    finally:
        found.close()


def test_from_post_to_verdict(stack: Stack) -> None:
    study_id = stack.submit()
    study = stack.wait(study_id)
    assert study["state"] == "succeeded", study["error"]
    assert [verdict["verdict"] for verdict in study["verdicts"]] == ["chosen"]
    finished = [event["data"]["stage"] for event in stack.events(study_id) if event["kind"] == "stage_succeeded"]
    assert sorted(finished) == ["check", "evaluate", "measure", "scan", "solve"]
    artifacts = stack.client.get(f"/v1/studies/{study_id}/artifacts").json()["items"]
    assert len({artifact["name"] for artifact in artifacts}) == len(artifacts) > 3
    for artifact in artifacts:
        assert len(stack.client.get(artifact["href"]).content) == artifact["size_bytes"]


def test_readyz_names_the_worker_and_its_sandbox(stack: Stack) -> None:
    ready = stack.client.get("/readyz").json()
    assert ready["ready"]
    assert [worker["sandbox"] in ("namespaces", "rlimits", "off") for worker in ready["workers"]] == [True]
    assert {"check", "scan", "solve", "measure.tiny-cpu"} <= set(ready["workers"][0]["queues"])


def test_many_studies_at_once_all_end(stack: Stack) -> None:
    studies = [stack.submit() for _ in range(3)]
    assert {stack.wait(study_id)["state"] for study_id in studies} == {"succeeded"}


def test_cancelling_a_running_stage(stack: Stack) -> None:
    study_id = stack.submit(kind="check", how="sleep", seconds=600)
    wait_until("the stage runs", lambda: stack.study(study_id)["progress"])
    assert stack.client.post(f"/v1/studies/{study_id}/cancel").status_code == 202
    assert stack.wait(study_id)["state"] == "cancelled"
    wait_until("its child is gone", lambda: not stack.stage_processes())


def test_a_users_error_ends_the_study_with_its_code(stack: Stack) -> None:
    study = stack.wait(stack.submit(kind="scan", how="user_error"))
    assert (study["state"], study["error"]["code"]) == ("failed", "op_unsupported")


def test_a_poll_that_finds_nothing_new_is_small(stack: Stack) -> None:
    address = f"/v1/studies/{stack.submit()}"
    stack.wait(address.rpartition("/")[2])
    etag = stack.client.get(address).headers["etag"]
    unchanged: httpx.Response = stack.client.get(address, headers={"If-None-Match": etag})
    assert unchanged.status_code == 304
