"""Why each layer got its bits, in words, from the numbers that decided."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from search.allocation.problem import AllocationProblem, Boundary, Choice, Group
from search.domain import FLOAT_DOMAIN

Change = Callable[[Group, Choice], dict[str, float]]
PREFIXES = ("", "k", "M", "G", "T")
UNITS = {
    "latency_us": ("s", ("µ", "m", "")),
    "size_bytes": ("B", PREFIXES),
    "bops": ("bop", PREFIXES),
    "peak_memory_bytes": ("B at peak", PREFIXES),
}


def explain(problem: AllocationProblem, precisions: Mapping[str, str], costs: Mapping[str, float]) -> dict[str, str]:
    """One sentence per group: what the next better precision would need and what the next cheaper one would lose.

    `precisions` maps group names to the chosen precision, `costs` are the allocation's totals per resource.
    """
    chosen = {group.name: _choice(group, precisions[group.name]) for group in problem.groups}
    pinned = {
        group.name
        for group in problem.groups
        if group.name in problem.pins or any(layer in problem.pins for layer in group.layers)
    }
    edges: dict[str, list[Boundary]] = defaultdict(list)
    for boundary in problem.boundaries:
        edges[boundary.first].append(boundary)
        if boundary.second is not None:
            edges[boundary.second].append(boundary)
    slack = {resource: limit - costs[resource] for resource, limit in problem.budgets.items()}

    def change(group: Group, other: Choice) -> dict[str, float]:
        """Change of every resource's total when `group` takes `other` instead."""
        summed = _summed_change(group, other, chosen, edges[group.name])
        return {
            resource: value
            if (curve := problem.curves.get(resource)) is None or value == 0
            else curve.total(curve.summed(costs[resource]) + value) - costs[resource]
            for resource, value in summed.items()
        }

    reasons = {}
    for group in problem.groups:
        if group.name in pinned:
            reasons[group.name] = "pinned by the request"
        elif len(group.choices) == 1 and len(group.layers) > 1:
            names = ", ".join(group.layers)
            reasons[group.name] = f"{names} share one stored weight, and no other precision runs for all of them"
        elif len(group.choices) == 1:
            reasons[group.name] = "the only precision this profile runs for it"
        else:
            reasons[group.name] = _explain_group(group, chosen[group.name], change, slack)
    return reasons


def _explain_group(group: Group, current: Choice, change: Change, slack: Mapping[str, float]) -> str:
    parts = []
    if current.loss == 0:
        parts.append("loses nothing here")
    else:
        parts.append(f"adds {current.loss:.2g} to the loss")
    better = min((c for c in group.choices if c.loss < current.loss), key=lambda c: c.loss, default=None)
    if better is not None:
        parts.append(_explain_better(better, current, change(group, better), slack))
    saving = {c.precision: change(group, c) for c in group.choices if c.loss > current.loss}
    if saving:
        name = min(saving, key=lambda precision: _choice(group, precision).loss)
        lost = _choice(group, name).loss - current.loss
        saved = [
            _amount(-value, resource) for resource, value in saving[name].items() if value < 0 and resource in slack
        ]
        if saved:
            parts.append(f"{name} would save {' and '.join(saved)} but lose {lost:.2g} more")
        else:
            parts.append(f"{name} would lose {lost:.2g} more and save nothing that is budgeted")
    return "; ".join(parts)


def _explain_better(better: Choice, current: Choice, change: Mapping[str, float], slack: Mapping[str, float]) -> str:
    gain = current.loss - better.loss
    over = [
        f"{_amount(change[resource], resource)} where {_amount(max(left, 0), resource)} are left"
        for resource, left in slack.items()
        if change.get(resource, 0.0) > left
    ]
    if over:
        return f"{better.precision} would lose {gain:.2g} less but costs {' and '.join(over)}"
    return f"{better.precision} would lose {gain:.2g} less alone and fits; interactions or the gap outweigh it"


def _summed_change(
    group: Group, other: Choice, chosen: Mapping[str, Choice], edges: list[Boundary]
) -> dict[str, float]:
    """Change of every resource's sum of costs when `group` takes `other` instead, boundary costs included."""
    current = chosen[group.name]
    change: dict[str, float] = defaultdict(float)
    for resource in current.costs.keys() | other.costs.keys():
        change[resource] += other.costs.get(resource, 0.0) - current.costs.get(resource, 0.0)
    for edge in edges:
        end = edge.second if edge.first == group.name else edge.first
        if end != group.name:
            beyond = (FLOAT_DOMAIN if end is None else chosen[end].domain) == edge.domain
            then, now = ((choice.domain == edge.domain) != beyond for choice in (other, current))
            change[edge.resource] += edge.cost * (then - now)
    return change


def _choice(group: Group, precision: str) -> Choice:
    return next(choice for choice in group.choices if choice.precision == precision)


def _amount(value: float, resource: str) -> str:
    """A quantity with three digits and its unit: `26.8 kB`, `94.3 µs`, `1.2 Gbop`."""
    unit, steps = UNITS.get(resource.split("@")[0], (resource, PREFIXES))
    prefix = ""
    for prefix in steps:
        if abs(value) < 1000 or prefix == steps[-1]:
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}"
