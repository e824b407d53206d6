"""/metrics: what a scrape tells of queues, leases, workers, stages and requests, on both databases."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from service.settings import Settings
from service.store.database import Database
from service.version import VERSION
from tests.contracts.test_stage_claims import claimed
from tests.service.stack import study_body, upload_model
from workers import claims


def scraped(http: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_queues_workers_and_studies(http: httpx.Client, settings: Settings, database: Database) -> None:
    study = http.post("/v1/studies", json=study_body(upload_model(http))).json()["id"]
    with database.write() as session:
        session.execute(text("UPDATE stages SET not_before = not_before - 90 WHERE state = 'queued'"))
    told = scraped(http)
    assert told["bitwright_database_up", ()] == 1
    assert told["bitwright_queue_depth", (("queue", "check"),)] == 1
    assert 90 <= told["bitwright_oldest_queued_seconds", (("queue", "check"),)] < 120
    assert told["bitwright_worker_up", (("host", "here"), ("version", VERSION), ("worker", "worker_test"))] == 1
    assert told["bitwright_queue_workers", (("queue", "measure.tiny-cpu"),)] == 1
    assert told["bitwright_studies", (("state", "queued"),)] == 1
    assert told["bitwright_studies", (("state", "failed"),)] == 0
    assert told["process_resident_memory_bytes", ()] > 0

    held = claimed(database, study, "check")
    with database.write() as session:
        session.execute(text("UPDATE workers SET seen_at = seen_at - 1000"))
        session.execute(text("UPDATE stages SET started_at = started_at - 7 WHERE state = 'running'"))
    told = scraped(http)
    assert ("bitwright_queue_depth", (("queue", "check"),)) not in told
    assert told["bitwright_stages_running", (("kind", "check"),)] == 1
    assert told["bitwright_worker_up", (("host", "here"), ("version", VERSION), ("worker", "worker_test"))] == 0
    assert told["bitwright_queue_workers", (("queue", "check"),)] == 0

    assert claims.succeed(database, held, outputs=[], summary={})
    told = scraped(http)
    labels = (("kind", "check"), ("state", "succeeded"))
    assert told["bitwright_stage_seconds_count", labels] == 1
    assert 7 <= told["bitwright_stage_seconds_sum", labels] < 15
    assert told["bitwright_stage_seconds_bucket", (*labels[:1], ("le", "5.0"), *labels[1:])] == 0
    assert told["bitwright_stage_seconds_bucket", (*labels[:1], ("le", "15.0"), *labels[1:])] == 1
    assert told["bitwright_lease_expired_total", ()] == 0


def test_expired_leases_are_counted(http: httpx.Client, database: Database) -> None:
    study = http.post("/v1/studies", json=study_body(upload_model(http))).json()["id"]
    claimed(database, study, "check")
    with database.write() as session:
        session.execute(text("UPDATE stages SET lease_until = lease_until - 1000 WHERE state = 'running'"))
    assert claims.reap(database, backoff_s=0.0) == 1
    assert scraped(http)["bitwright_lease_expired_total", ()] == 1


def test_requests_are_counted_by_template_not_by_id(http: httpx.Client) -> None:
    for name in ("study_a", "study_b"):
        assert http.get(f"/v1/studies/{name}").status_code == 404
    http.get("/no/such/page")
    told = scraped(http)
    by_route = (("method", "GET"), ("route", "/v1/studies/{study_id}"))
    assert told["bitwright_http_requests_total", (*by_route, ("status", "404"))] == 2
    assert told["bitwright_http_request_seconds_count", by_route] == 2
    assert told["bitwright_http_requests_total", (("method", "GET"), ("route", "(no route)"), ("status", "404"))] == 1


def test_a_database_that_is_away_is_told(http: httpx.Client, database: Database) -> None:
    with database.write() as session:
        session.execute(text("ALTER TABLE workers RENAME TO workers_gone"))
    told = scraped(http)
    assert told["bitwright_database_up", ()] == 0
    assert not [name for name, _ in told if name.startswith("bitwright_queue")]
    with database.write() as session:
        session.execute(text("ALTER TABLE workers_gone RENAME TO workers"))
