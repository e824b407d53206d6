"""What the pages say and send: words for numbers and events, lean columns of a report, ETags, and who may see them."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest

from service.dashboard.results import CODES, columns_of
from service.dashboard.words import event_words, goal_words, number, seconds, served_words, size, span
from service.settings import Settings
from service.studies.figures import figures_of
from tests.contracts.test_rest_api import post_study, publish
from tests.workers.tiny_stages import document


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (size(None), "–"), (size(999), "999 B"), (size(1_572_993), "1.57 MB"), (size(2.5e13), "25 TB"),
        (number(0.0), "0"), (number(0.123456), "0.123"), (number(314186), "314,000"), (number(3.39e-5), "3.39·10⁻⁵"),
        (seconds(0.44), "0.4 s"), (seconds(59.6), "60 s"), (seconds(185), "3 min 5 s"), (seconds(7800), "2 h 10 min"),
        (span("2026-01-01T00:00:00.000Z", "2026-01-01T00:01:39.500Z"), "1 min 40 s"), (span(None, None), ""),
    ],
)  # fmt: skip
def test_numbers_in_words(said: str, words: str) -> None:
    assert said == words


def test_goals_and_events_in_words() -> None:
    budgets: dict[str, Any] = {"latency_ms": "0.6x", "size_bytes": 4e6, "bops": {"relative": 0.5}}
    assert goal_words({"budgets": budgets}) == (
        "latency ≤ 0.6× full precision, size ≤ 4 MB, bit operations ≤ 50.0 % of the reachable range"
    )
    assert goal_words({"budgets": {}, "tolerance": {"accuracy_drop": 0.005}}) == "fastest that loses ≤ 0.5 % of answers"
    assert goal_words({"tolerance": {"loss": 0.01}}) == "fastest that loses ≤ 0.01"
    assert (
        event_words("stage_started", {"stage": "scan", "target": 1, "attempt": 2})
        == "scan (target 2) started, attempt 2"
    )
    assert event_words("attempt_lost", {"stage": "scan", "attempt": 1, "code": "worker_lost"}).endswith("worker_lost")
    assert event_words("newer_kind", {"x": 1}) == "newer kind: x 1", "an event of a newer server is shown, not dropped"


def test_operating_points_in_words() -> None:
    assert served_words({"batch": 8, "threads": 1, "dims": {"tokens": 64}}) == "batch 8, 1 thread, tokens 64"
    assert served_words({"batch": None, "threads": 2, "dims": {}}) == "batch as exported, 2 threads"


def test_columns_hold_what_the_report_said() -> None:
    target = document("cpu", "<img>")
    columns = columns_of({"targets": [target]}, target, "nats")
    palette = columns["palette"]

    def precision(code: str) -> str:
        return str(palette[CODES.index(code)])

    assert [precision(code) for code in columns["layers"]["codes"]] == [one["precision"] for one in target["layers"]]
    assert columns["layers"]["name"][0] == "<img>"
    assert columns["precisions"] == [["w4a8", "linear", "4 bit <img>"]]
    for point, stored in zip(columns["front"], target["front"], strict=True):
        assert len(point["codes"]) == len(target["layers"])
        assert point["loss"] == pytest.approx(stored["loss"], rel=1e-3)
        by_name = dict(zip(columns["layers"]["name"], point["codes"], strict=True))
        assert precision(by_name["b"]) == stored["precisions"]["b"]
        assert precision(by_name["head"]) == "fp32", "a layer an allocation does not name stays in full precision"
    figures = {one.name: one for one in figures_of(target)}
    assert figures["latency"].ratio == pytest.approx(1.7 / 3.0)
    assert figures["size"].value == 8_000
    infeasible = {**target, "verdict": {**target["verdict"], "chosen": None}}
    assert figures_of(infeasible) == ()


def test_a_page_is_sent_once(http: httpx.Client) -> None:
    study = post_study(http)["id"]
    for address in ("/", f"/studies/{study}", "/models", "/hardware", "/workers", "/submit", "/compare"):
        page = http.get(address)
        assert page.status_code == 200, address
        assert page.headers["content-type"].startswith("text/html")
        again = http.get(address, headers={"If-None-Match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b""), address
    http.post(f"/v1/studies/{study}/cancel")
    changed = http.get(f"/studies/{study}", headers={"If-None-Match": page.headers["etag"]})
    assert "cancelled" in changed.text


def test_results_are_gzipped_and_keep_their_etag(http: httpx.Client, settings: Settings) -> None:
    study = post_study(http)["id"]
    assert http.get(f"/studies/{study}/data/0").status_code == 404
    report = {"targets": [document("tiny-cpu", "x")], "loss": {"unit": "nats"}, "notes": []}
    publish(settings, study, {"report.json": json.dumps(report).encode()})
    with http.stream("GET", f"/studies/{study}/data/0") as answer:
        raw = b"".join(answer.iter_raw())
        assert answer.headers["content-encoding"] == "gzip"
        assert json.loads(gzip.decompress(raw))["unit"] == "nats"
        etag = answer.headers["etag"]
    assert http.get(f"/studies/{study}/data/0", headers={"If-None-Match": etag}).status_code == 304
    assert http.get(f"/studies/{study}/data/1").status_code == 404
    assert "1.7" in http.get(f"/studies/{study}").text
    assert http.get("/static/bitwright.css").headers["content-encoding"] == "gzip"


def test_wrong_addresses_are_problems(http: httpx.Client) -> None:
    assert http.get("/studies/study_x").status_code == 404
    assert http.get("/compare?studies=study_x").json()["code"] == "not_found"
    too_many = http.get("/compare?studies=" + ",".join(f"study_{number}" for number in range(7)))
    assert (too_many.status_code, too_many.json()["code"]) == (422, "too_many_studies")
    assert http.get("/?cursor=nonsense").json()["code"] == "bad_cursor"
