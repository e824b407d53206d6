"""Budget: upper bounds as a user writes them, turned into absolute numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from search.errors import BadSubmission

RESOURCES = ("latency_ms", "size_bytes", "bops", "peak_memory_bytes")
_TIMES = re.compile(r"(?P<factor>\d+(\.\d+)?)x")


@dataclass(frozen=True)
class Budget:
    """One upper bound. Exactly one of the three ways to say it is set.

    `absolute`: in the resource's unit. `times`: of measured full precision (`"0.6x"`). `relative`: in [0, 1] between
    the cheapest and the dearest reachable allocation.
    """

    resource: str
    absolute: float | None = None
    times: float | None = None
    relative: float | None = None

    def resolve(self, full_precision: float, cheapest: float, dearest: float) -> float:
        """The bound in the resource's unit."""
        if self.absolute is not None:
            return self.absolute
        if self.times is not None:
            return self.times * full_precision
        assert self.relative is not None
        return cheapest + self.relative * (dearest - cheapest)

    def __str__(self) -> str:
        if self.absolute is not None:
            return f"{self.resource} ≤ {self.absolute:g}"
        if self.times is not None:
            return f"{self.resource} ≤ {self.times:g}x full precision"
        return f"{self.resource} ≤ {self.relative} of the reachable range"


def parse_budget(resource: str, value: object) -> Budget:
    """A budget from what a user sent: a number, `"0.6x"`, or `{"relative": 0.5}`.

    Raises `BadSubmission` (`bad_budget`) for anything else, with the value in the message.
    """
    if resource not in RESOURCES:
        raise BadSubmission(
            f"{resource!r} is not a budget", hint=f"budgets are {', '.join(RESOURCES)}", code="bad_budget"
        )
    match value:
        case bool():
            pass
        case int() | float() if math.isfinite(value) and value > 0:
            return Budget(resource, absolute=float(value))
        case str():
            if (times := _TIMES.fullmatch(value.strip())) and float(times["factor"]) > 0:
                return Budget(resource, times=float(times["factor"]))
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if math.isfinite(number) and number > 0:
                return Budget(resource, absolute=number)
        case Mapping() if set(value) == {"relative"}:
            fraction = value["relative"]
            if isinstance(fraction, (int, float)) and not isinstance(fraction, bool) and 0 <= fraction <= 1:
                return Budget(resource, relative=float(fraction))
    raise BadSubmission(
        f"{resource} = {value!r} is not a budget",
        hint='write a positive number, "0.6x" of full precision, or {"relative": 0.5} between cheapest and dearest',
        code="bad_budget",
    )
