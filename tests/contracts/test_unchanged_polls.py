"""Polls that find nothing new take a short way, and never one that hides a change. Both databases."""

from __future__ import annotations

import time

import httpx
import pytest
from sqlalchemy import text

from service.keys.keys import create_key, revoke_key
from service.settings import Settings
from service.store.database import Database
from service.studies import unchanged
from tests.contracts.test_rest_api import post_study
from tests.contracts.test_stage_claims import claimed
from tests.service.stack import SentMessages, announce_tiny_worker, serving
from workers import claims


def poll(http: httpx.Client, study: str, etag: str) -> httpx.Response:
    return http.get(f"/v1/studies/{study}", headers={"If-None-Match": etag})


def full_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Studies that were read whole from here on."""
    from service.studies import router

    read, seen = router._read_study, []

    def noting(parts: object, study_id: str) -> object:
        seen.append(study_id)
        return read(parts, study_id)  # type: ignore[arg-type]

    monkeypatch.setattr(router, "_read_study", noting)
    return seen


def test_a_poll_that_finds_nothing_new_reads_no_study(
    http: httpx.Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = post_study(http)["id"]
    etag = http.get(f"/v1/studies/{study}").headers["etag"]
    reads = full_reads(monkeypatch)
    for _ in range(3):
        answer = poll(http, study, etag)
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-request-id"]
        assert answer.headers["cache-control"] == "no-cache"
    assert reads == []
    assert poll(http, study, 'W/"other"').status_code == 200
    metrics = http.get("/metrics").text
    assert 'route="/v1/studies/{study_id}",status="304"} 3.0' in metrics

    held = claimed(database, study, "check")
    begun = poll(http, study, etag)
    assert (begun.status_code, begun.json()["state"]) == (200, "running"), "a change is seen by the very next poll"
    assert poll(http, study, begun.headers["etag"]).status_code == 304
    claims.beat(database, held, lease_s=60.0, progress={"done": 1, "total": 2, "unit": "u", "message": ""})
    assert poll(http, study, begun.headers["etag"]).status_code == 200
    assert http.post(f"/v1/studies/{study}/cancel").status_code == 202
    assert poll(http, study, begun.headers["etag"]).json()["state"] == "cancelling"


def test_what_a_study_waits_for_is_seen_within_a_second(http: httpx.Client, database: Database) -> None:
    study = post_study(http)["id"]
    etag = http.get(f"/v1/studies/{study}").headers["etag"]
    assert poll(http, study, etag).status_code == 304
    with database.write() as session:
        session.execute(text("UPDATE workers SET seen_at = seen_at - 1000"))
    time.sleep(unchanged.LOOK_S)
    answer = poll(http, study, etag)
    assert (answer.status_code, answer.json()["waiting_for"]["kind"]) == (200, "worker")
    assert poll(http, study, answer.headers["etag"]).status_code == 304


def test_a_short_answer_is_for_who_showed_the_same_key(
    settings: Settings, database: Database, messages: SentMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce_tiny_worker(settings)
    with database.write() as session:
        row, key = create_key(session, name="one", scopes=["write"])
        _, narrow = create_key(session, name="two", scopes=["models:read"])
    with serving(settings.model_copy(update={"auth": "keys"}), messages) as http:
        http.headers["Authorization"] = f"Bearer {key}"
        study = post_study(http)["id"]
        etag = http.get(f"/v1/studies/{study}").headers["etag"]
        reads = full_reads(monkeypatch)
        assert [poll(http, study, etag).status_code for _ in range(3)] == [304] * 3
        assert len(reads) <= 1
        http.headers["Authorization"] = f"Bearer {narrow}"
        assert poll(http, study, etag).status_code == 403
        del http.headers["Authorization"]
        assert poll(http, study, etag).status_code == 401
        http.headers["Authorization"] = f"Bearer {key}"
        with database.write() as session:
            assert revoke_key(session, row.id)
        monkeypatch.setattr(unchanged, "KEY_S", 0.0)
        assert poll(http, study, etag).status_code == 401


def test_a_study_that_is_not_there(http: httpx.Client) -> None:
    assert poll(http, "study_0123456789abcdef", 'W/"study_0123456789abcdef.1.0"').status_code == 404


def test_the_progress_of_a_followed_stage_is_seen(http: httpx.Client, database: Database) -> None:
    leader = post_study(http)["id"]
    held = claimed(database, leader, "check")
    follower = post_study(http, name="follows")["id"]
    etag = http.get(f"/v1/studies/{follower}").headers["etag"]
    assert [poll(http, follower, etag).status_code for _ in range(2)] == [304, 304]
    claims.beat(database, held, lease_s=60.0, progress={"done": 1, "total": 2, "unit": "u", "message": ""})
    assert poll(http, follower, etag).status_code == 200
