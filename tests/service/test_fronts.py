"""A budget on the stored front: the dearest point within it, and an honest word on what a solve could gain."""

from __future__ import annotations

from typing import Any

import pytest

from service.studies.fronts import look_up

LOSSES = [(1000.0, 8.0), (2000.0, 4.0), (3000.0, 1.0), (4000.0, 0.0)]
PLANS: dict[str, Any] = {
    "lookup": {
        "groups": [
            {"layers": ["a", "tied"], "precisions": ["fp32", "w8a8"]},
            {"layers": ["b"], "precisions": ["fp32"]},
        ],
        "points": [[cost, loss, 0.0, "10"] for cost, loss in LOSSES],
    },
    "front_resource": "latency_us",
    "front_metric": "kl",
    "full_precision": {"latency_ms": 5.0, "size_bytes": 100.0},
}


@pytest.mark.parametrize(
    "budget, limit, loss, gap",
    [
        (2.5, 2.5, 4.0, 3.0),
        (2.0, 2.0, 4.0, 3.0),
        ("0.6x", 3.0, 1.0, 1.0),
        ("3.999", 3.999, 1.0, 1.0),
        (9.0, 9.0, 0.0, 0.0),
    ],
)
def test_the_dearest_point_within_the_budget(budget: Any, limit: float, loss: float, gap: float) -> None:
    found = look_up(PLANS, {"latency_ms": budget}, None)
    assert found is not None
    assert found["limits"] == {"latency_ms": limit}
    assert found["predicted"]["latency_ms"] <= limit
    assert (found["surrogate_loss"], found["gap"]) == (loss, pytest.approx(gap))
    assert found["precisions"] == {"a": "w8a8", "tied": "w8a8"}, "by layer, full precision left out"


def test_the_gap_counts_what_the_front_itself_may_miss() -> None:
    points = [[cost, loss, 0.25, choices] for cost, loss, _, choices in PLANS["lookup"]["points"]]
    found = look_up({**PLANS, "lookup": {**PLANS["lookup"], "points": points}}, {"latency_ms": 2.5}, "kl")
    assert found is not None
    assert found["gap"] == pytest.approx((4.0 - 0.8) / 1.0)


@pytest.mark.parametrize(
    "budgets, metric",
    [
        ({"latency_ms": 0.5}, None),
        ({"latency_ms": {"relative": 0.5}}, None),
        ({"size_bytes": 50}, None),
        ({"latency_ms": 2.0, "size_bytes": 50}, None),
        ({"latency_ms": 2.0}, "gauss_newton"),
    ],
)
def test_what_only_a_solve_can_tell(budgets: dict[str, Any], metric: str | None) -> None:
    assert look_up(PLANS, budgets, metric) is None


def test_an_empty_front_answers_nothing() -> None:
    assert look_up({**PLANS, "lookup": {"groups": [], "points": []}}, {"latency_ms": 2.0}, None) is None
