"""Pareto front of loss against one resource: dynamic programming where it is exact, else an optimum per budget.

With one resource and without interactions the non-dominated totals are the whole front. With other budgets or
interactions, or where there are too many, evenly spaced budgets are solved one by one, each with its proven gap.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from search.allocation.arrays import ROUNDING, Arrays, Floats, Ints, lay_out
from search.allocation.core import Clock, Found, Undecided, relative_gap, smallest_positive, solve_separable
from search.allocation.infeasible import cheapest
from search.allocation.interactions import interaction_of, solve_interacting
from search.allocation.local_search import Interacting
from search.allocation.non_dominated import NonDominated, non_dominated
from search.allocation.problem import AllocationProblem, FrontPoint
from search.allocation.solver import check_solver
from search.errors import BadSubmission

_WHOLE_SHARE = 0.5
"""Part of the time limit that the whole front may take before budgets are solved one by one."""
_LEAST_SHARE_S = 0.2


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
    clock = Clock.of(time_limit_s)
    if interaction is None and not others:
        whole = non_dominated(arrays, Clock.of(_WHOLE_SHARE * time_limit_s))
        if whole is not None:
            return _pick(arrays, whole, asked, points)
    return _sweep(arrays, interaction, asked, points, solver, clock, gap)


def whole_front(
    problem: AllocationProblem, resource: str, *, points: int = 101, time_limit_s: float = 60.0
) -> list[FrontPoint] | None:
    """`pareto_front` of a problem without budgets where it is whole, so that points cost nothing; None elsewhere."""
    arrays = lay_out(problem, resources=[resource])
    if interaction_of(problem, arrays) is not None:
        return None
    whole = non_dominated(arrays, Clock.of(time_limit_s))
    return None if whole is None else _pick(arrays, whole, None, points)


def best_within(front: Sequence[FrontPoint], budget: float) -> FrontPoint | None:
    """The point of least loss whose cost is within the budget, None where every point costs more."""
    position = bisect_right([point.cost for point in front], budget + ROUNDING * abs(budget))
    return front[position - 1] if position else None


def _pick(arrays: Arrays, whole: NonDominated, asked: list[float] | None, points: int) -> list[FrontPoint]:
    if len(whole.cost) == 0:
        return []
    if asked is None and len(whole.cost) <= points:
        which = np.arange(len(whole.cost))
    else:
        limits = _evenly(whole.cost[0], whole.cost[-1], points)
        if asked is not None:
            limits = np.array([arrays.curves[0].summed(each) for each in asked]) - arrays.constant[0]
        slack = ROUNDING * (np.abs(limits) + abs(float(arrays.constant[0])))
        which = np.unique(np.searchsorted(whole.cost, limits + slack, side="right"))
        which = which[which > 0] - 1
    return _thin([_point(arrays, selection, 0.0) for selection in whole.selections(which)])


def _evenly(low: float, high: float, points: int) -> Floats:
    steps = np.linspace(float(low), float(high), points)
    steps[-1] = high
    return steps


def _point(arrays: Arrays, choice: Ints, gap: float, loss: float | None = None) -> FrontPoint:
    return FrontPoint(
        resource=arrays.resources[0],
        cost=float(arrays.amounts(choice)[0]),
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
        ends = [float(arrays.amounts(choice)[0]) for choice in (lowest, dearest.choice)]
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
