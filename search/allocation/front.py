"""Pareto front of loss against one resource: dynamic programming where it is exact, else an optimum per budget.

With one resource and without interactions, the non-dominated partial sums of the first g groups contain every prefix of
a Pareto allocation (Nemhauser & Ullmann 1969), so merging group by group and pruning gives the whole front; boundaries
keep apart the sums whose open ends are in different domains. With other budgets or interactions, or when the lists grow
too long, evenly spaced budgets are solved one by one, each with its proven gap.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.allocation.arrays import ROUNDING, Arrays, Edges, Floats, Ints, drop_dominated, lay_out
from search.allocation.core import Clock, Found, Undecided, relative_gap, smallest_positive, solve_separable
from search.allocation.infeasible import cheapest
from search.allocation.interactions import interaction_of, solve_interacting
from search.allocation.local_search import Interacting
from search.allocation.problem import AllocationProblem, FrontPoint
from search.allocation.solver import check_solver
from search.errors import BadSubmission

_MOST_STATES = 300_000
_MOST_LISTS = 256
_MERGE_SHARE = 0.5
"""Part of the time limit that merging may take before budgets are solved one by one."""
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
    clock = Clock.of(time_limit_s)
    if interaction is None and not others:
        states = _merge(arrays, Clock.of(_MERGE_SHARE * time_limit_s))
        if states is not None:
            return _pick(arrays, states, asked, points)
    return _sweep(arrays, interaction, asked, points, solver, clock, gap)


def whole_front(
    problem: AllocationProblem, resource: str, *, points: int = 101, time_limit_s: float = 60.0
) -> list[FrontPoint] | None:
    """`pareto_front` of a problem without budgets, where merging gives it and more points cost nothing; else None."""
    arrays = lay_out(problem, resources=[resource])
    if interaction_of(problem, arrays) is not None:
        return None
    states = _merge(arrays, Clock.of(time_limit_s))
    return None if states is None else _pick(arrays, states, None, points)


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


def _merge(arrays: Arrays, clock: Clock) -> _States | None:
    """Every non-dominated total within the limit; None when the lists outgrow their bound or the clock ends.

    What a group costs with its boundaries depends on the domains of earlier groups that still have a boundary ahead.
    Lists are kept apart by these domains (-1: none that a boundary asks for), and totals of one list alone dominate
    each other.
    """
    arrays = drop_dominated(arrays)
    behind = _edges_by_later_end(arrays.edges)
    last = np.arange(arrays.groups)
    np.maximum.at(last, arrays.edges.first, arrays.edges.second)
    domain = _asked_domain(arrays)
    limit = float(arrays.limit[0] + arrays.tolerance[0])
    least = np.where(arrays.allowed, arrays.cost[0], np.inf).min(axis=1)
    np.add.at(least, arrays.edges.second, np.minimum(arrays.edges.cost[0], 0.0))
    rest = np.append(np.cumsum(least[::-1])[::-1][1:], 0.0)  # what the groups behind g cost at least
    slack = ROUNDING * float(np.abs(arrays.cost[0]).sum() + np.abs(arrays.edges.cost[0]).sum())
    worst = float(np.abs(np.where(arrays.allowed, arrays.loss, 0.0)).max(axis=1).sum())
    lists: dict[tuple[int, ...], _List] = {
        (): _List(np.zeros(1), np.zeros(1), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
    }
    open_groups: list[int] = []
    steps: list[tuple[Ints, Ints]] = []
    for g in range(arrays.groups):
        if clock.left_s <= 0:
            return None
        options = np.flatnonzero(arrays.allowed[g])
        stays = [position for position, h in enumerate(open_groups) if last[h] > g]
        grown: dict[tuple[int, ...], list[_List]] = {}
        offset = 0
        for domains, states in lists.items():
            here: dict[int, int] = dict(zip(open_groups, domains, strict=True))
            paid = arrays.cost[0, g, options] + _crossing(arrays, behind[g], here, domain[g, options])
            kept = tuple(domains[position] for position in stays)
            parents = np.arange(offset, offset + len(states.cost))
            offset += len(states.cost)
            # Domains of groups that no boundary asks for again are one and the same.
            labels = domain[g, options] if last[g] > g else np.zeros(len(options), dtype=np.int64)
            for label in np.unique(labels).tolist():
                taken = labels == label
                grown.setdefault((*kept, label) if last[g] > g else kept, []).append(
                    states.with_choices(parents, options[taken], paid[taken], arrays.loss[g, options[taken]])
                )
        open_groups = [open_groups[position] for position in stays] + [g] * bool(last[g] > g)
        lists = {
            key: _List.joined(parts).pruned(limit + slack - rest[g], _NOISE * worst) for key, parts in grown.items()
        }
        if sum(len(states.cost) for states in lists.values()) > _MOST_STATES or len(lists) > _MOST_LISTS:
            return None
        steps.append(
            (
                np.concatenate([states.parent for states in lists.values()]),
                np.concatenate([states.choice for states in lists.values()]),
            )
        )
    (final,) = lists.values()
    return _States(final.cost, final.loss, steps)


@dataclass(frozen=True)
class _List:
    """Totals whose open groups are in the same domains: each with the state it came from and its last choice."""

    cost: Floats
    loss: Floats
    parent: Ints
    choice: Ints

    def with_choices(self, parents: Ints, options: Ints, cost: Floats, loss: Floats) -> _List:
        """Every state with every option; `parents` are the numbers of the states."""
        return _List(
            (self.cost[:, None] + cost[None, :]).ravel(),
            (self.loss[:, None] + loss[None, :]).ravel(),
            np.repeat(parents, len(options)),
            np.tile(options, len(parents)),
        )

    @classmethod
    def joined(cls, parts: Sequence[_List]) -> _List:
        columns = ([getattr(part, name) for part in parts] for name in ("cost", "loss", "parent", "choice"))
        return cls(*(np.concatenate(column) for column in columns))

    def pruned(self, limit: float, noise: float) -> _List:
        """By rising cost, without those over the limit and those that another beats."""
        order = np.lexsort((self.loss, self.cost))
        order = order[self.cost[order] <= limit]
        best_before = np.minimum.accumulate(np.concatenate(([np.inf], self.loss[order][:-1])))[: len(order)]
        order = order[self.loss[order] < best_before - np.where(np.isfinite(best_before), noise, 0.0)]
        return _List(self.cost[order], self.loss[order], self.parent[order], self.choice[order])


def _asked_domain(arrays: Arrays) -> Ints:
    """Domains (L, B) as far as a boundary of the group asks for them, -1 for all others."""
    asked = np.zeros((arrays.groups, arrays.domains), dtype=np.bool_)
    asked[arrays.edges.first, arrays.edges.domain] = asked[arrays.edges.second, arrays.edges.domain] = True
    return np.where(asked[np.arange(arrays.groups)[:, None], arrays.domain], arrays.domain, -1)


def _edges_by_later_end(edges: Edges) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for e, later in enumerate(edges.second.tolist()):
        found[later].append(e)
    return found


def _crossing(arrays: Arrays, behind: Sequence[int], here: Mapping[int, int], domain: Ints) -> Floats:
    """What the boundaries to earlier groups cost for a group whose choices are in `domain`."""
    total = np.zeros(len(domain))
    for e in behind:
        inside = arrays.edges.domain[e]
        total += arrays.edges.cost[0, e] * ((domain == inside) != (here[int(arrays.edges.first[e])] == inside))
    return total


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
