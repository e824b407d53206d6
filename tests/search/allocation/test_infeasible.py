"""Budgets that nothing meets: what is reachable, the least common relaxation, who pins it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from allocation_instances import enumerate_all, random_problem

from search.allocation import Allocation, AllocationProblem, Choice, Group, Infeasible, reachable_range, solve


def test_relaxation_and_reachable_equal_brute_force() -> None:
    violated_alone = 0
    for seed in range(60):
        problem = random_problem(seed, tightness=0.3)
        every = enumerate_all(problem)
        least = {name: float(every.totals[name].min()) for name in problem.budgets}
        if min(least.values()) <= 0:
            continue
        factor = 0.8 if seed % 2 else 0.999
        tight = replace(problem, budgets={name: value * factor for name, value in least.items()})
        answer = solve(tight)
        assert isinstance(answer, Infeasible)
        assert dict(answer.reachable) == pytest.approx(least, rel=1e-12)
        needed = np.max([every.totals[name] / tight.budgets[name] for name in tight.budgets], axis=0)
        assert answer.relaxation == pytest.approx(needed.min(), rel=1e-6)
        assert answer.nearest is not None
        fits = needed <= answer.relaxation * (1 + 1e-12)
        assert answer.nearest.loss == pytest.approx(every.losses[fits].min(), rel=1e-9)
        assert set(answer.violated) == set(tight.budgets)
        violated_alone += 1
    assert violated_alone > 40


def two_resources() -> AllocationProblem:
    """Each budget can be met alone (by `a` or by `b` everywhere) but not both together."""
    choices = (Choice("a", 0.0, {"t": 1.0, "s": 10.0}), Choice("b", 0.0, {"t": 10.0, "s": 1.0}))
    groups = tuple(Group(f"g{g}", (f"l{g}",), choices) for g in range(4))
    return AllocationProblem(groups, {"t": 10.0, "s": 10.0})


def test_budgets_that_conflict_only_together() -> None:
    answer = solve(two_resources())
    assert isinstance(answer, Infeasible)
    assert dict(answer.reachable) == {"t": 4.0, "s": 4.0}
    assert answer.relaxation == pytest.approx(2.2)
    assert answer.nearest is not None
    assert sorted(answer.nearest.precisions.values()) == ["a", "a", "b", "b"]
    assert set(answer.violated) <= {"t", "s"}
    assert answer.violated


def test_binding_groups_come_with_their_share_of_the_budget() -> None:
    groups = tuple(
        Group(name, (name,), (Choice("w8a8", 0.1, {"size": size}), Choice("fp32", 0.0, {"size": 4 * size})))
        for name, size in (("small", 1.0), ("large", 30.0), ("middle", 5.0))
    )
    answer = solve(AllocationProblem(groups, {"size": 20.0}))
    assert isinstance(answer, Infeasible)
    assert answer.violated == ("size",)
    assert answer.binding == (("large", "size", 1.5), ("middle", "size", 0.25), ("small", "size", 0.05))
    assert answer.relaxation == pytest.approx(36 / 20)


def test_constants_count_and_a_zero_budget_cannot_be_relaxed() -> None:
    groups = (Group("g", ("g",), (Choice("w8a8", 0.0, {"t": 1.0}),)),)
    within = solve(AllocationProblem(groups, {"t": 3.0}, constants={"t": 2.0}))
    assert isinstance(within, Allocation)
    assert within.costs["t"] == 3.0
    over = solve(AllocationProblem(groups, {"t": 1.5}, constants={"t": 2.0}))
    assert isinstance(over, Infeasible)
    assert over.reachable["t"] == 3.0
    assert over.relaxation == pytest.approx(2.0)
    nothing = solve(AllocationProblem(groups, {"t": 0.0}))
    assert isinstance(nothing, Infeasible)
    assert nothing.relaxation == float("inf")
    assert nothing.nearest is None


def test_reachable_range_is_that_of_brute_force_with_boundaries() -> None:
    for seed in range(30):
        problem = random_problem(seed, boundaries=True)
        every = enumerate_all(problem)
        for resource in problem.budgets:
            low, high = reachable_range(problem, resource)
            assert low == pytest.approx(every.totals[resource].min(), rel=1e-9, abs=1e-9)
            assert high == pytest.approx(every.totals[resource].max(), rel=1e-9, abs=1e-9)
