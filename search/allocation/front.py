"""Pareto front of loss against one resource: dynamic programming where it is exact, else an optimum per budget.

With one resource and separable terms, the non-dominated partial sums of the first g groups contain every prefix of a
Pareto allocation (Nemhauser & Ullmann 1969), so merging group by group and pruning gives the whole front. With other
budgets, boundaries between groups or interactions, or when the lists grow too long, evenly spaced budgets are solved
one by one, each with its proven gap.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.allocation.arrays import ROUNDING, Arrays, Floats, Ints, drop_dominated, lay_out
from search.allocation.core import Clock, Found, Undecided, relative_gap, smallest_positive, solve_separable
from search.allocation.infeasible import cheapest
from search.allocation.interactions import interaction_of, solve_interacting
from search.allocation.local_search import Interacting
from search.allocation.problem import AllocationProblem, FrontPoint
from search.allocation.solver import check_solver
from search.errors import BadSubmission

_MOST_STATES = 300_000
_LEAST_SHARE_S = 0.2
_NOISE = 1e-13
"""Partial sums closer than this (relatively) differ by the order of addition only."""


def pareto_front(
    problem: AllocationProblem,
    resource: str,
    *,
    budgets: Iterable[float] | None = None,
    points: int = 101,
    solver: str = "cbc",
    time_limit_s: float = 60.0,
    gap: float = 0.0,
) -> list[FrontPoint]:
    """Allocations of least loss against `resource`, by rising cost and falling loss, under the problem's other budgets.

    The whole front if dynamic programming applies and it has at most `points` points, else the optima at `points`
    evenly spaced budgets; with `budgets` the optima at those (`best_within` finds each). A budget on `resource` itself
    ends the front. Budgets that nothing meets have no point, so the list may be empty. `FrontPoint.exact` says that the
    point's loss is proven least at its budget; otherwise `FrontPoint.gap` bounds what is missing.
    Raises `BadSubmission` for a malformed problem or a resource that nothing costs.
    """
    check_solver(solver)
    if points < 2:
        raise BadSubmission(f"{points} points were asked for", hint="a front has at least 2", code="bad_front")
    asked = None if budgets is None else sorted(set(budgets))
    if asked is not None and not all(math.isfinite(budget) for budget in asked):
        raise BadSubmission(f"budgets {asked}", hint="every budget of a front is a finite number", code="bad_front")
    cap = float(problem.budgets.get(resource, math.inf))
    bounded = replace(problem, budgets={**problem.budgets, resource: cap})
    others = [name for name, budget in bounded.budgets.items() if name != resource and math.isfinite(budget)]
    arrays = lay_out(bounded, resources=[resource, *others])
    interaction = interaction_of(problem, arrays)
    if interaction is None and not others and len(arrays.edges) == 0:
        states = _merge(arrays)
        if states is not None:
            return _pick(arrays, states, asked, points)
    return _sweep(arrays, interaction, asked, points, solver, Clock.of(time_limit_s), gap)


def best_within(front: Sequence[FrontPoint], budget: float) -> FrontPoint | None:
    """The point of least loss whose cost is within the budget, None where every point costs more."""
    position = bisect_right([point.cost for point in front], budget + ROUNDING * abs(budget))
    return front[position - 1] if position else None


@dataclass(frozen=True)
class _States:
    """Non-dominated totals by rising cost, and per group which state each came from and with which choice."""

    cost: Floats
    loss: Floats
    steps: list[tuple[Ints, Ints]]

    def selections(self, which: Ints) -> Ints:
        """Choices (n, L) of the given final states."""
        chosen = np.empty((len(which), len(self.steps)), dtype=np.int64)
        for g in range(len(self.steps) - 1, -1, -1):
            parent, choice = self.steps[g]
            chosen[:, g] = choice[which]
            which = parent[which]
        return chosen


def _merge(arrays: Arrays) -> _States | None:
    """Every non-dominated total within the limit, or None when a list outgrows its bound."""
    arrays = drop_dominated(arrays)
    limit = float(arrays.limit[0] + arrays.tolerance[0])
    least = np.where(arrays.allowed, arrays.cost[0], np.inf).min(axis=1)
    rest = np.append(np.cumsum(least[::-1])[::-1][1:], 0.0)  # what the groups behind g cost at least
    slack = ROUNDING * float(np.abs(arrays.cost[0]).sum())
    worst = float(np.abs(np.where(arrays.allowed, arrays.loss, 0.0)).max(axis=1).sum())
    cost, loss = np.zeros(1), np.zeros(1)
    steps: list[tuple[Ints, Ints]] = []
    for g in range(arrays.groups):
        options = np.flatnonzero(arrays.allowed[g])
        costs = (cost[:, None] + arrays.cost[0, g, options][None, :]).ravel()
        losses = (loss[:, None] + arrays.loss[g, options][None, :]).ravel()
        order = np.lexsort((losses, costs))
        order = order[costs[order] + rest[g] <= limit + slack]
        best_before = np.minimum.accumulate(np.concatenate(([np.inf], losses[order][:-1])))[: len(order)]
        order = order[losses[order] < best_before - np.where(np.isfinite(best_before), _NOISE * worst, 0.0)]
        if len(order) > _MOST_STATES:
            return None
        cost, loss = costs[order], losses[order]
        steps.append((order // len(options), options[order % len(options)]))
    return _States(cost, loss, steps)


def _pick(arrays: Arrays, states: _States, asked: list[float] | None, points: int) -> list[FrontPoint]:
    if len(states.cost) == 0:
        return []
    if asked is None and len(states.cost) <= points:
        which = np.arange(len(states.cost))
    else:
        limits = _evenly(states.cost[0], states.cost[-1], points)
        if asked is not None:
            limits = np.array(asked) - arrays.constant[0]
        slack = ROUNDING * (np.abs(limits) + abs(float(arrays.constant[0])))
        which = np.unique(np.searchsorted(states.cost, limits + slack, side="right"))
        which = which[which > 0] - 1
    return _thin([_point(arrays, selection, 0.0) for selection in states.selections(which)])


def _evenly(low: float, high: float, points: int) -> Floats:
    steps = np.linspace(float(low), float(high), points)
    steps[-1] = high
    return steps


def _point(arrays: Arrays, choice: Ints, gap: float, loss: float | None = None) -> FrontPoint:
    return FrontPoint(
        resource=arrays.resources[0],
        cost=float(arrays.totals(choice)[0] + arrays.constant[0]),
        loss=arrays.separable_loss(choice) if loss is None else loss,
        precisions=arrays.named(choice),
        exact=gap == 0.0,
        gap=gap,
    )


def _thin(points: list[FrontPoint]) -> list[FrontPoint]:
    """Without points that another beats in cost and loss."""
    kept: list[FrontPoint] = []
    for point in sorted(points, key=lambda point: (point.cost, point.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept


def _sweep(
    arrays: Arrays,
    interaction: Interacting | None,
    asked: list[float] | None,
    points: int,
    solver: str,
    clock: Clock,
    gap: float,
) -> list[FrontPoint]:
    """An optimum per budget, by rising budget so that each answer starts the next."""
    if asked is None:
        unbounded = arrays.with_rows(range(1, len(arrays.resources))) if np.isinf(arrays.budget[0]) else arrays
        dearest = _solve(unbounded, interaction, solver, Clock.of(clock.left_s / points), gap, None)
        if dearest is None:
            return []
        lowest = cheapest(arrays, 0, solver=solver, clock=clock)
        ends = [float(arrays.totals(choice)[0] + arrays.constant[0]) for choice in (lowest, dearest.choice)]
        asked = np.unique(_evenly(ends[0], max(ends), points)).tolist()
    smallest = smallest_positive(arrays.loss)
    found: list[FrontPoint] = []
    start: Ints | None = None
    for done, budget in enumerate(asked):
        bounded = arrays.under(np.append(min(budget, arrays.budget[0]), arrays.budget[1:]))
        share = Clock.of(max(clock.left_s / (len(asked) - done), _LEAST_SHARE_S))
        answer = _solve(bounded, interaction, solver, share, gap, start)
        if answer is not None:
            start = answer.choice
            proven = relative_gap(answer.loss, answer.bound, smallest)
            found.append(_point(arrays, answer.choice, proven, answer.loss))
    return _thin(found)


def _solve(
    arrays: Arrays, interaction: Interacting | None, solver: str, clock: Clock, gap: float, start: Ints | None
) -> Found | None:
    try:
        if interaction is None:
            return solve_separable(arrays, solver=solver, clock=clock, gap=gap, start=start)
        return solve_interacting(arrays, interaction, solver=solver, clock=clock, gap=gap, start=start)
    except Undecided:
        return None
