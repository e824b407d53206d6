"""Latency fit: from table rows to end-to-end time, T = c0 + sum of s_class * rows + q * converted elements.

The coefficients of one model on one profile at one operating point come from a few end-to-end runs by *relative* least
squares, so that every run counts the same whatever its length. Scales and intercept are nearly collinear: with a free
sign of the intercept the fit predicts best inside what was measured and badly outside, so a second fit with a
non-negative intercept answers there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear

from kernels.errors import NotMeasured
from kernels.operating_point import OperatingPoint
from search.errors import NotEnoughData
from search.latency.terms import LatencyTerms

SCHEMA_VERSION = 1
PRIOR_WEIGHT = 0.02
"""Pull of every scale towards the one scale of a straight line, as a share of one run's weight. Runs that mix many
classes leave a direction undecided (all scales down, intercept up); unpulled, single scales fell to zero. On 36 runs
of a ResNet-18 the largest held-out error of 12-run fits went from 4.2 % to 2.8 %, means stayed."""
LEAST_SCALE = 0.2
"""No scale is below this part of the straight line's: a layer that costs nothing would mislead the solver."""
ELEMENTS_UNIT = 1e6
"""Elements are counted in millions inside the fit, which keeps its columns of one magnitude."""

Vector = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class EndToEndRun:
    """One assembly, built, loaded and timed: median in microseconds with its bootstrap interval."""

    name: str
    precisions: Mapping[str, str]
    median_us: float
    ci_low_us: float
    ci_high_us: float


@dataclass(frozen=True)
class Coefficients:
    """`intercept_us` + scale of a kernel class x its table time + `us_per_element` x converted elements."""

    intercept_us: float
    scales: Mapping[str, float]
    us_per_element: float

    def predict_us(self, terms: LatencyTerms, precisions: Mapping[str, str]) -> float:
        total = self.intercept_us + self.us_per_element * terms.converted_elements(precisions)
        for kernel_class, table_us in terms.class_sums_us(precisions).items():
            total += self.scale(kernel_class) * table_us
        return total

    def scale(self, kernel_class: str) -> float:
        """The scale of a kernel class; raises `NotMeasured` when no run used it."""
        if kernel_class not in self.scales:
            raise NotMeasured(
                f"no end-to-end run used a kernel of class {kernel_class}",
                hint=f"the fit knows {', '.join(self.scales)}; measure again with all precisions on offer",
            )
        return self.scales[kernel_class]


@dataclass(frozen=True)
class LatencyFit:
    """Prediction of end-to-end latency for any allocation of one model x profile x operating point.

    `loo_mape` and `loo_max` are the leave-one-out relative errors (fractions) over `runs`; show one wherever a
    predicted latency is shown. `interior` answers inside the hull of the runs, `exterior` (nothing negative) outside.

    Without runs it is an estimate (see `search.latency.estimated`): no errors are known, `caveat` says so, and
    `row_statuses` counts where its rows come from.
    """

    profile: str
    point: OperatingPoint
    model: str
    terms: LatencyTerms
    runs: tuple[EndToEndRun, ...]
    interior: Coefficients
    exterior: Coefficients
    loo_mape: float | None
    loo_max: float | None
    table_version: int = 0
    notes: tuple[str, ...] = field(default=())
    row_statuses: Mapping[str, int] = field(default_factory=dict)

    @property
    def caveat(self) -> str:
        """What must be said beside every latency of this fit; empty when whole models were timed."""
        if self.runs:
            return ""
        rows = ", ".join(f"{count} {status}" for status, count in sorted(self.row_statuses.items()))
        return (
            f"Latencies on {self.profile} are estimates, nothing was run there end to end (rows: {rows}); "
            + "; ".join([*self.notes, "measure on the device before relying on them."])
        )

    @property
    def accuracy(self) -> str:
        """The leave-one-out error in words."""
        if self.loo_mape is None or self.loo_max is None:
            return "no run of the whole model to compare with"
        return f"leave-one-out error {100 * self.loo_mape:.1f} % (at most {100 * self.loo_max:.1f} %)"

    def predict(self, precisions: Mapping[str, str]) -> float:
        """Microseconds of one inference of the batch; layers left out of `precisions` are in full precision."""
        chosen = self.interior if self.is_inside(precisions) else self.exterior
        return chosen.predict_us(self.terms, precisions)

    def is_inside(self, precisions: Mapping[str, str]) -> bool:
        """Whether the allocation lies where the runs were: its leverage is at most the largest among them."""
        if not self.runs:
            return False
        row = _features(self.terms, precisions, list(self.interior.scales))
        return bool(_leverage(row, self._pseudo_inverse) <= self._largest_leverage * (1 + 1e-9))

    @cached_property
    def _design(self) -> Vector:
        return np.stack([_features(self.terms, run.precisions, list(self.interior.scales)) for run in self.runs])

    @cached_property
    def _pseudo_inverse(self) -> Vector:
        gram = self._design.T @ self._design
        return np.asarray(np.linalg.pinv(gram, rcond=1e-12, hermitian=True), dtype=np.float64)

    @cached_property
    def _largest_leverage(self) -> float:
        return max(_leverage(row, self._pseudo_inverse) for row in self._design)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "profile": self.profile,
            "point": self.point.to_json(),
            "model": self.model,
            "terms": self.terms.to_json(),
            "runs": [{**vars(run), "precisions": dict(run.precisions)} for run in self.runs],
            "interior": {**vars(self.interior), "scales": dict(self.interior.scales)},
            "exterior": {**vars(self.exterior), "scales": dict(self.exterior.scales)},
            "loo_mape": self.loo_mape,
            "loo_max": self.loo_max,
            "table_version": self.table_version,
            "notes": list(self.notes),
            "row_statuses": dict(self.row_statuses),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyFit:
        """The fit a JSON document holds; raises `NotMeasured` (`bad_latency_fit`) for another schema."""
        if data.get("schema_version") != SCHEMA_VERSION:
            raise NotMeasured(
                f"latency fit has schema version {data.get('schema_version')}, this program reads {SCHEMA_VERSION}",
                hint="measure the model again with this version",
                code="bad_latency_fit",
            )
        return cls(
            profile=data["profile"],
            point=OperatingPoint.from_json(data["point"]),
            model=data["model"],
            terms=LatencyTerms.from_json(data["terms"]),
            runs=tuple(EndToEndRun(**run) for run in data["runs"]),
            interior=Coefficients(**data["interior"]),
            exterior=Coefficients(**data["exterior"]),
            loo_mape=data["loo_mape"],
            loo_max=data["loo_max"],
            table_version=data["table_version"],
            notes=tuple(data["notes"]),
            row_statuses=data.get("row_statuses", {}),
        )


def fit_latency(
    terms: LatencyTerms,
    runs: Sequence[EndToEndRun],
    *,
    profile: str,
    point: OperatingPoint,
    model: str,
    table_version: int = 0,
) -> LatencyFit:
    """Fit the coefficients to end-to-end runs and check them by leaving each run out once.

    Raises `NotEnoughData` (`too_few_runs`) unless there are more runs than coefficients.
    """
    classes = sorted({name for run in runs for name in terms.class_sums_us(run.precisions)})
    coefficients = len(classes) + 2
    if len(runs) <= coefficients:
        raise NotEnoughData(
            f"{len(runs)} end-to-end runs cannot fix {coefficients} coefficients",
            hint=f"measure at least {coefficients + 1}; 8 to 16 are good",
            code="too_few_runs",
        )
    errors = leave_one_out_errors(terms, runs)
    return LatencyFit(
        profile=profile,
        point=point,
        model=model,
        terms=terms,
        runs=tuple(runs),
        interior=solve_coefficients(terms, runs, free_intercept=True),
        exterior=solve_coefficients(terms, runs, free_intercept=False),
        loo_mape=float(np.mean(np.abs(errors))),
        loo_max=float(np.max(np.abs(errors))),
        table_version=table_version,
    )


def solve_coefficients(
    terms: LatencyTerms, runs: Sequence[EndToEndRun], *, free_intercept: bool, prior_weight: float = PRIOR_WEIGHT
) -> Coefficients:
    """Relative least squares with positive scales and boundary cost >= 0; the intercept's sign is free or not."""
    classes = sorted({name for run in runs for name in terms.class_sums_us(run.precisions)})
    design = np.stack([_features(terms, run.precisions, classes) for run in runs])
    measured = np.array([run.median_us for run in runs])
    relative = design / measured[:, None]
    common = _common_scale(relative)
    prior = np.zeros((len(classes), design.shape[1]))
    prior[:, 1:-1] = np.eye(len(classes)) * prior_weight / common
    size = np.linalg.norm(relative, axis=0)
    size[size == 0] = 1.0
    lower = np.full(design.shape[1], LEAST_SCALE * common) * size
    lower[0], lower[-1] = -np.inf if free_intercept else 0.0, 0.0
    solved = lsq_linear(
        np.vstack([relative, prior]) / size,
        np.concatenate([np.ones(len(runs)), np.full(len(classes), prior_weight)]),
        bounds=(lower, np.inf),
        tol=1e-14,
    )
    found = solved.x / size
    return Coefficients(
        intercept_us=float(found[0]),
        scales={name: float(value) for name, value in zip(classes, found[1:-1], strict=True)},
        us_per_element=float(found[-1]) / ELEMENTS_UNIT,
    )


def leave_one_out_errors(terms: LatencyTerms, runs: Sequence[EndToEndRun]) -> Vector:
    """Signed relative error (predicted / measured − 1) of every run, predicted from all the others.

    A run that alone used some kernel class cannot be predicted from the others and is kept in every fit.
    """
    uses = [set(terms.class_sums_us(run.precisions)) for run in runs]
    errors = []
    for index, run in enumerate(runs):
        others = [other for position, other in enumerate(runs) if position != index]
        if not uses[index] <= set().union(*(use for position, use in enumerate(uses) if position != index)):
            continue
        fitted = solve_coefficients(terms, others, free_intercept=True)
        errors.append(fitted.predict_us(terms, run.precisions) / run.median_us - 1)
    return np.array(errors)


def _common_scale(relative: Vector) -> float:
    """The scale all classes would share on a straight line through the runs; `relative` is the design over time."""
    line = np.stack([relative[:, 0], relative[:, 1:-1].sum(axis=1)], axis=1)
    slope = np.linalg.lstsq(line, np.ones(len(line)), rcond=None)[0][1]
    return float(slope) if slope > 0 else 1.0


def _features(terms: LatencyTerms, precisions: Mapping[str, str], classes: Sequence[str]) -> Vector:
    """(1, table time per class, millions of converted elements); a class that is not listed raises `NotMeasured`."""
    sums = terms.class_sums_us(precisions)
    if unknown := sorted(set(sums) - set(classes)):
        raise NotMeasured(
            f"no end-to-end run used a kernel of class {', '.join(unknown)}",
            hint=f"the fit knows {', '.join(classes)}; measure again with all precisions on offer",
        )
    elements = terms.converted_elements(precisions) / ELEMENTS_UNIT
    return np.array([1.0, *(sums.get(name, 0.0) for name in classes), elements])


def _leverage(row: Vector, pseudo_inverse: Vector) -> float:
    return float(row @ pseudo_inverse @ row)
