"""An allocation problem as JSON, so that a study's question can be kept, diffed and asked again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from search.allocation.arrays import check
from search.allocation.problem import AllocationProblem, Boundary, Choice, Group, Quadratic
from search.curve import Curve
from search.domain import INT8_DOMAIN
from search.errors import BadSubmission

SCHEMA_VERSION = 1


def problem_to_json(problem: AllocationProblem) -> dict[str, Any]:
    """Plain JSON values; floats keep every bit, an infinite budget is null."""
    return {
        "schema_version": SCHEMA_VERSION,
        "groups": [
            {
                "name": group.name,
                "layers": list(group.layers),
                "choices": [
                    {
                        "precision": choice.precision,
                        "loss": choice.loss,
                        "costs": dict(choice.costs),
                        "domain": choice.domain,
                    }
                    for choice in group.choices
                ],
            }
            for group in problem.groups
        ],
        "budgets": {name: budget if math.isfinite(budget) else None for name, budget in problem.budgets.items()},
        "constants": dict(problem.constants),
        "boundaries": [
            {
                "resource": edge.resource,
                "first": edge.first,
                "second": edge.second,
                "cost": edge.cost,
                "domain": edge.domain,
            }
            for edge in problem.boundaries
        ],
        "pins": dict(problem.pins),
        "curves": {name: vars(curve) for name, curve in problem.curves.items()},
        "interactions": None
        if problem.interactions is None
        else {
            "keys": [list(key) for key in problem.interactions.keys],
            "matrix": problem.interactions.matrix.tolist(),
        },
    }


def problem_from_json(data: Mapping[str, Any]) -> AllocationProblem:
    """The problem that `problem_to_json` wrote, checked.

    Raises `BadSubmission`: `schema_version_unknown`, `bad_problem` where a field is missing or of the wrong kind, or
    what the check of the problem itself says.
    """
    version = data.get("schema_version") if isinstance(data, Mapping) else None
    if version != SCHEMA_VERSION:
        raise BadSubmission(
            f"the problem has schema version {version!r}",
            hint=f"this program reads version {SCHEMA_VERSION}",
            code="schema_version_unknown",
        )
    try:
        problem = _read(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadSubmission(
            f"the problem cannot be read: {type(error).__name__} {error}",
            hint="write it with problem_to_json",
            code="bad_problem",
        ) from error
    check(problem)
    return problem


def _read(data: Mapping[str, Any]) -> AllocationProblem:
    groups = tuple(
        Group(
            group["name"],
            tuple(group["layers"]),
            tuple(
                Choice(choice["precision"], float(choice["loss"]), _numbers(choice["costs"]), choice["domain"])
                for choice in group["choices"]
            ),
        )
        for group in data["groups"]
    )
    interactions = data["interactions"]
    return AllocationProblem(
        groups=groups,
        budgets={name: math.inf if budget is None else float(budget) for name, budget in data["budgets"].items()},
        constants=_numbers(data["constants"]),
        boundaries=tuple(
            # Problems stored before boundaries had a domain knew conversions alone.
            Boundary(
                edge["resource"], edge["first"], edge["second"], float(edge["cost"]), edge.get("domain", INT8_DOMAIN)
            )
            for edge in data["boundaries"]
        ),
        pins=dict(data["pins"]),
        # Problems stored before latency had a curve have none.
        curves={name: Curve(**_numbers(curve)) for name, curve in data.get("curves", {}).items()},
        interactions=None
        if interactions is None
        else Quadratic(
            tuple((group, precision) for group, precision in interactions["keys"]),
            np.array(interactions["matrix"], dtype=np.float64).reshape(len(interactions["keys"]), -1),
        ),
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
