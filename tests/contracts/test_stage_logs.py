"""What stages print reaches the API while they run and after, under their fence, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx

from service.blobs import Blobs
from service.settings import Settings
from service.store.database import Database
from service.store.stage_logs import forget_logs
from tests.contracts.test_rest_api import post_study, problem
from tests.contracts.test_stage_claims import claimed, expire, new_study, stages_of, study_of
from tests.workers.tiny_stages import PRINTED
from workers import claims
from workers.claims import Beat, StageLog
from workers.supervisor import Supervisor


def told(http: httpx.Client, study: str, **query: str | int) -> list[tuple[str, str]]:
    answer = http.get(f"/v1/studies/{study}/log", params=query)
    assert answer.status_code == 200, answer.text
    return [(item["stage"], line) for item in answer.json()["items"] for line in item["lines"]]


def test_lines_are_there_while_the_stage_runs_and_after(
    http: httpx.Client, settings: Settings, database: Database, tmp_path: Path
) -> None:
    until = tmp_path / "go on"
    options = {"tiny": {"kind": "check", "how": "print", "until": str(until), "once": str(tmp_path / "once")}}
    study = post_study(http, options=options)["id"]
    assert told(http, study) == []
    worker = Supervisor(settings, database, Blobs(settings.resolved_blob_url), "worker_test")
    stage_id = stages_of(database, study)["check"].id
    thread = threading.Thread(target=worker.run, args=(stage_id,))
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not any(PRINTED[-1] in line for _, line in told(http, study)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert stages_of(database, study)["check"].state == "running"
        lines = [line for _, line in told(http, study)]
        assert "check begins" in lines[0]
        assert str(tmp_path) not in "".join(lines), "the server's folders are not shown"
    finally:
        until.touch()
        thread.join()
    answer = http.get(f"/v1/studies/{study}/log")
    (item,) = answer.json()["items"]
    assert (item["stage"], item["target"], item["shard"], item["attempt"]) == ("check", None, None, 1)
    assert "check is done" in item["lines"][-1]
    same = http.get(f"/v1/studies/{study}/log", headers={"If-None-Match": answer.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert len(told(http, study, lines=1)) == 1
    assert http.get(f"/v1/studies/{study}/log", params={"lines": 1}).json()["items"][0]["is_cut"]
    assert told(http, study, stage="scan") == []
    assert told(http, study, stage="check")
    problem(http.get("/v1/studies/study_x/log"), 404, "not_found")
    problem(http.get(f"/v1/studies/{study}/log", params={"lines": 0}), 422, "invalid_request")


def test_who_lost_the_claim_writes_nothing_and_a_later_attempt_replaces(http: httpx.Client, database: Database) -> None:
    study = new_study(database)
    zombie = claimed(database, study, "check")
    assert claims.beat(database, zombie, lease_s=60, printed=StageLog(1, "first", False)) is Beat.GO_ON
    version = study_of(database, study).version
    assert told(http, study) == [("check", "first")]
    expire(database, zombie.stage_id)
    assert claims.reap(database, backoff_s=0) == 1
    assert claims.beat(database, zombie, lease_s=60, printed=StageLog(1, "late", False)) is Beat.LOST
    heir = claimed(database, study, "check")
    assert claims.beat(database, zombie, lease_s=60, printed=StageLog(1, "later", False)) is Beat.LOST
    assert told(http, study) == [("check", "first")], "the last that was printed stays until something new is"
    before = study_of(database, study).version
    assert before > version
    claims.beat(database, heir, lease_s=60, printed=StageLog(2, "second\n<b>third</b>", True))
    assert study_of(database, study).version == before, "a poll of the study finds nothing new in what was printed"
    (item,) = http.get(f"/v1/studies/{study}/log").json()["items"]
    assert (item["attempt"], item["is_cut"], item["lines"]) == (2, True, ["second", "<b>third</b>"])
    with database.write() as session:
        assert forget_logs(session, 3600) == 0
        assert forget_logs(session, -1) == 1
    assert told(http, study) == []


def test_a_stage_another_study_does_shows_its_lines(http: httpx.Client, database: Database) -> None:
    first, second = post_study(http, seed=7)["id"], post_study(http, seed=7)["id"]
    held = claimed(database, first, "check")
    claims.beat(database, held, lease_s=60, printed=StageLog(1, "shared", False))
    assert told(http, second) == told(http, first) == [("check", "shared")]
