"""Limits: budgets as a user wrote them, turned into absolute bounds on the resources of an allocation problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search.allocation.allocate import reachable_range
from search.allocation.arrays import all_costs
from search.allocation.problem import AllocationProblem
from search.budget import Budget
from search.errors import BadSubmission

LATENCY, SIZE, BOPS, MEMORY = "latency_us", "size_bytes", "bops", "peak_memory_bytes"
BUDGET_RESOURCES = {"latency_ms": LATENCY, "size_bytes": SIZE, "bops": BOPS, "peak_memory_bytes": MEMORY}
US_PER_MS = 1000.0


def budget_limits(
    budgets: Sequence[Budget], problem: AllocationProblem, full_precision_us: float | None
) -> dict[str, float]:
    """Each budget as an absolute bound in its own unit. Raises `BadSubmission` (`not_measured`)."""
    full = {group.name: "fp32" for group in problem.groups}
    limits: dict[str, float] = {}
    for budget in budgets:
        rows = resource_rows(budget.resource, problem)
        if not rows:
            raise BadSubmission(
                f"{budget} cannot be kept: no latency is known for this hardware",
                hint="measure it on the device (python -m search measure), give a size budget, or ask for estimates",
                code="not_measured",
            )
        unit = US_PER_MS if rows == [LATENCY] else 1.0
        ranges = [reachable_range(problem, row) for row in rows] if budget.relative is not None else [(0.0, 0.0)]
        counted = max(all_costs(problem, full)[row] for row in rows)
        measured = full_precision_us if rows == [LATENCY] and full_precision_us is not None else counted
        limits[budget.resource] = budget.resolve(
            measured / unit, max(low for low, _ in ranges) / unit, max(high for _, high in ranges) / unit
        )
    return limits


def resource_rows(resource: str, problem: AllocationProblem) -> list[str]:
    """The problem's rows of a budget: one, or for peak memory one per step that can be the peak."""
    return [name for name in problem.constants if name.split("@")[0] == BUDGET_RESOURCES[resource]]


def bounds_per_row(limits: Mapping[str, float], problem: AllocationProblem) -> dict[str, float]:
    """Limits in the user's units as the problem's own budgets."""
    return {
        row: limit * (US_PER_MS if row == LATENCY else 1.0)
        for resource, limit in limits.items()
        for row in resource_rows(resource, problem)
    }


def predicted_costs(problem: AllocationProblem, precisions: Mapping[str, str]) -> dict[str, float]:
    """What an allocation (precision by group) costs, in the user's units and names."""
    totals = all_costs(problem, dict(precisions))
    predicted = {SIZE: totals[SIZE], BOPS: totals[BOPS]}
    if LATENCY in totals:
        predicted["latency_ms"] = totals[LATENCY] / US_PER_MS
    peaks = [value for name, value in totals.items() if name.split("@")[0] == MEMORY]
    if peaks:
        predicted[MEMORY] = max(peaks)
    return predicted
