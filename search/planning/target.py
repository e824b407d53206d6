"""Solving one target: allocations of every metric under its budgets, uniform baselines, and the front around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from search.allocation import pareto_front, solve
from search.allocation.limits import LATENCY, SIZE, bounds_per_row, budget_limits, predicted_costs
from search.allocation.problem import Allocation, AllocationProblem, FrontPoint, Infeasible
from search.allocation.question import Question, by_layer
from search.planning.baselines import uniform_precisions
from search.planning.costs import TargetCosts
from search.planning.lookup import lookup_document
from search.planning.plan import PlannedAssembly, Source
from search.planning.problem import build_problem
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

    `limits` are the budgets in their own units (`latency_ms`, …). `front` is the Pareto front of the first metric,
    `front_metric`, over `front_resource`. `full_precision` holds its costs. `lookup` is the front as budgets are
    looked up in it. `infeasible` is set when no metric's problem has an answer under the budgets.
    """

    plans: tuple[PlannedAssembly, ...]
    limits: Mapping[str, float]
    front_metric: str
    front_resource: str
    front: tuple[FrontPoint, ...]
    full_precision: Mapping[str, float]
    lookup: Mapping[str, Any]
    infeasible: Infeasible | None

    def to_json(self) -> dict[str, Any]:
        return {
            "limits": dict(self.limits),
            "full_precision": dict(self.full_precision),
            "front_metric": self.front_metric,
            "front_resource": self.front_resource,
            "lookup": dict(self.lookup),
            "front": [asdict(point) for point in self.front],
            "infeasible": None if self.infeasible is None else asdict(self.infeasible),
        }


def ask(
    costs: TargetCosts, sensitivities: Mapping[str, Sensitivity], study: Study, full_precision_us: float | None
) -> Question:
    """Everything a target's allocations are solved from, budgets apart."""
    problems = {metric: build_problem(costs, found, study.pins) for metric, found in sensitivities.items()}
    return Question(problems, full_precision_us)


def plan_target(costs: TargetCosts, question: Question, target: Target, study: Study) -> SolvedTarget:
    """Plans of one target in building order: full precision, uniforms, each metric's optimum, front points."""
    problems = question.problems
    first = next(iter(problems.values()))
    limits = budget_limits(target.budgets, first, question.full_precision_us)
    bounded = {
        metric: replace(problem, budgets=bounds_per_row(limits, problem)) for metric, problem in problems.items()
    }
    plans = [_plan("fp32", Source.FULL_PRECISION, first, dict.fromkeys(_names(first), "fp32"))]
    for name, precisions in uniform_precisions(costs, study.pins).items():
        by_group = {group.name: precisions[group.layers[0]] for group in costs.groups}
        plans.append(_plan(name, Source.UNIFORM, first, by_group))
    infeasible: Infeasible | None = None
    if target.budgets:
        for metric, problem in bounded.items():
            answer = _solve(problem, study)
            if isinstance(answer, Infeasible):
                infeasible = answer
                break
            plans.append(_allocated(metric, Source.METRIC, metric, answer, problem))
    resource = LATENCY if costs.latency is not None else SIZE
    leading = next(iter(bounded))
    front = tuple(_front(problems[leading], resource, study))
    if infeasible is None:
        plans += _front_plans(front, resource, limits, leading, bounded[leading], study)
    elif infeasible.nearest is not None:
        plans.append(_allocated("nearest", Source.METRIC, leading, infeasible.nearest, first))
    lookup = lookup_document(problems[leading], resource, front)
    return SolvedTarget(tuple(plans), limits, leading, resource, front, question.full_precision(), lookup, infeasible)


def tightened(
    costs: TargetCosts,
    sensitivity: Sensitivity,
    study: Study,
    limits: Mapping[str, float],
    resource: str,
    factor: float,
) -> PlannedAssembly | None:
    """The metric's optimum with one limit shrunk by `factor` < 1: used when what was built costs more than thought."""
    problem = build_problem(costs, sensitivity, study.pins)
    tighter = {**limits, resource: limits[resource] * factor}
    answer = _solve(replace(problem, budgets=bounds_per_row(tighter, problem)), study)
    if isinstance(answer, Infeasible):
        return None
    name = f"{sensitivity.metric} at {factor:.4g} of the {resource.split('_')[0]} budget"
    return _allocated(name, Source.METRIC, sensitivity.metric, answer, problem)


def _front(problem: AllocationProblem, resource: str, study: Study) -> list[FrontPoint]:
    return pareto_front(
        problem, resource, points=study.front_points, solver=study.solver, time_limit_s=FRONT_SECONDS, gap=GAP
    )


def _solve(problem: AllocationProblem, study: Study) -> Allocation | Infeasible:
    return solve(problem, solver=study.solver, time_limit_s=SOLVE_SECONDS, gap=GAP)


def _front_plans(
    front: tuple[FrontPoint, ...],
    resource: str,
    limits: Mapping[str, float],
    metric: str,
    problem: AllocationProblem,
    study: Study,
) -> list[PlannedAssembly]:
    """Optima a little below the latency limit under all budgets; without a budget, points spread over the front."""
    if not limits:
        step = max(1, len(front) // TOLERANCE_POINTS)
        return [
            _plan(f"front {index}", Source.FRONT, problem, point.precisions, point.loss, metric=metric)
            for index, point in enumerate(front[::step])
        ]
    others = {row: limit for row, limit in problem.budgets.items() if row != resource}
    plans = []
    for point in _below_budget(front, problem.budgets.get(resource)):
        answer = _solve(replace(problem, budgets={**others, resource: point.cost}), study)
        if isinstance(answer, Allocation):
            share = point.cost / problem.budgets[resource] if resource in problem.budgets else None
            name = f"front at {share:.2f} of the budget" if share else f"front at {point.cost:.4g}"
            plans.append(_allocated(name, Source.FRONT, metric, answer, problem))
    return plans


def _allocated(
    name: str,
    source: Source,
    metric: str,
    answer: Allocation,
    problem: AllocationProblem,
) -> PlannedAssembly:
    return _plan(name, source, problem, answer.precisions, answer.loss, answer.gap, metric)


def _plan(
    name: str,
    source: Source,
    problem: AllocationProblem,
    precisions: Mapping[str, str],
    loss: float | None = None,
    gap: float | None = None,
    metric: str | None = None,
) -> PlannedAssembly:
    return PlannedAssembly(
        name, source, by_layer(problem, precisions), predicted_costs(problem, precisions), loss, gap, metric
    )


def _names(problem: AllocationProblem) -> list[str]:
    return [group.name for group in problem.groups]


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
