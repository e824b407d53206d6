"""Estimated fit: latency of a model on a device that is not at hand, as the plain sum of its rows.

Rows that somebody measured on the device are taken, others interpolated between them, the rest estimated from cited
peaks. No run of the whole model stands behind the sum, so there is no error to show, and the fit says what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kernels.errors import NotMeasured
from kernels.estimate import conversion_us
from kernels.hardware_profile import HardwareProfile
from kernels.latency_table import LatencyTable
from kernels.microbench import empty_table
from kernels.operating_point import OperatingPoint
from kernels.precision import FP32
from search.graph import Graph
from search.latency.coefficients import Coefficients
from search.latency.fit import LatencyFit
from search.latency.interpolate import fill_missing
from search.latency.model import MeasuredModel
from search.latency.rows import LayerRow, distinct_pairs, required_rows
from search.latency.terms import latency_terms
from search.onnx_import import operating_shapes


def estimate_model(
    graph: Graph, profile: HardwareProfile, point: OperatingPoint, table: LatencyTable | None = None
) -> MeasuredModel:
    """Rows and fit of one model without the device; raises `NotMeasured` (`no_peak`) where no peak is cited."""
    shapes = operating_shapes(graph, point)
    rows = required_rows(graph, shapes, profile)
    if not rows:
        raise NotMeasured(
            f"profile {profile.slug!r} runs no layer of the model quantized, so there is nothing to estimate",
            hint="see what it runs: python -m kernels profile --hardware …",
        )
    table = fill_missing(table or empty_table(profile), distinct_pairs(rows), point.threads, estimates_from=profile)
    terms = latency_terms(graph, shapes, profile, rows, table, point.threads)
    sums = Coefficients(
        intercept_us=0.0,
        scales=dict.fromkeys(terms.kernel_shapes, 1.0),
        us_per_element=conversion_us(profile),
    )
    fit = LatencyFit(
        profile=profile.slug,
        point=point,
        model=graph.content_hash,
        terms=terms,
        runs=(),
        coefficients=sums,
        loo_mape=None,
        loo_max=None,
        table_version=table.version,
        notes=tuple(_notes(profile, rows)),
        row_statuses=_statuses(rows, table, point.threads),
    )
    return MeasuredModel(table, fit)


def _statuses(rows: Iterable[LayerRow], table: LatencyTable, threads: int) -> dict[str, int]:
    """How many of the distinct rows are measured, interpolated, published and estimated."""
    pairs = distinct_pairs(rows)
    return dict(Counter(table.lookup(op, precision, threads).status.value for op, precision in pairs))


def _notes(profile: HardwareProfile, rows: Iterable[LayerRow]) -> list[str]:
    used = {(op.kind, precision.name) for _, op, precision in rows if precision != FP32}
    unverified = sorted({profile.support[pair].kernel for pair in used if not profile.support[pair].verified})
    notes = ["only weighted layers and conversions are counted; what runs between them is not"]
    if unverified:
        notes.append(f"not yet run on {profile.device.name}: {', '.join(unverified)}")
    return notes
