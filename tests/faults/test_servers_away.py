"""PostgreSQL and Redis away, at the start and in the middle: clear answers, and everything goes on afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.faults.running_stack import ROLES, PostgresStack, wait_until


@pytest.fixture(scope="module")
def stack() -> Iterator[PostgresStack]:
    """A stack whose processes are started while both servers are away."""
    found = PostgresStack()
    try:
        yield found
    finally:
        found.close()


def refused(answer: httpx.Response, code: str) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    problem = answer.json()
    assert (problem["code"], problem["retryable"]) == (code, True)
    assert problem["retry_after_s"] > 0


def test_servers_that_come_after_the_processes(stack: PostgresStack) -> None:
    stack.postgres.kill()
    stack.redis.kill()
    for role in ROLES:
        stack.spawn(role)
    wait_until("the API answers", lambda: answers(stack), 30)
    refused(stack.client.get("/v1/studies"), "database_unavailable")
    refused(
        stack.client.post("/v1/models", files={"file": ("a.onnx", b"\x08\x0a" + b"a" * 30)}), "database_unavailable"
    )
    assert stack.client.get("/readyz").status_code == 503
    wait_until("the worker waits", lambda: "waiting for the database" in stack.log("worker").read_text())
    assert all(stack.is_running(role) for role in ROLES), "they wait; nobody has to start them again"
    stack.postgres.start()
    stack.await_ready()
    stack.redis.start()
    assert stack.wait(stack.submit())["state"] == "succeeded"
    assert not list(stack.settings.upload_folder.iterdir()), "the refused upload left nothing"


def test_studies_are_accepted_without_a_broker(stack: PostgresStack) -> None:
    stack.redis.kill()
    begun = time.monotonic()
    study_id = stack.submit()
    assert time.monotonic() - begun < 10, "the answer does not wait for the broker"
    assert stack.study(study_id)["state"] == "queued"
    stack.redis.start()
    assert stack.wait(study_id)["state"] == "succeeded"


def test_the_database_goes_and_comes_back_under_the_api(stack: PostgresStack) -> None:
    study_id = stack.submit()
    body = {"file": ("net.onnx", b"\x08\x0a" + os.urandom(64))}
    stack.postgres.kill()
    for path in ("/v1/studies", f"/v1/studies/{study_id}", f"/v1/studies/{study_id}/events", "/v1/models"):
        refused(stack.client.get(path), "database_unavailable")
    refused(stack.client.post("/v1/models", files=body), "database_unavailable")
    refused(stack.client.post(f"/v1/studies/{study_id}/cancel"), "database_unavailable")
    assert stack.client.get("/healthz").status_code == 200
    stack.postgres.start()
    assert stack.client.get("/v1/studies").status_code == 200, "the first request after it works"
    assert stack.client.post("/v1/models", files=body).status_code == 201, "as if it had never been sent"
    assert stack.wait(study_id)["state"] == "succeeded"


def answers(stack: PostgresStack) -> bool:
    try:
        return stack.client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False
