"""Latency fit: what turns table rows into end-to-end time for one model on one profile at one operating point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernels.errors import NotMeasured
from kernels.operating_point import OperatingPoint
from search.errors import NotEnoughData
from search.latency.coefficients import (
    Coefficients,
    EndToEndRun,
    leave_one_out_errors,
    solve_coefficients,
    used_classes,
)
from search.latency.terms import LatencyTerms

SCHEMA_VERSION = 5
LEAST_RUNS_ABOVE_CLASSES = 3
"""A run more than one mean scale per kernel class, the intercept and the price of a conversion."""


@dataclass(frozen=True)
class LatencyFit:
    """Prediction of end-to-end latency for any allocation of one model x profile x operating point.

    `loo_mape` and `loo_max` are the leave-one-out relative errors (fractions) over `runs`; show one wherever a
    predicted latency is shown. They are None where no run can be predicted from the others: the model has so few
    allocations that each alone uses some kernel class.

    Without runs it is an estimate (see `search.latency.estimated`): no errors are known, `caveat` says so, and
    `row_statuses` counts where its rows come from.
    """

    profile: str
    point: OperatingPoint
    model: str
    terms: LatencyTerms
    runs: tuple[EndToEndRun, ...]
    coefficients: Coefficients
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
        if not self.runs:
            return "no run of the whole model to compare with"
        if self.loo_mape is None or self.loo_max is None:
            return f"only {len(self.runs)} allocations differ in time: all were timed, none can be left out"
        return f"leave-one-out error {100 * self.loo_mape:.1f} % (at most {100 * self.loo_max:.1f} %)"

    def predict(self, precisions: Mapping[str, str]) -> float:
        """Microseconds of one inference of the batch; layers left out of `precisions` are in full precision."""
        return self.coefficients.predict_us(self.terms, precisions)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "profile": self.profile,
            "point": self.point.to_json(),
            "model": self.model,
            "terms": self.terms.to_json(),
            "runs": [{**vars(run), "precisions": dict(run.precisions)} for run in self.runs],
            "coefficients": self.coefficients.to_json(),
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
            coefficients=Coefficients.from_json(data["coefficients"]),
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
    possible: int | None = None,
) -> LatencyFit:
    """Fit the coefficients to end-to-end runs and check them by leaving each run out once.

    `possible` is how many allocations there are that differ in time, where that is known: a model of one layer has
    three or four, and once all are timed there is nothing left to predict. Raises `NotEnoughData` (`too_few_runs`)
    with fewer runs than that and than three more than kernel classes.
    """
    classes = len(used_classes(terms, runs))
    least = classes + LEAST_RUNS_ABOVE_CLASSES
    if len(runs) < (least if possible is None else min(least, possible)):
        raise NotEnoughData(
            f"{len(runs)} end-to-end runs cannot fix the scales of {classes} kernel classes",
            hint=f"measure at least {least}; 8 to 16 are good",
            code="too_few_runs",
        )
    errors = leave_one_out_errors(terms, runs)
    return LatencyFit(
        profile=profile,
        point=point,
        model=model,
        terms=terms,
        runs=tuple(runs),
        coefficients=solve_coefficients(terms, runs),
        loo_mape=float(np.mean(np.abs(errors))) if len(errors) else None,
        loo_max=float(np.max(np.abs(errors))) if len(errors) else None,
        table_version=table_version,
    )
