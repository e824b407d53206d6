"""Solving one target: allocations of every metric under its budgets, uniform baselines, and the front around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kernels.precision import FP32
from search.allocation import pareto_front, reachable_range, solve
from search.allocation.arrays import all_costs
from search.allocation.problem import Allocation, AllocationProblem, FrontPoint, Infeasible
from search.budget import Budget
from search.errors import BadSubmission
from search.groups import LayerGroup
from search.planning.baselines import uniform_precisions
from search.planning.costs import TargetCosts
from search.planning.plan import PlannedAssembly, Source
from search.planning.problem import BOPS, BUDGET_RESOURCES, LATENCY, MEMORY, SIZE, US_PER_MS, build_problem
from search.sensitivity.estimate import Sensitivity
from search.study import Study, Target

BELOW_BUDGET = (0.97, 0.93, 0.88)
"""Shares of the latency budget at which front points are built too: should the fit be too kind, one still meets it."""
TOLERANCE_POINTS = 8
SOLVE_SECONDS, FRONT_SECONDS = 4.0, 8.0
GAP = 1e-3
"""Relative gap of the surrogate at which a solve stops; its value is reported with every allocation."""


@dataclass(frozen=True)
class SolvedTarget:
    """Everything worth building for one target.

    `limits` are the budgets in their own units (`latency_ms`, …). `front` is the Pareto front of the first metric over
    `front_resource`. `infeasible` is set when no metric's problem has an answer under the budgets.
    """

    plans: tuple[PlannedAssembly, ...]
    limits: Mapping[str, float]
    front_resource: str
    front: tuple[FrontPoint, ...]
    infeasible: Infeasible | None

    def to_json(self) -> dict[str, Any]:
        return {
            "limits": dict(self.limits),
            "front_resource": self.front_resource,
            "front": [asdict(point) for point in self.front],
            "infeasible": None if self.infeasible is None else asdict(self.infeasible),
        }


def plan_target(
    costs: TargetCosts,
    sensitivities: Mapping[str, Sensitivity],
    target: Target,
    study: Study,
    full_precision_us: float | None,
) -> SolvedTarget:
    """Plans of one target in building order: full precision, uniforms, each metric's optimum, front points."""
    problems = {metric: build_problem(costs, found, study.pins) for metric, found in sensitivities.items()}
    first = next(iter(problems.values()))
    limits = _limits(target.budgets, first, full_precision_us)
    bounded = {metric: replace(problem, budgets=_per_row(limits, problem)) for metric, problem in problems.items()}
    plans = [_plan("fp32", Source.FULL_PRECISION, first, costs.groups, dict.fromkeys(_names(first), "fp32"))]
    for name, precisions in uniform_precisions(costs, study.pins).items():
        by_group = {group.name: precisions[group.layers[0]] for group in costs.groups}
        plans.append(_plan(name, Source.UNIFORM, first, costs.groups, by_group))
    infeasible: Infeasible | None = None
    if target.budgets:
        for metric, problem in bounded.items():
            answer = _solve(problem, study)
            if isinstance(answer, Infeasible):
                infeasible = answer
                break
            plans.append(_allocated(metric, Source.METRIC, metric, answer, problem, costs.groups))
    resource = LATENCY if costs.latency is not None else SIZE
    leading = next(iter(bounded))
    front = tuple(_front(problems[leading], resource, study))
    if infeasible is None:
        plans += _front_plans(front, resource, limits, leading, bounded[leading], costs.groups, study)
    elif infeasible.nearest is not None:
        plans.append(_allocated("nearest", Source.METRIC, leading, infeasible.nearest, first, costs.groups))
    return SolvedTarget(tuple(plans), limits, resource, front, infeasible)


def tightened(
    costs: TargetCosts, sensitivity: Sensitivity, study: Study, limits: Mapping[str, float], factor: float
) -> PlannedAssembly | None:
    """The metric's optimum with the latency limit shrunk by `factor` < 1: used when the fit was too kind."""
    problem = build_problem(costs, sensitivity, study.pins)
    tighter = {**limits, "latency_ms": limits["latency_ms"] * factor}
    answer = _solve(replace(problem, budgets=_per_row(tighter, problem)), study)
    if isinstance(answer, Infeasible):
        return None
    name = f"{sensitivity.metric} at {factor:.3g} of the latency budget"
    return _allocated(name, Source.METRIC, sensitivity.metric, answer, problem, costs.groups)


def _front(problem: AllocationProblem, resource: str, study: Study) -> list[FrontPoint]:
    return pareto_front(
        problem, resource, points=study.front_points, solver=study.solver, time_limit_s=FRONT_SECONDS, gap=GAP
    )


def _solve(problem: AllocationProblem, study: Study) -> Allocation | Infeasible:
    return solve(problem, solver=study.solver, time_limit_s=SOLVE_SECONDS, gap=GAP)


def _limits(
    budgets: tuple[Budget, ...], problem: AllocationProblem, full_precision_us: float | None
) -> dict[str, float]:
    """Each budget as an absolute bound in its own unit."""
    full = {group.name: "fp32" for group in problem.groups}
    limits: dict[str, float] = {}
    for budget in budgets:
        rows = _rows(budget.resource, problem)
        if not rows:
            raise BadSubmission(
                f"{budget} cannot be kept: no latency is known for this hardware",
                hint="measure it on the device (python -m search measure) or give a size budget",
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


def _rows(resource: str, problem: AllocationProblem) -> list[str]:
    """The problem's rows of a budget: one, or for peak memory one per step that can be the peak."""
    return [name for name in problem.constants if name.split("@")[0] == BUDGET_RESOURCES[resource]]


def _per_row(limits: Mapping[str, float], problem: AllocationProblem) -> dict[str, float]:
    return {
        row: limit * (US_PER_MS if row == LATENCY else 1.0)
        for resource, limit in limits.items()
        for row in _rows(resource, problem)
    }


def _front_plans(
    front: tuple[FrontPoint, ...],
    resource: str,
    limits: Mapping[str, float],
    metric: str,
    problem: AllocationProblem,
    groups: tuple[LayerGroup, ...],
    study: Study,
) -> list[PlannedAssembly]:
    """Optima a little below the latency limit under all budgets; without a budget, points spread over the front."""
    if not limits:
        step = max(1, len(front) // TOLERANCE_POINTS)
        return [
            _plan(f"front {index}", Source.FRONT, problem, groups, point.precisions, point.loss, metric=metric)
            for index, point in enumerate(front[::step])
        ]
    others = {row: limit for row, limit in problem.budgets.items() if row != resource}
    plans = []
    for point in _below_budget(front, problem.budgets.get(resource)):
        answer = _solve(replace(problem, budgets={**others, resource: point.cost}), study)
        if isinstance(answer, Allocation):
            share = point.cost / problem.budgets[resource] if resource in problem.budgets else None
            name = f"front at {share:.2f} of the budget" if share else f"front at {point.cost:.4g}"
            plans.append(_allocated(name, Source.FRONT, metric, answer, problem, groups))
    return plans


def _allocated(
    name: str,
    source: Source,
    metric: str,
    answer: Allocation,
    problem: AllocationProblem,
    groups: tuple[LayerGroup, ...],
) -> PlannedAssembly:
    return _plan(name, source, problem, groups, answer.precisions, answer.loss, answer.gap, metric)


def _plan(
    name: str,
    source: Source,
    problem: AllocationProblem,
    groups: tuple[LayerGroup, ...],
    precisions: Mapping[str, str],
    loss: float | None = None,
    gap: float | None = None,
    metric: str | None = None,
) -> PlannedAssembly:
    return PlannedAssembly(
        name, source, _by_layer(groups, precisions), _predicted(problem, precisions), loss, gap, metric
    )


def _predicted(problem: AllocationProblem, precisions: Mapping[str, str]) -> dict[str, float]:
    totals = all_costs(problem, dict(precisions))
    predicted = {SIZE: totals[SIZE], BOPS: totals[BOPS]}
    if LATENCY in totals:
        predicted["latency_ms"] = totals[LATENCY] / US_PER_MS
    peaks = [value for name, value in totals.items() if name.split("@")[0] == MEMORY]
    if peaks:
        predicted[MEMORY] = max(peaks)
    return predicted


def _names(problem: AllocationProblem) -> list[str]:
    return [group.name for group in problem.groups]


def _by_layer(groups: Iterable[LayerGroup], precisions: Mapping[str, str]) -> dict[str, str]:
    """Precision per layer from precision per group, full precision left out."""
    return {
        layer: precisions[group.name]
        for group in groups
        for layer in group.layers
        if precisions[group.name] != FP32.name
    }


def _below_budget(front: Sequence[FrontPoint], limit: float | None) -> list[FrontPoint]:
    """The best front points a little below the limit; without one, three spread over the front."""
    if not front:
        return []
    if limit is None:
        picked = [front[len(front) // 4], front[len(front) // 2], front[3 * len(front) // 4]]
    else:
        picked = []
        for share in BELOW_BUDGET:
            below = [point for point in front if point.cost <= share * limit]
            if below:
                picked.append(min(below, key=lambda point: point.loss))
    return list({id(point): point for point in picked}.values())
