"""One question in, one answer out: the allocation of a problem, or what its budgets would have to be."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from search.allocation.arrays import Arrays, Ints, all_costs, lay_out
from search.allocation.core import Clock, Found, Undecided, relative_gap, smallest_positive, solve_separable
from search.allocation.infeasible import cheapest, explain, least_relaxation, reachable
from search.allocation.interactions import interaction_of, solve_interacting
from search.allocation.local_search import Interacting
from search.allocation.problem import Allocation, AllocationProblem, Infeasible
from search.allocation.solver import check_solver
from search.errors import BadSubmission


def solve(
    problem: AllocationProblem,
    *,
    solver: str = "cbc",
    time_limit_s: float = 60.0,
    gap: float = 0.0,
    start: Mapping[str, str] | None = None,
) -> Allocation | Infeasible:
    """The allocation of least loss within the budgets, or `Infeasible` with the nearest budgets that can be met.

    Stops once a relative `gap` of the surrogate objective is proven (0: an optimum) or after `time_limit_s`, with the
    best allocation in hand and its proven gap. `start` is an allocation by group name to begin from (ignored where it
    does not fit). The same problem gives the same allocation as long as the time limit is not what ends the search.
    Raises `BadSubmission` with a stable code for a malformed problem.
    """
    begin = time.perf_counter()
    check_solver(solver)
    if not time_limit_s > 0 or not gap >= 0:
        raise BadSubmission(
            f"time limit {time_limit_s} s and gap {gap} were asked for",
            hint="the time limit must be positive and the gap at least 0",
            code="bad_solver_limits",
        )
    arrays = lay_out(problem)
    interaction = interaction_of(problem, arrays)
    clock = Clock.of(time_limit_s)
    first = None if start is None else _indices(arrays, start)
    found = _search(arrays, interaction, solver, clock, gap, first)
    if isinstance(found, Found):
        return _allocation(problem, arrays, found, solver, begin)
    relaxation, choice = least_relaxation(arrays, solver=solver, clock=Clock.of(time_limit_s))
    if arrays.fits(choice):
        found = _search(arrays, interaction, solver, Clock.of(max(clock.left_s, 1.0)), gap, choice)
        if isinstance(found, Found):
            return _allocation(problem, arrays, found, solver, begin)
    answer = explain(arrays, relaxation, choice, reachable(arrays, solver=solver, clock=Clock.of(time_limit_s)))
    if not np.isfinite(relaxation):
        return answer
    budgets = {name: budget * max(relaxation, 1.0) for name, budget in problem.budgets.items()}
    relaxed = replace(problem, budgets=budgets)
    wider = lay_out(relaxed)
    nearest = _search(wider, interaction, solver, Clock.of(time_limit_s), gap, choice)
    if not isinstance(nearest, Found):
        return answer
    return replace(answer, nearest=_allocation(relaxed, wider, nearest, solver, begin))


def reachable_range(problem: AllocationProblem, resource: str, *, solver: str = "cbc") -> tuple[float, float]:
    """The least and the largest total of a resource over all allocations that keep the pins, budgets aside."""
    check_solver(solver)
    arrays = lay_out(replace(problem, budgets={}), resources=[resource])
    ends = [cheapest(arrays, 0, solver=solver, clock=Clock.of(60.0), sign=sign) for sign in (1.0, -1.0)]
    low, high = (float(arrays.amounts(choice)[0]) for choice in ends)
    return low, high


def _search(
    arrays: Arrays, interaction: Interacting | None, solver: str, clock: Clock, gap: float, start: Ints | None
) -> Found | None:
    """None where no allocation was found, proven or not: the caller then looks for the nearest budgets."""
    try:
        if interaction is None:
            return solve_separable(arrays, solver=solver, clock=clock, gap=gap, start=start)
        return solve_interacting(arrays, interaction, solver=solver, clock=clock, gap=gap, start=start)
    except Undecided:
        return None


def _indices(arrays: Arrays, start: Mapping[str, str]) -> Ints | None:
    """The selection of a named allocation, or None where it names no choice of some group or breaks a pin."""
    try:
        choice = np.array(
            [options.index(start[name]) for name, options in zip(arrays.names, arrays.precisions, strict=True)]
        )
    except (KeyError, ValueError):
        return None
    return choice if np.all(arrays.allowed[np.arange(arrays.groups), choice]) else None


def _allocation(problem: AllocationProblem, arrays: Arrays, found: Found, solver: str, begin: float) -> Allocation:
    precisions = arrays.named(found.choice)
    return Allocation(
        precisions=precisions,
        loss=found.loss,
        costs=all_costs(problem, precisions),
        bound=found.bound,
        gap=relative_gap(found.loss, found.bound, smallest_positive(arrays.loss)),
        solver=solver if found.by == solver else f"{solver}:{found.by}",
        seconds=time.perf_counter() - begin,
    )
