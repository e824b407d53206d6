"""The unit of the loss must not matter: powers of two change nothing, other factors only the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from allocation_instances import random_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from search.allocation import Allocation, AllocationProblem, Choice, Group, Infeasible, solve


def scaled(problem: AllocationProblem, factor: float) -> AllocationProblem:
    groups = tuple(
        replace(group, choices=tuple(replace(choice, loss=choice.loss * factor) for choice in group.choices))
        for group in problem.groups
    )
    interactions = problem.interactions
    if interactions is not None:
        interactions = replace(interactions, matrix=interactions.matrix * factor)
    return replace(problem, groups=groups, interactions=interactions)


@pytest.mark.parametrize("factor", [1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e9])
def test_any_factor_keeps_the_optimum(factor: float) -> None:
    for seed in range(10):
        problem = random_problem(seed, interactions=seed % 8 == 7)
        base, answer = solve(problem), solve(scaled(problem, factor))
        assert type(base) is type(answer)
        if isinstance(base, Allocation) and isinstance(answer, Allocation):
            assert answer.loss / factor == pytest.approx(base.loss, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("power", [-40, -3, 5, 40])
def test_powers_of_two_keep_the_allocation(power: int) -> None:
    for seed in range(10):
        problem = random_problem(seed, interactions=seed % 8 == 7)
        base, answer = solve(problem), solve(scaled(problem, 2.0**power))
        if isinstance(base, Infeasible) or isinstance(answer, Infeasible):
            assert isinstance(base, Infeasible)
            assert isinstance(answer, Infeasible)
            assert base.violated == answer.violated
            continue
        assert answer.precisions == base.precisions
        assert answer.loss == base.loss * 2.0**power


def large(groups: int, seed: int) -> AllocationProblem:
    rng = np.random.default_rng(seed)
    made = []
    for g in range(groups):
        size, loss = np.exp(rng.normal(0, 1, 2))
        choices = tuple(
            Choice(f"w{bits}", 1e-7 * float(loss * 4.0**-bits * (1 + 0.3 * rng.random())), {"size": float(size * bits)})
            for bits in (2, 3, 4, 8)
        )
        made.append(Group(f"g{g}", (f"g{g}",), choices))
    total = sum(group.choices[1].costs["size"] for group in made)
    return AllocationProblem(tuple(made), {"size": total})


def test_tiny_losses_do_not_fool_the_solver() -> None:
    """Unscaled, losses of 1e-9 lie below a solver's tolerances and it calls answers many times worse optimal."""
    problem = large(200, 0)
    answer = solve(problem)
    assert isinstance(answer, Allocation)
    assert answer.gap == 0.0
    uniform = sum(group.choices[1].loss for group in problem.groups)
    assert answer.bound <= answer.loss < 0.9 * uniform
    relaxed = solve(problem, gap=1e-3)
    assert isinstance(relaxed, Allocation)
    assert relaxed.gap <= 1e-3
    assert answer.loss <= relaxed.loss <= answer.loss * (1 + 1e-3)
    assert relaxed.bound <= answer.loss * (1 + 1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), shrink=st.floats(0.5, 1.0))
def test_a_tighter_budget_never_lowers_the_loss(seed: int, shrink: float) -> None:
    problem = random_problem(seed, tightness=0.7)
    wide = solve(problem)
    tight = solve(replace(problem, budgets={name: budget * shrink for name, budget in problem.budgets.items()}))
    assert isinstance(wide, Allocation) or isinstance(tight, Infeasible)
    if isinstance(wide, Allocation) and isinstance(tight, Allocation):
        assert tight.loss >= wide.loss - 1e-9 * abs(wide.loss)
        again = solve(problem, start=tight.precisions)
        assert isinstance(again, Allocation)
        assert again.loss == pytest.approx(wide.loss, rel=1e-9, abs=1e-15)


def test_the_order_of_groups_does_not_change_the_loss() -> None:
    for seed in range(20):
        problem = random_problem(seed)
        turned = replace(problem, groups=problem.groups[::-1])
        base, answer = solve(problem), solve(turned)
        if isinstance(base, Allocation):
            assert isinstance(answer, Allocation)
            assert answer.loss == pytest.approx(base.loss, rel=1e-9, abs=1e-15)


def test_the_same_problem_has_the_same_answer() -> None:
    for seed in range(10):
        problem = random_problem(seed, interactions=True)
        first, second = solve(problem), solve(problem)
        if isinstance(first, Allocation) and isinstance(second, Allocation):
            assert first.precisions == second.precisions
