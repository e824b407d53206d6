"""Descent with interactions: stays within budgets, ends where no change of two groups helps, feeds a valid bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from allocation_instances import enumerate_all, random_problem

from search.allocation import Allocation, AllocationProblem, Quadratic, solve
from search.allocation.arrays import lay_out
from search.allocation.bound import scale
from search.allocation.interactions import interaction_of
from search.allocation.local_search import descend
from search.allocation.moves import greedy, move_costs


def test_descent_ends_within_budgets_where_no_two_changes_help() -> None:
    ended = 0
    for seed in range(40):
        problem = random_problem(seed, interactions=True, boundaries=True)
        arrays = lay_out(problem)
        interaction = interaction_of(problem, arrays)
        every = enumerate_all(problem)
        fits = every.fitting(dict(problem.budgets))
        if interaction is None or not fits.any():
            continue
        start = every.selections[fits][np.argmax(every.losses[fits])]
        end = descend(arrays, scale(arrays), interaction, start)
        assert arrays.fits(end)
        distance = (every.selections != end).sum(axis=1)
        loss = every.losses[distance == 0][0]
        np.testing.assert_allclose(interaction.loss(arrays, end), loss, rtol=1e-9, atol=1e-12)
        near = fits & (distance <= 2)
        assert every.losses[near].min() >= loss - 1e-9 * max(abs(loss), 1e-6)
        assert loss <= every.losses[fits].max()
        ended += 1
    assert ended > 20


def test_move_costs_are_differences_of_totals() -> None:
    for seed in range(20):
        arrays = lay_out(random_problem(seed, boundaries=True, tightness=0.9))
        scaled = scale(arrays)
        choice = arrays.allowed.argmax(axis=1)
        change = move_costs(scaled.cost, scaled.edges, scaled.domain, scaled.domains, choice)
        for g in range(arrays.groups):
            for b in np.flatnonzero(arrays.allowed[g]):
                moved = choice.copy()
                moved[g] = b
                expected = (arrays.totals(moved) - arrays.totals(choice)) / scaled.row_unit
                np.testing.assert_allclose(change[:, g, b], expected, atol=1e-12)


def test_greedy_answers_fit() -> None:
    fitted = 0
    for seed in range(40):
        arrays = lay_out(random_problem(seed))
        scaled = scale(arrays)
        dearest = np.where(arrays.allowed, arrays.cost[0], -np.inf).argmax(axis=1)
        choice = greedy(scaled, scaled.loss, dearest)
        if choice is not None:
            assert arrays.fits(choice)
            fitted += 1
    assert fitted > 20


def test_the_given_diagonal_and_entries_within_groups_cost_nothing() -> None:
    for seed in range(4):
        problem = random_problem(seed, interactions=True, groups=4)
        assert problem.interactions is not None
        keys, matrix = problem.interactions.keys, problem.interactions.matrix
        same = np.array([[a[0] == b[0] for b in keys] for a in keys])
        bare = replace(problem, interactions=Quadratic(keys, np.where(same, 0.0, matrix)))
        first, second = solve(problem), solve(bare)
        if isinstance(first, Allocation):
            assert isinstance(second, Allocation)
            np.testing.assert_allclose(first.loss, second.loss, rtol=1e-9)


def test_an_indefinite_matrix_still_has_a_valid_bound() -> None:
    rng = np.random.default_rng(4)
    for seed in range(4):
        problem: AllocationProblem = random_problem(seed, interactions=True, groups=4)
        assert problem.interactions is not None
        size = len(problem.interactions.keys)
        wild = rng.normal(0, 0.05, (size, size))
        problem = replace(problem, interactions=Quadratic(problem.interactions.keys, wild + wild.T))
        every = enumerate_all(problem)
        fits = every.fitting(dict(problem.budgets))
        answer = solve(problem, time_limit_s=10.0)
        if fits.any():
            assert isinstance(answer, Allocation)
            best = every.losses[fits].min()
            assert answer.bound <= best + 1e-9
            assert best - 1e-9 <= answer.loss <= best + 1e-6 * max(abs(best), 1e-3)
