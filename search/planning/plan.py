"""Plan: the assemblies a target's verdict is chosen from, each with its origin and what it should cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Source(str, Enum):
    """Where a planned assembly comes from: a metric's optimum, a baseline, or a point of the front near the budget."""

    FULL_PRECISION = "full_precision"
    UNIFORM = "uniform"
    METRIC = "metric"
    FRONT = "front"


@dataclass(frozen=True)
class PlannedAssembly:
    """One allocation to build and run.

    `precisions` maps every quantized layer to its precision; layers left out stay in full precision. `predicted`
    holds the costs the allocation problem counted (`latency_ms`, `size_bytes`, `bops`, …). `surrogate_loss` and
    `gap` are those of the metric's objective and None for baselines.
    """

    name: str
    source: Source
    precisions: Mapping[str, str]
    predicted: Mapping[str, float]
    surrogate_loss: float | None = None
    gap: float | None = None
    metric: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "source": self.source.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlannedAssembly:
        return cls(**{**data, "source": Source(data["source"])})


def without_repeats(plans: Iterable[PlannedAssembly]) -> tuple[list[PlannedAssembly], dict[str, str]]:
    """Plans that differ in precisions, in order, and for every dropped name the kept one it equals."""
    kept: dict[frozenset[tuple[str, str]], PlannedAssembly] = {}
    same_as: dict[str, str] = {}
    for plan in plans:
        key = frozenset(plan.precisions.items())
        if key in kept:
            same_as[plan.name] = kept[key].name
        else:
            kept[key] = plan
    return list(kept.values()), same_as
