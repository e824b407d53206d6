"""Pareto fronts against brute force: dynamic programming, and budget by budget where it does not apply."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from allocation_instances import enumerate_all, random_problem

from search.allocation import AllocationProblem, FrontPoint, best_within, pareto_front, whole_front
from search.errors import BadSubmission


def true_front(problem: AllocationProblem, resource: str, budgets: dict[str, float]) -> list[tuple[float, float]]:
    every = enumerate_all(problem)
    fits = every.fitting(budgets)
    cost, loss = every.totals[resource][fits], every.losses[fits]
    order = np.lexsort((loss, cost))
    kept: list[tuple[float, float]] = []
    for c, value in zip(cost[order], loss[order], strict=True):
        if not kept or value < kept[-1][1] - 1e-12 * max(abs(value), 1e-9):
            kept.append((float(c), float(value)))
    return kept


def as_pairs(points: list[FrontPoint]) -> list[tuple[float, float]]:
    return [(point.cost, point.loss) for point in points]


@pytest.mark.parametrize("boundaries", [False, True])
def test_the_whole_front_of_one_resource_is_that_of_brute_force(boundaries: bool) -> None:
    for seed in range(60):
        problem = random_problem(seed, boundaries=boundaries, resources=1, tightness=1.0)
        (resource,) = problem.budgets
        expected = true_front(problem, resource, {})
        found = pareto_front(replace(problem, budgets={}), resource, points=10**6)
        assert [c for c, _ in as_pairs(found)] == pytest.approx([c for c, _ in expected], rel=1e-12)
        assert [v for _, v in as_pairs(found)] == pytest.approx([v for _, v in expected], rel=1e-9, abs=1e-15)
        assert all(point.exact and point.gap == 0 for point in found)


def test_other_budgets_and_interactions_are_swept_with_proofs() -> None:
    checked = 0
    for seed in range(8):
        problem = random_problem(seed, boundaries=True, resources=2, interactions=seed % 2 == 1, tightness=0.6)
        resource = next(iter(problem.budgets))
        others = {name: budget for name, budget in problem.budgets.items() if name != resource}
        free = replace(problem, budgets=others)
        expected = true_front(problem, resource, others)
        found = pareto_front(free, resource, points=5)
        for point in found:
            best = min(loss for cost, loss in expected if cost <= point.cost * (1 + 1e-12))
            assert point.loss == pytest.approx(best, rel=1e-6, abs=1e-15)
            assert point.gap <= 1e-6
            checked += 1
        if expected:
            assert found[-1].loss == pytest.approx(expected[-1][1], rel=1e-6, abs=1e-15)
    assert checked > 14


@pytest.mark.parametrize(
    ("where", "most"), [("non_dominated._MOST_SUMS", 4), ("non_dominated._MOST_LISTS", 1), ("front._WHOLE_SHARE", 0.0)]
)
def test_lists_that_outgrow_their_bound_fall_back_to_the_sweep(
    monkeypatch: pytest.MonkeyPatch, where: str, most: float
) -> None:
    problem = replace(random_problem(3, groups=7, boundaries=True, resources=1, tightness=1.0), budgets={})
    resource = next(iter(problem.groups[0].choices[0].costs))
    whole = pareto_front(problem, resource, points=10**6)
    assert whole == whole_front(problem, resource, points=10**6)
    monkeypatch.setattr(f"search.allocation.{where}", most)
    for point in pareto_front(problem, resource, points=15):
        assert point.exact
        best = best_within(whole, point.cost)
        assert best is not None
        assert point.loss == pytest.approx(best.loss, rel=1e-9)


def test_asked_budgets_are_answered_each_by_the_best_within_it() -> None:
    problem = replace(random_problem(7, groups=8, boundaries=False, resources=1, tightness=1.0), budgets={})
    resource = next(iter(problem.groups[0].choices[0].costs))
    every = enumerate_all(problem)
    cost = every.totals[resource]
    budgets = np.linspace(cost.min() * 0.9, cost.max(), 40).tolist()
    found = pareto_front(problem, resource, budgets=budgets)
    for budget in budgets:
        point = best_within(found, budget)
        fits = cost <= budget * (1 + 1e-12)
        if not fits.any():
            assert point is None
        else:
            assert point is not None
            assert point.loss == pytest.approx(every.losses[fits].min(), rel=1e-12)


def test_a_budget_on_the_resource_ends_the_front_and_constants_count() -> None:
    problem = random_problem(11, groups=6, boundaries=False, resources=1, tightness=0.5)
    (resource,) = problem.budgets
    problem = replace(
        problem, constants={resource: 10.0}, budgets={resource: problem.budgets[resource] + 10.0}, curves={}
    )
    points = pareto_front(problem, resource, points=10**6)
    assert 10.0 < points[0].cost
    assert points[-1].cost <= problem.budgets[resource]
    expected = true_front(problem, resource, dict(problem.budgets))
    np.testing.assert_allclose(as_pairs(points), expected, rtol=1e-12)


def test_points_are_thinned_to_evenly_spaced_budgets() -> None:
    problem = replace(random_problem(8, groups=8, boundaries=False, resources=1, tightness=1.0), budgets={})
    resource = next(iter(problem.groups[0].choices[0].costs))
    whole = pareto_front(problem, resource, points=10**6)
    few = pareto_front(problem, resource, points=5)
    assert len(few) <= 5 < len(whole)
    assert set(as_pairs(few)) <= set(as_pairs(whole))
    assert few[-1] == whole[-1]


def test_an_impossible_cap_has_an_empty_front() -> None:
    problem = random_problem(5, groups=4, boundaries=False, resources=1)
    (resource,) = problem.budgets
    assert pareto_front(replace(problem, budgets={resource: 0.0}), resource) == []


@pytest.mark.parametrize("fields", [{"points": 1}, {"budgets": [1.0, math.nan]}])
def test_a_malformed_front_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BadSubmission) as caught:
        pareto_front(random_problem(1), "size_bytes", **fields)  # type: ignore[arg-type]
    assert caught.value.code == "bad_front"
