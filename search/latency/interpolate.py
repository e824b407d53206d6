"""Rows for shapes that were not timed: interpolated between measured batch sizes, or estimated from peak rates.

Neither is a measurement and both say so in their status; estimates are made only when asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from kernels.errors import NotMeasured
from kernels.estimate import estimate
from kernels.hardware_profile import HardwareProfile
from kernels.latency_table import LatencyRow, LatencyTable, RowScope, RowStatus
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape, OpShape, parse_op_shape
from kernels.precision import Precision
from search.latency.rows import Pair

INTERPOLATED_RUN, ESTIMATED_RUN = "interpolated", "estimated"


def rows_of(op: OpShape) -> int:
    """How many independent rows of work an op has: M of a product, batch of a convolution, tokens of a look-up."""
    match op:
        case LinearShape():
            return op.m
        case Conv2dShape():
            return op.batch
        case EmbeddingShape():
            return op.tokens


def with_rows(op: OpShape, rows: int) -> OpShape:
    """The same op with another number of rows."""
    match op:
        case LinearShape():
            return replace(op, m=rows)
        case Conv2dShape():
            return replace(op, batch=rows)
        case EmbeddingShape():
            return replace(op, tokens=rows)


def interpolate_row(table: LatencyTable, op: OpShape, precision: Precision, threads: int) -> LatencyRow:
    """The row of `op` on the line through its nearest measured neighbours below and above in log(rows), log(time).

    The interval is the wider of the two neighbours'. Raises `NotMeasured` where a neighbour is missing on either
    side: nothing is extrapolated.
    """
    wanted, shape = rows_of(op), with_rows(op, 1)
    neighbours = {
        rows_of(other): row
        for row in table.latest()
        if row.status is RowStatus.MEASURED and row.precision == precision.name and row.threads == threads
        for other in [parse_op_shape(row.signature)]
        if with_rows(other, 1) == shape
    }
    below = max((rows for rows in neighbours if rows <= wanted), default=None)
    above = min((rows for rows in neighbours if rows >= wanted), default=None)
    if below is None or above is None:
        raise NotMeasured(
            f"profile {table.profile!r} has {op.signature} in {precision} for {sorted(neighbours) or 'no'} rows "
            f"of work, not on both sides of {wanted}",
            hint="measure it, or measure the same op with fewer and with more rows",
        )
    low, high = neighbours[below], neighbours[above]
    if below == above:
        return low
    part = math.log(wanted / below) / math.log(above / below)
    median_us = math.exp((1 - part) * math.log(low.median_us) + part * math.log(high.median_us))

    def widest(side: str) -> float:
        ratios: list[float] = [getattr(row, side) / row.median_us for row in (low, high)]
        return median_us * (min(ratios) if side in ("ci_low_us", "p05_us") else max(ratios))

    return LatencyRow(
        signature=op.signature,
        precision=precision.name,
        threads=threads,
        median_us=median_us,
        ci_low_us=widest("ci_low_us"),
        ci_high_us=widest("ci_high_us"),
        p05_us=widest("p05_us"),
        p95_us=widest("p95_us"),
        samples=0,
        status=RowStatus.INTERPOLATED,
        scope=low.scope,
        executed_kernel=low.executed_kernel,
        run=INTERPOLATED_RUN,
    )


def estimate_row(profile: HardwareProfile, op: OpShape, precision: Precision, threads: int) -> LatencyRow:
    """The row of `kernels.estimate`: no samples, and no interval because none is known.

    Raises `NotMeasured` (`no_peak`) where the profile cites no peak for the arithmetic or the memory.
    """
    found = estimate(profile, op, precision)
    return LatencyRow(
        signature=op.signature,
        precision=precision.name,
        threads=threads,
        median_us=found.us,
        ci_low_us=found.us,
        ci_high_us=found.us,
        p05_us=found.us,
        p95_us=found.us,
        samples=0,
        status=RowStatus.ESTIMATED,
        scope=RowScope.KERNEL,
        executed_kernel=found.kernel,
        run=ESTIMATED_RUN,
    )


def fill_missing(
    table: LatencyTable, pairs: Iterable[Pair], threads: int, estimates_from: HardwareProfile | None = None
) -> LatencyTable:
    """The table with a row for every pair: interpolated where it can be, estimated only with `estimates_from`.

    Raises `NotMeasured` for the first pair that neither way gives.
    """
    interpolated: list[LatencyRow] = []
    estimated: list[LatencyRow] = []
    for op, precision in pairs:
        if table.has(op, precision, threads):
            continue
        try:
            interpolated.append(interpolate_row(table, op, precision, threads))
        except NotMeasured:
            if estimates_from is None:
                raise
            estimated.append(estimate_row(estimates_from, op, precision, threads))
    filled = table.extended(interpolated, INTERPOLATED_RUN, {"method": "log-log in rows of work"})
    return filled.extended(estimated, ESTIMATED_RUN, {"method": "roofline of cited peaks and achieved shares"})
