"""Study: what a user asks for, parsed and checked once; every stage reads it from the same JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kernels.operating_point import OperatingPoint
from kernels.precision import Precision
from search.budget import Budget, parse_budget
from search.errors import BadSubmission

BAD_POINT = "bad_operating_point"
DEFAULT_METRICS = ("gauss_newton", "kl", "hessian_trace")
TOLERANCES = ("loss", "accuracy_drop")
GOAL_HINT = 'give one: "budgets": {"latency_ms": "0.6x"} or "tolerance": {"accuracy_drop": 0.005}'


@dataclass(frozen=True)
class Tolerance:
    """A promise instead of a budget: the fastest allocation whose `kind` stays below `limit`.

    `loss` is in the loss's own unit; `accuracy_drop` is a fraction of samples (0.005 = half a point).
    """

    kind: str
    limit: float


@dataclass(frozen=True)
class Evaluator:
    """Quality judged by the user: they measure `metric` of every finalist themselves.

    With a `tolerance` the fastest wins whose metric is at most so much worse than full precision's.
    """

    metric: str
    higher_is_better: bool = True
    tolerance: float | None = None


@dataclass(frozen=True)
class Target:
    """Where the model will run, how it is served there, and what it may cost: budgets or one tolerance.

    `names_batch` is False where the request left the batch open (see `Study.at_batch_of_export`).
    """

    hardware: str
    point: OperatingPoint
    budgets: tuple[Budget, ...]
    tolerance: Tolerance | None = None
    names_batch: bool = True


@dataclass(frozen=True)
class Study:
    """Targets and options of one search; model and data lie beside it as files.

    `metrics` are the sensitivities the allocation is solved from. `pins` fix layers to a precision. `precisions`, when
    given, are the only ones offered. `losses` declares output kinds by output name where they are unclear.
    `scan_samples` bounds the samples of the sensitivity scan. `estimates` asks for estimated latencies on devices that
    are not at hand; without it such a target is planned by bytes (docs/decisions/0005).
    """

    targets: tuple[Target, ...]
    seed: int = 0
    metrics: tuple[str, ...] = DEFAULT_METRICS
    pins: Mapping[str, str] = field(default_factory=dict)
    precisions: tuple[str, ...] = ()
    losses: Mapping[str, Any] = field(default_factory=dict)
    scan_samples: int = 256
    front_points: int = 24
    solver: str = "cbc"
    estimates: bool = False
    evaluator: Evaluator | None = None

    def at_batch_of_export(self, fixed_batch: int | None) -> Study:
        """Targets that name no batch are served at the one the model is exported for; None where that is open."""
        if fixed_batch is None:
            return self
        moved = (replace(target, point=replace(target.point, batch=fixed_batch)) for target in self.targets)
        pairs = zip(self.targets, moved, strict=True)
        return replace(self, targets=tuple(asked if asked.names_batch else there for asked, there in pairs))


def require_goals(study: Study) -> None:
    """Refuse targets with nothing to keep to. Stages that read no budgets are not told them, so only `solve` asks."""
    for target in study.targets:
        if not target.budgets and target.tolerance is None:
            raise BadSubmission(
                f"target {target.hardware!r} has neither budgets nor a tolerance", hint=GOAL_HINT, code="bad_study"
            )


def parse_study(data: Mapping[str, Any]) -> Study:
    """A study from its JSON; raises `BadSubmission` (`bad_study`, `bad_budget`, `bad_operating_point`) with values."""
    targets = data.get("targets")
    if not isinstance(targets, list) or not targets:
        raise BadSubmission(
            f"targets = {targets!r}: a study needs at least one target",
            hint='for example {"hardware": "cpu-local", "budgets": {"latency_ms": "0.6x"}}',
            code="bad_study",
        )
    options = data.get("options") or {}
    known = {"metrics", "pins", "precisions", "losses", "scan_samples", "front_points", "solver", "estimates"}
    if unknown := sorted(set(options) - known):
        raise BadSubmission(
            f"unknown options {unknown}", hint=f"options are {', '.join(sorted(known))}", code="bad_study"
        )
    pins = _mapping("pins", options.get("pins"))
    offered = _names("precisions", options.get("precisions"), ())
    for name in {*_names("pins", list(pins.values()), ()), *offered}:
        Precision(name)  # raises UnsupportedPrecision with the values
    losses = _mapping("losses", options.get("losses"))
    return Study(
        targets=tuple(_parse_target(target) for target in targets),
        seed=_whole_number("seed", data.get("seed", 0), least=0),
        metrics=_names("metrics", options.get("metrics"), DEFAULT_METRICS),
        pins=pins,
        precisions=offered,
        losses={name: _mapping(f"losses of {name!r}", each) for name, each in losses.items()},
        scan_samples=_whole_number("scan_samples", options.get("scan_samples", 256), least=8),
        front_points=_whole_number("front_points", options.get("front_points", 24), least=2),
        solver=options.get("solver", "cbc"),
        estimates=_yes_or_no("estimates", options.get("estimates", False)),
        evaluator=_parse_evaluator(data.get("evaluator")),
    )


def _parse_target(data: Any) -> Target:
    if not isinstance(data, Mapping) or not isinstance(data.get("hardware"), str):
        raise BadSubmission(f"target {data!r} names no hardware", hint='add "hardware": "cpu-local"', code="bad_study")
    budgets = _mapping("budgets", data.get("budgets"))
    tolerance = data.get("tolerance")
    if budgets and tolerance:
        raise BadSubmission(
            f"target {data['hardware']!r} has budgets and a tolerance", hint=GOAL_HINT, code="bad_study"
        )
    point = _mapping("operating_point", data.get("operating_point"))
    return Target(
        hardware=data["hardware"],
        point=_parse_point(point),
        budgets=tuple(parse_budget(resource, value) for resource, value in budgets.items()),
        tolerance=None if tolerance is None else _parse_tolerance(tolerance),
        names_batch=point.get("batch") is not None,
    )


def _parse_point(data: Mapping[str, Any]) -> OperatingPoint:
    if unknown := sorted(set(data) - {"batch", "threads", "dims"}):
        raise BadSubmission(
            f"operating point has unknown fields {unknown}",
            hint="it has batch, threads and dims",
            code=BAD_POINT,
        )
    dims = _mapping("dims", data.get("dims"))
    return OperatingPoint(
        batch=1 if data.get("batch") is None else _whole_number("batch", data["batch"], least=1, code=BAD_POINT),
        threads=_whole_number("threads", data.get("threads", 1), least=1, code=BAD_POINT),
        dims=tuple(
            sorted((str(name), _whole_number(name, value, least=1, code=BAD_POINT)) for name, value in dims.items())
        ),
    )


def _parse_evaluator(data: Any) -> Evaluator | None:
    match data:
        case None:
            return None
        case {"metric": str() as metric, **rest} if metric and set(rest) <= {"higher_is_better", "tolerance"}:
            higher, tolerance = rest.get("higher_is_better", True), rest.get("tolerance")
            if isinstance(higher, bool) and tolerance is None:
                return Evaluator(metric, higher)
            if isinstance(higher, bool) and isinstance(tolerance, (int, float)) and 0 <= tolerance < math.inf:
                return Evaluator(metric, higher, float(tolerance))
    raise BadSubmission(
        f"{data!r} is not an evaluator",
        hint='write {"metric": "mAP", "higher_is_better": true, "tolerance": 0.005}',
        code="bad_study",
    )


def _parse_tolerance(data: Any) -> Tolerance:
    if isinstance(data, Mapping) and len(data) == 1:
        kind, limit = next(iter(data.items()))
        if kind in TOLERANCES and isinstance(limit, (int, float)) and not isinstance(limit, bool) and limit > 0:
            return Tolerance(kind, float(limit))
    raise BadSubmission(
        f"{data!r} is not a tolerance",
        hint='write {"accuracy_drop": 0.005} or {"loss": 0.01}',
        code="bad_study",
    )


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise BadSubmission(f"{name} = {value!r} is not an object", hint="write names with values", code="bad_study")
    return dict(value or {})


def _names(name: str, value: Any, usual: tuple[str, ...]) -> tuple[str, ...]:
    """Names as given; none given mean the usual ones."""
    if value is not None and not (isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)):
        raise BadSubmission(f"{name} = {value!r} are not names", hint='write a list, as ["w8a8"]', code="bad_study")
    return tuple(value or usual)


def _yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadSubmission(f"{name} = {value!r} is neither true nor false", code="bad_study")
    return value


def _whole_number(name: str, value: Any, *, least: int, code: str = "bad_study") -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadSubmission(f"{name} = {value!r} is not a whole number", hint=f"{least} is the least", code=code)
    return value
