"""Lists of studies by hardware: each once, newest first, page by page, found in the order of an index."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sqlalchemy import text

from service.store.database import Database
from service.studies.listed import listed_studies
from tests.service.stack import study_body, upload_model

LATENCY = {"budgets": {"latency_ms": "0.6x"}}


def on(*slugs: str) -> list[dict[str, Any]]:
    """A target for each slug; one that is named twice is served in two ways."""
    return [
        {"hardware": slug, "operating_point": {"batch": number + 1, "threads": 1}, **LATENCY}
        for number, slug in enumerate(slugs)
    ]


@pytest.fixture
def made(http: httpx.Client) -> list[str]:
    """Five studies, oldest first."""
    model = upload_model(http)
    found = []
    for targets in (("tiny-cpu",), ("tiny-gpu",), ("tiny-cpu", "tiny-cpu"), ("tiny-gpu", "tiny-cpu"), ("tiny-cpu",)):
        answer = http.post("/v1/studies", json=study_body(model, targets=on(*targets)))
        assert answer.status_code == 201, answer.text
        found.append(str(answer.json()["id"]))
    return found


def pages(http: httpx.Client, limit: int, **filters: str) -> list[list[str]]:
    found, cursor = [], None
    while True:
        asked = {"limit": str(limit), **filters} | ({"cursor": cursor} if cursor else {})
        page = http.get("/v1/studies", params=asked).json()
        found.append([str(item["id"]) for item in page["items"]])
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 50])
def test_studies_of_a_hardware_come_once_each_and_newest_first(http: httpx.Client, made: list[str], limit: int) -> None:
    one, two, three, four, five = made
    for hardware, expected in (("tiny-cpu", [five, four, three, one]), ("tiny-gpu", [four, two]), ("abacus", [])):
        found = pages(http, limit, hardware=hardware)
        assert [study for page in found for study in page] == expected
        assert all(len(page) == limit for page in found[:-1])


def test_filters_meet(http: httpx.Client, made: list[str]) -> None:
    assert http.post(f"/v1/studies/{made[2]}/cancel").status_code == 202
    assert pages(http, 50, hardware="tiny-cpu", state="cancelled") == [[made[2]]]
    assert pages(http, 50, hardware="tiny-gpu", state="cancelled") == [[]]
    assert pages(http, 50, hardware="tiny-cpu", model="model_none") == [[]]
    page = http.get("/?hardware=tiny-gpu&name=").text
    assert [study for study in made if study in page] == [made[1], made[3]]


def test_a_page_of_a_hardware_is_walked_and_not_sorted(database: Database) -> None:
    query = listed_studies(hardware="tiny-cpu", limit=50).compile(
        database.reader, compile_kwargs={"literal_binds": True}
    )
    with database.read() as session:
        if database.is_sqlite:
            plan = [row[-1] for row in session.execute(text(f"EXPLAIN QUERY PLAN {query}"))]
            assert sum("TEMP B-TREE" in step for step in plan) == 1, "the rows of the page alone"
        else:
            # An empty table is read whole for want of anything cheaper.
            session.execute(text("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"))
            plan = [row[0] for row in session.execute(text(f"EXPLAIN {query}"))]
            limited = next(number for number, step in enumerate(plan) if "Limit" in step)
            assert not any("Sort" in step for step in plan[limited:]), plan
    assert any("ix_study_targets_hardware_created" in step for step in plan), plan
