"""Question: what every allocation of one target is solved from, kept so that a new budget needs no scan and no model.

One allocation problem per metric, without budgets, and what full precision costs as measured. It needs neither the
graph nor torch: answering from it costs the time of one solve.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kernels.precision import FP32
from search.allocation.allocate import solve
from search.allocation.limits import bounds_per_row, budget_limits, predicted_costs
from search.allocation.problem import Allocation, AllocationProblem, Infeasible, Quadratic
from search.allocation.stored import problem_from_json, problem_to_json
from search.budget import Budget
from search.errors import BadSubmission

SCHEMA_VERSION = 1


def question_file(target: int) -> str:
    """The name of a target's question in a study's folder."""
    return f"question_{target}.npz"


@dataclass(frozen=True)
class Answer:
    """The allocation of least surrogate loss under budgets, or what can be reached instead.

    `precisions` maps every quantized layer to its precision; layers left out stay in full precision. Where the budgets
    cannot be met `infeasible` says by how much, and the allocation is the nearest one (none when `precisions` is None).
    """

    metric: str
    limits: Mapping[str, float]
    precisions: Mapping[str, str] | None
    predicted: Mapping[str, float]
    surrogate_loss: float | None
    gap: float | None
    infeasible: Infeasible | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Question:
    """Problems by metric, the leading one first; `full_precision_us` is measured end to end, None where it was not."""

    problems: Mapping[str, AllocationProblem]
    full_precision_us: float | None

    def answer(
        self,
        budgets: Sequence[Budget],
        *,
        metric: str | None = None,
        solver: str = "cbc",
        time_limit_s: float = 4.0,
        gap: float = 1e-3,
    ) -> Answer:
        """The best allocation under budgets by one metric (the leading one by default).

        Raises `BadSubmission`: `metric_unknown` for a metric that was not scanned, `not_measured` for a latency budget
        on hardware without latencies.
        """
        metric = next(iter(self.problems)) if metric is None else metric
        if metric not in self.problems:
            raise BadSubmission(
                f"{metric!r} was not scanned", hint=f"scanned: {', '.join(self.problems)}", code="metric_unknown"
            )
        problem = self.problems[metric]
        limits = budget_limits(budgets, problem, self.full_precision_us)
        bounded = replace(problem, budgets=bounds_per_row(limits, problem))
        found = solve(bounded, solver=solver, time_limit_s=time_limit_s, gap=gap)
        infeasible = found if isinstance(found, Infeasible) else None
        allocation = found if isinstance(found, Allocation) else found.nearest
        if allocation is None:
            return Answer(metric, limits, None, {}, None, None, infeasible)
        return Answer(
            metric,
            limits,
            by_layer(problem, allocation.precisions),
            predicted_costs(problem, allocation.precisions),
            allocation.loss,
            allocation.gap,
            infeasible,
        )

    def full_precision(self) -> dict[str, float]:
        """Costs of full precision in the users' units, latency as measured where it was."""
        problem = next(iter(self.problems.values()))
        costs = predicted_costs(problem, {group.name: FP32.name for group in problem.groups})
        return costs if self.full_precision_us is None else {**costs, "latency_ms": self.full_precision_us / 1000}

    def save(self, path: Path) -> None:
        """One npz: the problems as JSON, the interactions as matrices."""
        documents = {
            metric: problem_to_json(replace(problem, interactions=None)) for metric, problem in self.problems.items()
        }
        pairs = {metric: problem.interactions for metric, problem in self.problems.items() if problem.interactions}
        document = {
            "schema_version": SCHEMA_VERSION,
            "full_precision_us": self.full_precision_us,
            "problems": documents,
            "interactions": {metric: [list(key) for key in found.keys] for metric, found in pairs.items()},
        }
        arrays = {f"matrix.{metric}": found.matrix for metric, found in pairs.items()}
        with path.open("wb") as file:
            np.savez(file, document=np.array(json.dumps(document)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Question:
        """The question a file holds; raises `BadSubmission` (`bad_question`) for another schema or a damaged one."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                document = json.loads(str(data["document"]))
                if document["schema_version"] != SCHEMA_VERSION:
                    raise ValueError(
                        f"schema version {document['schema_version']}, this program reads {SCHEMA_VERSION}"
                    )
                problems = {metric: problem_from_json(each) for metric, each in document["problems"].items()}
                for metric, keys in document["interactions"].items():
                    pairs = Quadratic(tuple((group, name) for group, name in keys), data[f"matrix.{metric}"])
                    problems[metric] = replace(problems[metric], interactions=pairs)
                return cls(problems, document["full_precision_us"])
        except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BadSubmission(
                f"{path.name} is not a question that can be read: {error}",
                hint="solve the study again",
                code="bad_question",
            ) from error


def by_layer(problem: AllocationProblem, precisions: Mapping[str, str]) -> dict[str, str]:
    """Precision per layer from precision per group, full precision left out."""
    return {
        layer: precisions[group.name]
        for group in problem.groups
        for layer in group.layers
        if precisions[group.name] != FP32.name
    }
