"""Why no allocation meets the budgets, and what would: reachable values, the least common relaxation, who pins it."""

from __future__ import annotations

import math

import numpy as np

from search.allocation.arrays import Arrays, Edges, Floats, Ints
from search.allocation.core import Clock
from search.allocation.problem import Infeasible
from search.allocation.solver import Program, run
from search.curve import STRAIGHT

BINDING_GROUPS = 10
_TANGENTS = 4
"""How often curves are replaced by their tangents at the factor found before; two are enough for small bends."""


def cheapest(arrays: Arrays, row: int, *, solver: str, clock: Clock, sign: float = 1.0) -> Ints:
    """The selection with the least (`sign` 1) or largest (−1) total of one resource, whatever the others cost."""
    cost = np.where(arrays.allowed, sign * arrays.cost[row], np.inf)
    greedy: Ints = cost.argmin(axis=1)
    paid = sign * arrays.edges.cost[row]
    crossed = arrays.edges.crossed(arrays.domain[np.arange(arrays.groups), greedy])
    if not np.any(paid[crossed] > 0) and not np.any(paid[~crossed] < 0):
        return greedy
    one = arrays.edges.costing(sign * arrays.edges.cost[row : row + 1])
    row_unit = np.array([float(np.abs(arrays.cost[row]).sum() + np.abs(paid).sum())])
    cost = sign * arrays.cost[row : row + 1]
    return _least_growth(arrays, cost, one, np.zeros(1), row_unit, solver, clock, greedy)


def least_relaxation(arrays: Arrays, *, solver: str, clock: Clock) -> tuple[float, Ints]:
    """The least factor on all budgets together that some selection meets, and that selection.

    inf when a budget of zero is exceeded: no factor helps. Proven least unless the clock ends first; with curves, which
    are straight lines to the program, as long as these meet them where they were drawn.
    """
    if len(arrays.resources) == 1:
        first = cheapest(arrays, 0, solver=solver, clock=clock)
        return relaxation_of(arrays, first), first
    factor, choice = 1.0, _balanced(arrays)
    for _ in range(_TANGENTS):
        at = factor * arrays.budget
        slopes = [curve.slope(each) for curve, each in zip(arrays.curves, at.tolist(), strict=True)]
        growth = arrays.budget * np.array(slopes)
        constant = arrays.constant + factor * growth - arrays.summed(at)
        choice = _least_growth(arrays, arrays.cost, arrays.edges, constant, growth, solver, clock, choice)
        before, factor = factor, relaxation_of(arrays, choice)
        if set(arrays.curves) == {STRAIGHT} or not math.isfinite(factor) or math.isclose(before, factor, rel_tol=1e-6):
            break
    return factor, choice


def relaxation_of(arrays: Arrays, choice: Ints) -> float:
    """The factor on all budgets that this selection needs."""
    total = arrays.amounts(choice)
    worst = -math.inf
    for used, budget in zip(total.tolist(), arrays.budget.tolist(), strict=True):
        if budget > 0:
            worst = max(worst, used / budget)
        elif used > 0:
            return math.inf
    return worst


def _balanced(arrays: Arrays) -> Ints:
    """Per group the choice with the least sum of budget shares: a start where the solver finds none in time."""
    share = np.where(arrays.budget > 0, arrays.budget, 1.0)
    total = np.where(arrays.allowed, (arrays.cost / share[:, None, None]).sum(axis=0), np.inf)
    least: Ints = total.argmin(axis=1)
    return least


def _least_growth(
    arrays: Arrays,
    cost: Floats,
    edges: Edges,
    constant: Floats,
    budget: Floats,
    solver: str,
    clock: Clock,
    fallback: Ints,
) -> Ints:
    """min t with constant + cost ≤ t · budget per row, over every selection."""
    shifted = np.where(arrays.allowed, cost, np.inf).min(axis=2)
    spread = np.where(arrays.allowed, cost - shifted[:, :, None], 0.0)
    largest = spread.max(axis=(1, 2)) + np.abs(edges.cost).sum(axis=1)
    unit = np.where(budget > 0, budget, np.where(largest > 0, largest, 1.0))
    # t counts from the best that each row could reach alone, so that the solver's tolerance is small against it.
    alone = constant + shifted.sum(axis=1) + np.minimum(edges.cost, 0.0).sum(axis=1)
    base = max((float(a / b) for a, b in zip(alone, budget, strict=True) if b > 0), default=0.0)
    program = Program(
        objective=np.zeros(arrays.loss.shape),
        allowed=arrays.allowed,
        cost=spread / unit[:, None, None],
        limit=(base * budget - constant - shifted.sum(axis=1)) / unit,
        domain=arrays.domain,
        edges=edges.costing(edges.cost / unit[:, None]),
        growth=np.where(budget > 0, budget / unit, 0.0),
        weight=1e4,
    )
    answer = run(program, solver=solver, time_limit_s=clock.left_s)
    return fallback if answer.choice is None else answer.choice


def reachable(arrays: Arrays, *, solver: str, clock: Clock) -> dict[str, float]:
    """The smallest total, constants included, that each budgeted resource can take alone."""
    least: dict[str, float] = {}
    for k, resource in enumerate(arrays.resources):
        choice = cheapest(arrays, k, solver=solver, clock=clock)
        least[resource] = float(arrays.amounts(choice)[k])
    return least


def explain(arrays: Arrays, relaxation: float, choice: Ints, least: dict[str, float]) -> Infeasible:
    """The answer for budgets that the least relaxed selection `choice` still exceeds; the caller fills `nearest`.

    `violated`: resources whose least reachable total exceeds its budget, or, where each could be met alone, those that
    `choice` exceeds. `binding`: (group, resource, share of the budget that its cheapest choice takes), largest first.
    """
    over = [resource for k, resource in enumerate(arrays.resources) if least[resource] > _most(arrays, k)]
    if not over:
        excess = arrays.totals(choice) > arrays.limit + arrays.tolerance
        over = [resource for k, resource in enumerate(arrays.resources) if excess[k]]
    shares: list[tuple[str, str, float]] = []
    for resource in over:
        k = arrays.resources.index(resource)
        budget = float(arrays.budget[k])
        cost = np.where(arrays.allowed, arrays.cost[k], np.inf).min(axis=1)
        shares += [
            (name, resource, value / budget if budget > 0 else math.inf)
            for name, value in zip(arrays.names, cost.tolist(), strict=True)
            if value > 0
        ]
    shares.sort(key=lambda share: -share[2])
    return Infeasible(
        violated=tuple(over),
        reachable=least,
        relaxation=relaxation,
        nearest=None,
        binding=tuple(shares[:BINDING_GROUPS]),
    )


def _most(arrays: Arrays, k: int) -> float:
    return float(arrays.budget[k] + arrays.tolerance[k])
