"""Figures: what a report measured of the assembly that its verdict names, beside full precision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from service.blobs import Blobs

Document = Mapping[str, Any]
KEPT_FIGURES = 256


@dataclass(frozen=True)
class Figure:
    """One figure of the chosen assembly with its 95 % interval, and full precision's; `ratio` is their quotient."""

    name: str
    value: float
    low: float | None
    high: float | None
    full: float | None

    @property
    def ratio(self) -> float | None:
        return self.value / self.full if self.full else None


def target_of(report: Document, position: int) -> Document:
    """A target of a report, which holds all targets of its study or the one it was made of."""
    targets = report["targets"]
    found: Document = targets[position] if position < len(targets) else targets[0]
    return found


def chosen_of(target: Document) -> Document | None:
    """The assembly the verdict names; None when the budgets cannot be met."""
    chosen = target["verdict"].get("chosen")
    return next((one for one in target["assemblies"] if chosen in (one["name"], *one.get("also", ()))), None)


def full_precision_of(target: Document) -> Document | None:
    return next((one for one in target["assemblies"] if one["source"] == "full_precision"), None)


def figures_of(target: Document) -> tuple[Figure, ...]:
    """Latency in ms, size in bytes, loss and accuracy of the chosen assembly, as far as they are known."""
    chosen, full = chosen_of(target), full_precision_of(target)
    if chosen is None:
        return ()
    figures = []
    latency, whole = chosen.get("measured"), (full or {}).get("measured")
    if latency:
        base = whole["median_ms"] if whole else None
        figures.append(Figure("latency", latency["median_ms"], latency["ci_low_ms"], latency["ci_high_ms"], base))
    figures.append(Figure("size", chosen["size_bytes"], None, None, full["size_bytes"] if full else None))
    quality = chosen.get("report") or chosen.get("select") or {}
    base_quality = (full or {}).get("report") or (full or {}).get("select") or {}
    for name in ("loss", "accuracy"):
        value = quality.get(name)
        if value:
            base = (base_quality.get(name) or {}).get("value") if name == "accuracy" else None
            figures.append(Figure(name, value["value"], value.get("ci_low"), value.get("ci_high"), base))
    return tuple(figures)


@lru_cache(maxsize=KEPT_FIGURES)
def read_figures(blobs: Blobs, sha256: str, position: int) -> tuple[Figure, ...]:
    """The figures in a stored report. Immutable, so those of the last few are kept. Raises `BlobMissing`."""
    with blobs.open(sha256) as file:
        return figures_of(target_of(json.load(file), position))
