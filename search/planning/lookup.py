"""Look-up: many points of a front, so compact that a process without solver or numpy answers budgets from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from search.allocation import whole_front
from search.allocation.problem import AllocationProblem, FrontPoint

LOOKUP_POINTS, LOOKUP_SECONDS = 512, 8.0
CODES = "0123456789abcdefghijklmnopqrstuvwxyz"


def lookup_document(problem: AllocationProblem, resource: str, front: Sequence[FrontPoint]) -> dict[str, Any]:
    """The front by rising cost: per point cost, loss, proven gap, and one character per group for its choice.

    Where dynamic programming gives the whole front it costs next to nothing to keep 512 points of it; elsewhere each
    point is a solve, and `front` is kept as it is.
    """
    offers = [[choice.precision for choice in group.choices] for group in problem.groups]
    can_code = max((len(names) for names in offers), default=0) <= len(CODES)
    if all(point.exact for point in front):  # a front that dynamic programming gave up on has a gap somewhere
        front = whole_front(problem, resource, points=LOOKUP_POINTS, time_limit_s=LOOKUP_SECONDS) or front
    paired = list(zip(problem.groups, offers, strict=True))

    def coded(point: FrontPoint) -> str:
        return "".join(CODES[names.index(point.precisions[group.name])] for group, names in paired)

    return {
        "groups": [{"layers": list(group.layers), "precisions": names} for group, names in paired],
        "points": [[point.cost, point.loss, point.gap, coded(point)] for point in (front if can_code else ())],
    }
