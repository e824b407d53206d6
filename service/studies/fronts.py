"""Stored fronts: one budget on a front's resource is answered by a look-up, in plain arithmetic and microseconds.

A front is a list of optima by rising cost. The dearest one within the budget is the answer; the next one bounds what a
solve could still gain, because no allocation within the budget loses less than the optimum at a larger one.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from service.blobs import Blobs

UNITS = {"latency_us": ("latency_ms", 1000.0), "size_bytes": ("size_bytes", 1.0)}
"""Per front resource: the budget's name and how many of the front's units one of the budget's is."""
CACHED_PLANS = 64
COST, LOSS, GAP, CHOICES = range(4)
"""What a point of a look-up holds; choices are one base-36 digit per group."""


@lru_cache(maxsize=CACHED_PLANS)
def read_plans(blobs: Blobs, sha256: str) -> dict[str, Any]:
    """What a solve stage left of its target. Immutable, so the last few are kept; nobody changes what is returned."""
    with blobs.open(sha256) as file:
        plans: dict[str, Any] = json.load(file)
    return plans


def look_up(plans: Mapping[str, Any], budgets: Mapping[str, Any], metric: str | None) -> dict[str, Any] | None:
    """The front's answer to the budgets, or None where only a solve can tell.

    That is: other metrics, other resources or several, budgets relative to what is reachable, and budgets below all of
    the front.
    """
    points = plans["lookup"]["points"]
    name, unit = UNITS.get(plans["front_resource"], ("", 1.0))
    if not points or set(budgets) != {name} or metric not in (None, plans["front_metric"]):
        return None
    limit = _limit(budgets[name], plans["full_precision"].get(name))
    if limit is None:
        return None
    at = bisect_right(points, limit * unit, key=lambda point: point[COST]) - 1
    if at < 0:
        return None
    point, bound = points[at], _bound(points[min(at + 1, len(points) - 1)])
    smallest = min((each[LOSS] for each in points if each[LOSS] > 0), default=1.0)
    return {
        "metric": plans["front_metric"],
        "limits": {name: limit},
        "precisions": {
            layer: precision
            for group, code in zip(plans["lookup"]["groups"], point[CHOICES], strict=True)
            if (precision := group["precisions"][int(code, 36)]) != "fp32"
            for layer in group["layers"]
        },
        "predicted": {name: point[COST] / unit},
        "surrogate_loss": point[LOSS],
        "gap": max(0.0, (point[LOSS] - bound) / max(abs(bound), smallest)),
        "infeasible": None,
    }


def _limit(budget: Any, full_precision: float | None) -> float | None:
    match budget:
        case str() if budget.endswith("x"):
            return None if full_precision is None else float(budget[:-1]) * full_precision
        case str() | int() | float():
            return float(budget)
    return None


def _bound(point: Sequence[Any]) -> float:
    """A proven lower bound of the loss at this point's cost: its gap is relative to the bound."""
    loss = float(point[LOSS])
    return loss / (1 + float(point[GAP])) if loss > 0 else loss
