"""Bars: what a benchmark promises. The last line printed is their JSON; exit status 1 if one does not hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """One promised figure: `goal` is the promise in words (`"<= 2"`), `holds` whether this run kept it."""

    name: str
    value: float
    unit: str
    goal: str
    holds: bool


def at_most(name: str, value: float, unit: str, limit: float) -> Bar:
    return Bar(name, value, unit, f"<= {limit:g}", value <= limit)


def at_least(name: str, value: float, unit: str, limit: float) -> Bar:
    return Bar(name, value, unit, f">= {limit:g}", value >= limit)


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A plain aligned table on standard output; floats are shown with four significant digits."""
    text = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in text) for column in range(len(header))]
    for row in text:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def finish(benchmark: str, bars: Sequence[Bar], **extra: Any) -> int:
    """Print the closing JSON line and return the exit status."""
    print(json.dumps({"benchmark": benchmark, "bars": [asdict(bar) for bar in bars], **extra}), flush=True)
    return 0 if all(bar.holds for bar in bars) else 1
