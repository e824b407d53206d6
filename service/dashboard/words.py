"""Words of the pages: numbers with units people read, events as sentences. Registered as Jinja filters."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

DIGITS = 3
STAGE_WORDS = {
    "check": "Read model and data",
    "scan_shard": "Scan layers",
    "scan": "Scan sensitivity",
    "measure": "Measure latency",
    "solve": "Solve for the budget",
    "evaluate": "Build, run and judge",
    "verdict": "Judge by your evaluator",
    "answer": "Solve anew",
}


def size(value: float | None) -> str:
    """`1.57 MB`; MB is 10⁶ bytes."""
    if value is None:
        return "–"
    units = ["B", "kB", "MB", "GB", "TB"]
    while abs(value) >= 1000 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{number(value)} {units[0]}"


def number(value: float | None, digits: int = DIGITS) -> str:
    """Up to `digits` significant digits, without an exponent where a reader can do without."""
    if value is None:
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{float(f'{value:.{digits}g}'):,.10g}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}·10{_superscript(int(exponent))}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def seconds(value: float | None) -> str:
    """`0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `3 days`."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"


def span(since: str | None, until: str | None) -> str:
    """How long it took from one time of the API to another."""
    if since is None or until is None:
        return ""
    return seconds((datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds())


def clock(text: str | None) -> str:
    """`2026-01-31 12:00`, in UTC; the script turns it into the reader's own time."""
    return "" if text is None else text[:16].replace("T", " ")


def stage_words(kind: str) -> str:
    """What a stage does; the kind itself for one these pages do not know."""
    return STAGE_WORDS.get(kind, kind)


def event_words(kind: str, data: Mapping[str, Any], *, several: bool = True) -> str:
    """An event as a sentence, with its target where a study has several; an unknown kind is shown as it is."""
    stage = str(data.get("stage", ""))
    if several and data.get("target") is not None:
        stage += f" (target {int(data['target']) + 1})"
    match kind:
        case "created":
            return "submitted"
        case "state":
            return f"study {data.get('from')} → {data.get('to')}"
        case "stage_started":
            attempt = data.get("attempt", 1)
            return f"{stage} started" + (f", attempt {attempt}" if attempt != 1 else "")
        case "stage_succeeded":
            return f"{stage} finished" + (": known already" if data.get("reused") else "")
        case "stage_failed":
            return f"{stage} failed: {data.get('code', '')}"
        case "stage_cancelled":
            return f"{stage} cancelled"
        case "stage_put_back":
            return f"{stage} put back: its worker is shutting down"
        case "attempt_lost":
            return f"{stage} lost attempt {data.get('attempt')}: {data.get('code', '')}"
        case "stage_shared":
            return f"{stage} is done by another stage that asks the same"
        case "evaluations":
            return f"your evaluator posted results, {data.get('missing')} missing"
        case "cancel_requested":
            return "cancellation asked for"
    about = ", ".join(f"{name} {value}" for name, value in data.items() if isinstance(value, (str, int, float)))
    return kind.replace("_", " ") + (f": {about}" if about else "")


_RESOURCES = {
    "latency_ms": "latency",
    "size_bytes": "size",
    "bops": "bit operations",
    "peak_memory_bytes": "peak memory",
}


def served_words(point: Mapping[str, Any]) -> str:
    """An operating point: `batch 8, 2 threads, tokens 128`; no batch means the one the model is exported for."""
    batch, threads = point.get("batch"), point["threads"]
    dims = "".join(f", {name} {value}" for name, value in (point.get("dims") or {}).items())
    return f"{'batch as exported' if batch is None else f'batch {batch}'}, {threads} thread{'s' * (threads != 1)}{dims}"


def goal_words(target: Mapping[str, Any]) -> str:
    """A target's budgets or tolerance in words."""
    budgets = target.get("budgets") or {}
    if budgets:
        return ", ".join(f"{_RESOURCES.get(name, name)} ≤ {_limit(name, value)}" for name, value in budgets.items())
    tolerance = target.get("tolerance") or {}
    drop, loss = tolerance.get("accuracy_drop"), tolerance.get("loss")
    return f"fastest that loses ≤ {percent(drop) if drop is not None else number(loss)}" + (
        " of answers" if drop is not None else ""
    )


def _limit(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{percent(value.get('relative'))} of the reachable range"
    if isinstance(value, str) and value.endswith("x"):
        return f"{value.removesuffix('x')}× full precision"
    value = float(value)
    return size(value) if name.endswith("bytes") else f"{number(value)} ms" if name == "latency_ms" else number(value)


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


FILTERS = {
    "size": size, "number": number, "percent": percent, "seconds": seconds, "clock": clock,
    "stage_words": stage_words, "goal_words": goal_words, "served_words": served_words,
}  # fmt: skip
