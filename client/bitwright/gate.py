"""Gate: thresholds a pipeline holds a finished study to. It reads the report's measured figures and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Target = Mapping[str, Any]


@dataclass(frozen=True)
class Thresholds:
    """What must hold for every target; None asks for nothing.

    Latency, loss and accuracy are judged at the pessimistic end of their 95 % interval unless `at_median`; what is
    compared with something else (`accuracy_drop`, `regression`) is judged at its value, because both sides were
    measured on the same samples. `latency_ratio` and `size_ratio` are against full precision. `regression` is the
    largest relative growth of latency, size and loss against a baseline study.
    """

    latency_ms: float | None = None
    latency_ratio: float | None = None
    size_bytes: float | None = None
    size_ratio: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    accuracy_drop: float | None = None
    prediction_error: float | None = None
    chosen: bool = False
    regression: float | None = None
    at_median: bool = False

    @property
    def ask_nothing(self) -> bool:
        return all(value in (None, False) for name, value in asdict(self).items() if name != "at_median")


@dataclass(frozen=True)
class Check:
    """One threshold on one target: `value` against `limit`; `value` is None when the study did not measure it."""

    target: str
    name: str
    value: float | str | None
    limit: float | str
    holds: bool


def check_report(target: Target, limits: Thresholds, baseline: Target | None = None) -> list[Check]:
    """Every threshold on one target of a report. What was asked but not measured does not hold."""
    figures = _figures(target, limits.at_median)
    full = _full_figures(target)
    hardware = str(target["hardware"])
    verdict = str(target["verdict"]["kind"])
    checks = []
    if limits.chosen:
        checks.append(Check(hardware, "verdict", verdict, "chosen", verdict == "chosen"))
    elif verdict == "infeasible":
        checks.append(Check(hardware, "verdict", verdict, "not infeasible", False))
    upper = {
        "latency_ms": (figures.get("latency_ms"), limits.latency_ms),
        "latency_ratio": (_ratio(figures.get("latency_ms"), full.get("latency_ms")), limits.latency_ratio),
        "size_bytes": (figures.get("size_bytes"), limits.size_bytes),
        "size_ratio": (_ratio(figures.get("size_bytes"), full.get("size_bytes")), limits.size_ratio),
        "loss": (figures.get("loss"), limits.loss),
        "accuracy_drop": (
            _less(full.get("accuracy"), _figures(target, at_median=True).get("accuracy")),
            limits.accuracy_drop,
        ),
        "prediction_error": ((target.get("latency_fit") or {}).get("loo_mape"), limits.prediction_error),
    }
    for name, (value, limit) in upper.items():
        if limit is not None:
            checks.append(Check(hardware, name, value, limit, value is not None and value <= limit))
    if limits.accuracy is not None:
        accuracy = figures.get("accuracy")
        holds = accuracy is not None and accuracy >= limits.accuracy
        checks.append(Check(hardware, "accuracy", accuracy, limits.accuracy, holds))
    if limits.regression is not None:
        checks += _regressions(target, baseline, limits.regression)
    return checks


def chosen_of(target: Target) -> Mapping[str, Any] | None:
    """The assembly the verdict names; None when the budgets cannot be met."""
    name = target["verdict"]["chosen"]
    return next((one for one in target["assemblies"] if name in (one["name"], *one.get("also", ()))), None)


def _regressions(target: Target, baseline: Target | None, allowed: float) -> list[Check]:
    hardware = str(target["hardware"])
    if baseline is None:
        return [Check(hardware, "regression", None, "a baseline target on this hardware", False)]
    ours, theirs = _figures(target, at_median=True), _figures(baseline, at_median=True)
    checks = []
    for name in ("latency_ms", "size_bytes", "loss"):
        before, now = theirs.get(name), ours.get(name)
        if before is not None:
            limit = before * (1 + allowed)
            checks.append(Check(hardware, f"{name} against the baseline", now, limit, now is not None and now <= limit))
    return checks


def _figures(target: Target, at_median: bool) -> dict[str, float]:
    return _of(chosen_of(target), at_median)


def _full_figures(target: Target) -> dict[str, float]:
    return _of(next((one for one in target["assemblies"] if one["source"] == "full_precision"), None), at_median=True)


def _of(assembly: Mapping[str, Any] | None, at_median: bool) -> dict[str, float]:
    if assembly is None:
        return {}
    figures: dict[str, float] = {"size_bytes": float(assembly["size_bytes"])}
    measured = assembly.get("measured")
    if measured:
        figures["latency_ms"] = float(measured["median_ms" if at_median else "ci_high_ms"])
    quality = assembly.get("report") or assembly.get("select") or {}
    for name, pessimistic in (("loss", "ci_high"), ("accuracy", "ci_low")):
        value = quality.get(name)
        if value:
            figures[name] = float(value["value" if at_median else pessimistic])
    return figures


def _ratio(value: float | None, full: float | None) -> float | None:
    return None if value is None or not full else value / full


def _less(full: float | None, value: float | None) -> float | None:
    return None if value is None or full is None else full - value
