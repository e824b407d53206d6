"""Rows that were not measured: on the line between two that were, or from cited peaks when asked."""

from __future__ import annotations

import dataclasses

import pytest
from latency_graphs import profile

from kernels.errors import NotMeasured
from kernels.hardware_profile import Peak
from kernels.latency_table import LatencyRow, LatencyTable, RowScope, RowStatus
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape, OpShape
from kernels.precision import FP32, Precision
from search.latency.interpolate import estimate_row, fill_missing, interpolate_row, rows_of, with_rows

INT8 = Precision("w8a8")


def measured(op: OpShape, us: float, precision: str = "fp32", spread: float = 0.05) -> LatencyRow:
    return LatencyRow(
        op.signature, precision, 1, us, us * (1 - spread), us * (1 + spread), us * (1 - spread), us * (1 + 2 * spread),
        30, RowStatus.MEASURED, RowScope.DEPLOYABLE, "Gemm", "run",
    )  # fmt: skip


def table(*rows: LatencyRow) -> LatencyTable:
    here = profile()
    return LatencyTable(here.slug, here.device, here.runtime, here.runtime_version).extended(rows, "run", {})


def product(m: int) -> LinearShape:
    return LinearShape(m, 64, 32)


def test_a_power_law_is_met_exactly() -> None:
    known = table(measured(product(4), 2 * 4**0.8), measured(product(64), 2 * 64**0.8, spread=0.1))
    row = interpolate_row(known, product(16), FP32, 1)
    assert row.median_us == pytest.approx(2 * 16**0.8)
    assert (row.status, row.samples, row.signature) == (RowStatus.INTERPOLATED, 0, product(16).signature)
    assert row.ci_low_us == pytest.approx(0.9 * row.median_us), "the wider of the two intervals"
    assert row.p95_us == pytest.approx(1.2 * row.median_us)


def test_the_nearest_neighbours_count() -> None:
    known = table(*(measured(product(m), us) for m, us in ((1, 1.0), (8, 8.0), (32, 32.0), (512, 1.0))))
    assert interpolate_row(known, product(16), FP32, 1).median_us == pytest.approx(16.0)
    assert interpolate_row(known, product(8), FP32, 1).status is RowStatus.MEASURED


def test_nothing_is_extrapolated_or_taken_from_another_op() -> None:
    known = table(
        measured(product(4), 4.0),
        measured(product(16), 16.0, precision="w8a8"),
        measured(LinearShape(16, 64, 33), 16.0),
        dataclasses.replace(measured(product(32), 32.0), status=RowStatus.ESTIMATED),
    )
    with pytest.raises(NotMeasured, match=r"\[4\] rows of work, not on both sides of 8"):
        interpolate_row(known, product(8), FP32, 1)
    with pytest.raises(NotMeasured):
        interpolate_row(table(measured(product(4), 4.0), measured(product(16), 16.0)), product(8), FP32, threads=2)


def test_rows_of_every_kind() -> None:
    conv, words = Conv2dShape(3, 8, 8, 8, 8, (1, 1)), EmbeddingShape(12, 100, 8)
    assert [rows_of(op) for op in (product(7), conv, words)] == [7, 3, 12]
    assert with_rows(conv, 5) == dataclasses.replace(conv, batch=5)
    known = table(measured(with_rows(words, 6), 6.0), measured(with_rows(words, 24), 24.0))
    assert interpolate_row(known, words, FP32, 1).median_us == pytest.approx(12.0)


def test_estimates_are_the_roofline_and_only_on_demand() -> None:
    source = ("a data sheet", "cited")
    rated = dataclasses.replace(
        profile(), peaks={"int8": Peak(2.0, "TOPS", *source), "memory": Peak(10.0, "GB/s", *source)}
    )
    large, narrow = LinearShape(1024, 1024, 1024), LinearShape(1, 1024, 1024)
    assert estimate_row(rated, large, INT8, 1).median_us == pytest.approx(2 * 1024**3 / 2e12 * 1e6)
    moved = 1024 * 1024 + 1024 + 4 * 1024  # codes in, floats out
    row = estimate_row(rated, narrow, INT8, 1)
    assert row.median_us == pytest.approx(moved / 10e9 * 1e6)
    assert (row.status, row.scope, row.samples) == (RowStatus.ESTIMATED, RowScope.KERNEL, 0)
    # 4-bit weights on the 8-bit kernel: 8-bit arithmetic, 4-bit storage
    assert estimate_row(rated, large, Precision("w4a8"), 1).median_us == pytest.approx(2 * 1024**3 / 2e12 * 1e6)
    with pytest.raises(NotMeasured, match="no peak rate for fp32") as error:
        estimate_row(rated, large, FP32, 1)
    assert error.value.code == "no_peak"

    with pytest.raises(NotMeasured):
        fill_missing(table(), [(large, INT8)], 1)
    filled = fill_missing(table(), [(large, INT8)], 1, estimates_from=rated)
    assert filled.lookup(large, INT8, 1).status is RowStatus.ESTIMATED
    known = table(measured(product(4), 4.0), measured(product(16), 16.0))
    both = fill_missing(known, [(product(8), FP32), (product(4), FP32), (large, INT8)], 1, estimates_from=rated)
    assert both.lookup(product(8), FP32, 1).status is RowStatus.INTERPOLATED
    assert len(both.rows) == 4
