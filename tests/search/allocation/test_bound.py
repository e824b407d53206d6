"""The Lagrangian bound against the linear relaxation and against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from allocation_instances import enumerate_all, random_problem
from scipy.optimize import linprog

from search.allocation import AllocationProblem
from search.allocation.arrays import Arrays, lay_out
from search.allocation.bound import maximise, scale


def linear_relaxation(arrays: Arrays) -> float:
    """min loss over fractional choices with y ≥ |X_u,d − X_v,d| for each edge's d, by a generic solver; inf if none."""
    groups, width = arrays.loss.shape
    cells = [(g, b) for g in range(groups) for b in range(width) if arrays.allowed[g, b]]
    count, edges = len(cells), len(arrays.edges)
    equal = np.zeros((groups, count + edges))
    for i, (g, _) in enumerate(cells):
        equal[g, i] = 1.0
    rows, right = [], []
    for k in range(len(arrays.resources)):
        rows.append(np.array([arrays.cost[k, g, b] for g, b in cells] + arrays.edges.cost[k].tolist()))
        right.append(arrays.limit[k])
    for e in range(edges):
        row = np.zeros(count + edges)
        for i, (g, b) in enumerate(cells):
            if arrays.domain[g, b] == arrays.edges.domain[e]:
                row[i] = float(g == arrays.edges.first[e]) - float(g == arrays.edges.second[e])
        for sign in (1.0, -1.0):
            bounded = sign * row
            bounded[count + e] = -1.0
            rows.append(bounded)
            right.append(0.0)
    costs = np.array([arrays.loss[g, b] for g, b in cells] + [0.0] * edges)
    answer = linprog(costs, np.array(rows), np.array(right), equal, np.ones(groups), bounds=(0, 1), method="highs")
    return float(answer.fun) if answer.status == 0 else np.inf


def test_without_boundaries_the_bound_is_the_linear_relaxation() -> None:
    compared = 0
    for seed in range(60):
        arrays = lay_out(random_problem(seed, boundaries=False))
        scaled = scale(arrays)
        dual = maximise(scaled)
        relaxed = linear_relaxation(arrays)
        if np.isinf(relaxed):
            assert dual.infeasible
            continue
        assert not dual.infeasible
        bound = scaled.offset + dual.value * scaled.unit
        assert bound == pytest.approx(relaxed, rel=1e-6, abs=1e-9)
        compared += 1
    assert compared > 40


def test_the_bound_and_forced_choices_never_exceed_brute_force() -> None:
    tight = 0
    for seed in range(60):
        problem = random_problem(seed, boundaries=True)
        arrays = lay_out(problem)
        every = enumerate_all(problem)
        fits = every.fitting(dict(problem.budgets))
        scaled = scale(arrays)
        dual = maximise(scaled)
        if not fits.any():
            continue
        assert not dual.infeasible
        best = every.losses[fits].min()
        slack = 1e-9 * max(1.0, float(np.abs(arrays.loss[arrays.allowed]).max()))
        assert scaled.offset + dual.value * scaled.unit <= best + slack
        for g in range(arrays.groups):
            for b in np.flatnonzero(arrays.allowed[g]):
                forced = fits & (every.selections[:, g] == b)
                if forced.any():
                    least = scaled.offset + (dual.value + dual.reduced[g, b]) * scaled.unit
                    assert least <= every.losses[forced].min() + slack
                    tight += least > 0.9 * every.losses[forced].min() > 0
    assert tight > 30


def test_transfers_close_most_of_what_boundaries_cost() -> None:
    """Boundary costs count in the bound: it comes near the relaxation that models them, not one that ignores them."""
    kept, ignored = [], []
    for seed in range(40):
        problem = random_problem(seed, boundaries=True, groups=6)
        arrays = lay_out(problem)
        if np.any(arrays.edges.cost < 0):
            continue
        relaxed = linear_relaxation(arrays)
        if not np.isfinite(relaxed) or relaxed < 1e-6:
            continue
        scaled = scale(arrays)
        dual = maximise(scaled)
        kept.append((scaled.offset + dual.value * scaled.unit) / relaxed)
        ignored.append(linear_relaxation(lay_out(without_boundaries(problem))) / relaxed)
    assert len(kept) >= 8
    assert max(kept) <= 1 + 1e-6
    assert np.mean(kept) > 0.97
    assert np.mean(kept) > np.mean(ignored)


def without_boundaries(problem: AllocationProblem) -> AllocationProblem:
    return replace(problem, boundaries=tuple(edge for edge in problem.boundaries if edge.second is None))
