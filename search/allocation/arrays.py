"""An allocation problem checked and laid out as arrays: what the bound, the solver and the searches compute on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from search.allocation.problem import AllocationProblem, Choice
from search.curve import STRAIGHT, Curve
from search.domain import FLOAT_DOMAIN
from search.errors import BadSubmission

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

ROUNDING = 1e-12
"""Relative slack when a total meets its limit: sums of float64 costs in another order differ by about this much."""


@dataclass(frozen=True)
class Edges:
    """Boundaries between two groups: `cost[k, e]` of resource k is paid when just one end is in `domain[e]`."""

    first: Ints
    second: Ints
    domain: Ints
    cost: Floats

    def __len__(self) -> int:
        return len(self.first)

    def crossed(self, here: Ints) -> Bools:
        """Which are paid (E,) when the groups are in the domains `here` (L,)."""
        found: Bools = (here[self.first] == self.domain) != (here[self.second] == self.domain)
        return found

    def costing(self, cost: Floats) -> Edges:
        """The same edges at other costs, (K, E)."""
        return replace(self, cost=cost)

    def only(self, which: Ints) -> Edges:
        """Some of the edges, by position."""
        return Edges(self.first[which], self.second[which], self.domain[which], self.cost[:, which])


@dataclass(frozen=True)
class Arrays:
    """The problem over L groups with at most B choices each and K budgeted resources.

    `loss` (L, B) holds inf where a group has no such choice; `allowed` (L, B) leaves out choices that pins or dominance
    removed; `cost` (K, L, B) includes boundaries whose other end is fixed; `budget` (K,) bounds what a resource's curve
    makes of its costs and constant, `limit` the sum of the costs; `domain` (L, B) numbers the choices' domains, 0 is
    `float`.
    """

    names: tuple[str, ...]
    precisions: tuple[tuple[str, ...], ...]
    loss: Floats
    allowed: Bools
    resources: tuple[str, ...]
    cost: Floats
    budget: Floats
    constant: Floats
    curves: tuple[Curve, ...]
    domain: Ints
    domains: int
    edges: Edges

    @cached_property
    def limit(self) -> Floats:
        """What the sum of costs without the constant may be, (K,)."""
        return self.summed(self.budget) - self.constant

    @property
    def groups(self) -> int:
        return len(self.names)

    @property
    def tolerance(self) -> Floats:
        """What a total may exceed its limit by, (K,): float64 rounding and nothing more."""
        return ROUNDING * np.maximum(np.abs(self.limit), np.abs(self.budget))

    def totals(self, choice: Ints) -> Floats:
        """Exactly rounded sum of an allocation's costs per resource, (K,), without constants and curves."""
        rows = np.arange(self.groups)
        spent = self.cost[:, rows, choice]
        crossed = self.edges.crossed(self.domain[rows, choice])
        return np.array(
            [math.fsum([*spent[k].tolist(), *self.edges.cost[k][crossed].tolist()]) for k in range(len(self.resources))]
        )

    def amounts(self, choice: Ints) -> Floats:
        """What an allocation costs, constants and curves included, (K,): what budgets bound."""
        summed = self.totals(choice) + self.constant
        return np.array([curve.total(each) for curve, each in zip(self.curves, summed.tolist(), strict=True)])

    def summed(self, amounts: Floats) -> Floats:
        """The sums of costs, constants included, that amount to the given ones, (K,)."""
        return np.array([curve.summed(each) for curve, each in zip(self.curves, amounts.tolist(), strict=True)])

    def under(self, budget: Floats) -> Arrays:
        """The same problem with other budgets, (K,)."""
        return replace(self, budget=budget)

    def with_rows(self, rows: Sequence[int]) -> Arrays:
        """The same problem with only some of its resources."""
        keep = list(rows)
        return replace(
            self,
            resources=tuple(self.resources[k] for k in keep),
            cost=self.cost[keep],
            budget=self.budget[keep],
            constant=self.constant[keep],
            curves=tuple(self.curves[k] for k in keep),
            edges=self.edges.costing(self.edges.cost[keep]),
        )

    def fits(self, choice: Ints) -> bool:
        return bool(np.all(self.totals(choice) <= self.limit + self.tolerance))

    def separable_loss(self, choice: Ints) -> float:
        return math.fsum(self.loss[np.arange(self.groups), choice].tolist())

    def named(self, choice: Ints) -> dict[str, str]:
        return {
            name: precisions[index]
            for name, precisions, index in zip(self.names, self.precisions, choice.tolist(), strict=True)
        }


def _bad(code: str, message: str, hint: str) -> BadSubmission:
    return BadSubmission(message, hint=hint, code=code)


def _check_numbers(what: str, values: Iterable[tuple[str, float]]) -> None:
    for name, value in values:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise _bad("cost_not_finite", f"{what}: {name} is {value!r}", "every loss and cost must be a finite number")


def check(problem: AllocationProblem) -> None:
    """Raise `BadSubmission` with a stable code when the problem is not well formed; never changes it."""
    if not problem.groups:
        raise _bad("no_groups", "the problem has no groups", "give at least one group of layers with its choices")
    seen: set[str] = set()
    for group in problem.groups:
        if group.name in seen:
            raise _bad("duplicate_group", f"two groups are named {group.name!r}", "group names must differ")
        seen.add(group.name)
        if not group.choices:
            raise _bad("empty_group", f"group {group.name!r} has no choices", "give every group at least one precision")
        precisions = [choice.precision for choice in group.choices]
        if len(set(precisions)) < len(precisions):
            raise _bad(
                "duplicate_precision",
                f"group {group.name!r} offers {precisions}",
                "offer each precision once per group",
            )
        for choice in group.choices:
            where = f"group {group.name!r} at {choice.precision}"
            _check_numbers(where, [("loss", choice.loss), *choice.costs.items()])
        for resource in {resource for choice in group.choices for resource in choice.costs}:
            lacking = [choice.precision for choice in group.choices if resource not in choice.costs]
            if lacking:
                raise _bad(
                    "cost_missing",
                    f"group {group.name!r} has no {resource!r} for {', '.join(lacking)}",
                    "a group gives a resource for all of its choices or for none",
                )
    owner: dict[str, str] = {}
    for group in problem.groups:
        for layer in group.layers:
            if owner.setdefault(layer, group.name) != group.name:
                raise _bad(
                    "duplicate_layer",
                    f"layer {layer!r} is in groups {owner[layer]!r} and {group.name!r}",
                    "a layer belongs to one group",
                )
    _check_numbers("constants", problem.constants.items())
    for boundary in problem.boundaries:
        _check_numbers(f"boundary {boundary.first!r} – {boundary.second!r}", [("cost", boundary.cost)])
        for end in (boundary.first, boundary.second):
            if end is not None and end not in seen:
                raise _bad("boundary_unknown_group", f"a boundary names group {end!r}", "name groups of the problem")
        if boundary.first == boundary.second:
            raise _bad(
                "boundary_to_itself", f"a boundary joins {boundary.first!r} to itself", "join two different groups"
            )
    known = {resource for group in problem.groups for choice in group.choices for resource in choice.costs}
    known |= set(problem.constants) | {boundary.resource for boundary in problem.boundaries}
    for resource, budget in problem.budgets.items():
        if resource not in known:
            raise _bad(
                "budget_unknown_resource",
                f"the budget {resource!r} is a cost of nothing in the problem",
                f"known resources are {', '.join(sorted(known)) or 'none'}",
            )
        if not isinstance(budget, (int, float)) or math.isnan(budget) or budget < 0:
            raise _bad("bad_budget", f"the budget of {resource} is {budget!r}", "a budget is a number ≥ 0")
    for resource, curve in problem.curves.items():
        if not math.isfinite(curve.bend) or not (math.isfinite(curve.scale) and curve.scale > 0):
            raise _bad(
                "bad_curve",
                f"the curve of {resource} has bend {curve.bend!r} and scale {curve.scale!r}",
                "a bend is finite, a scale finite and positive",
            )
    pinned(problem)
    if problem.interactions is not None:
        _check_interactions(problem)


def _check_interactions(problem: AllocationProblem) -> None:
    assert problem.interactions is not None
    keys, matrix = problem.interactions.keys, problem.interactions.matrix
    if matrix.shape != (len(keys), len(keys)) or not np.all(np.isfinite(matrix)):
        raise _bad(
            "bad_interactions",
            f"the interaction matrix is {matrix.shape} for {len(keys)} keys, or holds values that are not finite",
            "give one finite row and column per key",
        )
    if not np.allclose(matrix, matrix.T, rtol=1e-9, atol=1e-12 * float(np.abs(matrix).max(initial=0.0))):
        raise _bad("bad_interactions", "the interaction matrix is not symmetric", "give G with G[i, j] = G[j, i]")
    offered = {(group.name, choice.precision) for group in problem.groups for choice in group.choices}
    if unknown := [key for key in keys if key not in offered]:
        raise _bad(
            "bad_interactions", f"interactions name {unknown[0]}", "name (group, precision) pairs of the problem"
        )
    if len(set(keys)) < len(keys):
        raise _bad("bad_interactions", "a (group, precision) pair stands twice in the keys", "give each pair one row")


def pinned(problem: AllocationProblem) -> dict[str, str]:
    """Pins by group name. Raises `BadSubmission` for an unknown name or precision and for pins that disagree."""
    group_of = {layer: group.name for group in problem.groups for layer in group.layers}
    group_of |= {group.name: group.name for group in problem.groups}
    offered = {group.name: [choice.precision for choice in group.choices] for group in problem.groups}
    pins: dict[str, str] = {}
    for name, precision in problem.pins.items():
        if name not in group_of:
            raise _bad("pin_unknown_layer", f"a pin names {name!r}", "pin a layer or a group of the problem")
        group = group_of[name]
        if precision not in offered[group]:
            raise _bad(
                "pin_unknown_precision",
                f"{name!r} is pinned to {precision!r}",
                f"it can take {', '.join(offered[group])}",
            )
        if pins.setdefault(group, precision) != precision:
            raise _bad(
                "pins_disagree",
                f"{name!r} is pinned to {precision}, another layer of its group to {pins[group]}",
                "layers of one group share a precision: pin them to the same",
            )
    return pins


def lay_out(problem: AllocationProblem, *, resources: Sequence[str] | None = None) -> Arrays:
    """The checked problem as arrays over its budgeted resources (infinite budgets are left out).

    `resources` replaces the budgeted resources; one without a budget gets an infinite limit.
    """
    check(problem)
    if resources is None:
        resources = [name for name, budget in problem.budgets.items() if math.isfinite(budget)]
    pins = pinned(problem)
    count, width = len(problem.groups), max(len(group.choices) for group in problem.groups)
    domain_code = {FLOAT_DOMAIN: 0}
    loss = np.full((count, width), np.inf)
    allowed = np.zeros((count, width), dtype=np.bool_)
    cost = np.zeros((len(resources), count, width))
    domain = np.zeros((count, width), dtype=np.int64)
    for g, group in enumerate(problem.groups):
        for b, choice in enumerate(group.choices):
            loss[g, b] = choice.loss
            allowed[g, b] = pins.get(group.name, choice.precision) == choice.precision
            domain[g, b] = domain_code.setdefault(choice.domain, len(domain_code))
            for k, resource in enumerate(resources):
                cost[k, g, b] = choice.costs.get(resource, 0.0)
    edges = _edges(problem, resources, cost, domain, domain_code, np.isfinite(loss))
    budget = np.array([float(problem.budgets.get(name, math.inf)) for name in resources])
    constant = np.array([float(problem.constants.get(name, 0.0)) for name in resources])
    return Arrays(
        names=tuple(group.name for group in problem.groups),
        precisions=tuple(tuple(choice.precision for choice in group.choices) for group in problem.groups),
        loss=loss,
        allowed=allowed,
        resources=tuple(resources),
        cost=cost,
        budget=budget,
        constant=constant,
        curves=tuple(problem.curves.get(name, STRAIGHT) for name in resources),
        domain=domain,
        domains=len(domain_code),
        edges=edges,
    )


def _edges(
    problem: AllocationProblem,
    resources: Sequence[str],
    cost: Floats,
    domain: Ints,
    domain_code: Mapping[str, int],
    real: Bools,
) -> Edges:
    """Boundaries merged per pair of groups and domain; those with a fixed end are added to `cost` in place.

    A domain that no choice is in has no boundaries.
    """
    index = {group.name: g for g, group in enumerate(problem.groups)}
    row = {resource: k for k, resource in enumerate(resources)}
    merged: dict[tuple[int, int, int], Floats] = {}
    for boundary in problem.boundaries:
        if boundary.resource not in row or boundary.cost == 0 or boundary.domain not in domain_code:
            continue
        k, first, code = row[boundary.resource], index[boundary.first], domain_code[boundary.domain]
        if boundary.second is None:
            outside = domain_code[FLOAT_DOMAIN] == code
            cost[k, first, ((domain[first] == code) != outside) & real[first]] += boundary.cost
            continue
        second = index[boundary.second]
        key = (min(first, second), max(first, second), code)
        merged.setdefault(key, np.zeros(len(resources)))[k] += boundary.cost
    ends = np.array(list(merged), dtype=np.int64).reshape(-1, 3).T.copy()
    costs = np.array(list(merged.values())).reshape(len(merged), len(resources)).T
    return Edges(ends[0], ends[1], ends[2], np.ascontiguousarray(costs))


def drop_dominated(arrays: Arrays, keep: Bools | None = None) -> Arrays:
    """Without choices that another choice of the group beats in loss and in every budgeted cost (ties: first stays).

    Where a boundary touches the group only a choice of the same domain may replace another; `keep` (L, B) marks choices
    that interact and are never dropped, nor used to drop others.
    """
    count, width = arrays.loss.shape
    touched = np.zeros(count, dtype=np.bool_)
    touched[arrays.edges.first] = touched[arrays.edges.second] = True
    better = arrays.loss[:, :, None] <= arrays.loss[:, None, :]  # [g, a, b]: a is no worse than b
    strict = arrays.loss[:, :, None] < arrays.loss[:, None, :]
    for cost in arrays.cost:
        better &= cost[:, :, None] <= cost[:, None, :]
        strict |= cost[:, :, None] < cost[:, None, :]
    order = np.arange(width)
    better &= strict | (order[:, None] < order[None, :])
    better &= ~touched[:, None, None] | (arrays.domain[:, :, None] == arrays.domain[:, None, :])
    better &= arrays.allowed[:, :, None]
    if keep is not None:
        better &= ~keep[:, :, None] & ~keep[:, None, :]
    return replace(arrays, allowed=arrays.allowed & ~better.any(axis=1))


def all_costs(problem: AllocationProblem, precisions: dict[str, str]) -> dict[str, float]:
    """Every resource's total of an allocation in plain arithmetic: choices, boundaries, constants and curves."""
    taken: dict[str, Choice] = {
        group.name: next(choice for choice in group.choices if choice.precision == precisions[group.name])
        for group in problem.groups
    }
    terms: dict[str, list[float]] = {name: [value] for name, value in problem.constants.items()}
    for choice in taken.values():
        for resource, value in choice.costs.items():
            terms.setdefault(resource, []).append(value)
    for boundary in problem.boundaries:
        other = FLOAT_DOMAIN if boundary.second is None else taken[boundary.second].domain
        crossed = (taken[boundary.first].domain == boundary.domain) != (other == boundary.domain)
        terms.setdefault(boundary.resource, []).append(boundary.cost if crossed else 0.0)
    return {
        resource: problem.curves.get(resource, STRAIGHT).total(math.fsum(values)) for resource, values in terms.items()
    }
