"""solve() against brute force: ties, pins, boundaries of both signs, several budgets, interactions, scaling."""

from __future__ import annotations

import numpy as np
import pytest
from allocation_instances import enumerate_all, random_problem

from search.allocation import Allocation, AllocationProblem, Infeasible, solve


def check_against_brute_force(problem: AllocationProblem, answer: Allocation | Infeasible) -> bool:
    """Whether the problem was feasible; asserts that the answer is right either way."""
    every = enumerate_all(problem)
    fits = every.fitting(dict(problem.budgets))
    if not fits.any():
        assert isinstance(answer, Infeasible)
        return False
    assert isinstance(answer, Allocation)
    best = every.losses[fits].min()
    scale = max(abs(best), 1e-12)
    assert answer.loss == pytest.approx(best, rel=1e-9, abs=1e-12 * scale)
    assert answer.bound <= answer.loss
    assert answer.bound <= best + 1e-9 * scale
    assert answer.gap <= 1e-6
    for resource, budget in problem.budgets.items():
        assert answer.costs[resource] <= budget * (1 + 1e-12)
    position = [
        [choice.precision for choice in group.choices].index(answer.precisions[group.name]) for group in problem.groups
    ]
    row = int(np.flatnonzero((every.selections == position).all(axis=1))[0])
    assert every.losses[row] == pytest.approx(answer.loss, rel=1e-9)
    for resource, totals in every.totals.items():
        assert totals[row] == pytest.approx(answer.costs[resource], rel=1e-12)
    return True


@pytest.mark.parametrize("solver", ["cbc", "highs"])
def test_two_hundred_random_problems_have_their_optimum(solver: str) -> None:
    seeds = range(200) if solver == "cbc" else range(200, 260)
    feasible = sum(check_against_brute_force(p, solve(p, solver=solver)) for p in map(random_problem, seeds))
    assert 0.5 * len(seeds) < feasible < len(seeds), "the draw should hold feasible and infeasible problems"


def test_random_problems_with_interactions_have_their_optimum() -> None:
    feasible = 0
    for seed in range(25):
        problem = random_problem(seed, interactions=True)
        feasible += check_against_brute_force(problem, solve(problem, time_limit_s=20.0))
    assert feasible > 12
