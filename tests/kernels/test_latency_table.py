"""The table is append-only, survives its JSON, and says what is wrong with a damaged one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kernels.backends.fake import FAKE_DEVICE
from kernels.errors import BadTable, NotMeasured
from kernels.latency_table import LatencyRow, LatencyTable, RowScope, RowStatus
from kernels.op_shape import LinearShape
from kernels.precision import FP32, Precision

OP = LinearShape(1, 64, 32)


def row(median_us: float, precision: str = "fp32", run: str = "run_1") -> LatencyRow:
    return LatencyRow(
        signature=OP.signature,
        precision=precision,
        threads=1,
        median_us=median_us,
        ci_low_us=median_us * 0.99,
        ci_high_us=median_us * 1.01,
        p05_us=median_us * 0.95,
        p95_us=median_us * 1.05,
        samples=30,
        status=RowStatus.MEASURED,
        scope=RowScope.DEPLOYABLE,
        executed_kernel="Gemm",
        run=run,
    )


def table() -> LatencyTable:
    empty = LatencyTable("fake", FAKE_DEVICE, "fake", "1")
    return empty.extended([row(10.0), row(4.0, "w8a8")], "run_1", {"threads": 1})


def test_json_round_trip_keeps_everything() -> None:
    assert LatencyTable.loads(json.dumps(table().to_json())) == table()


def test_appending_makes_a_new_version_and_the_later_row_wins() -> None:
    first = table()
    second = first.extended([row(12.0, run="run_2")], "run_2", {"threads": 1})
    assert first.lookup(OP, FP32, 1).median_us == 10.0
    assert second.lookup(OP, FP32, 1).median_us == 12.0
    assert second.rows[: len(first.rows)] == first.rows
    assert (first.version, second.version) == (1, 2)
    assert {entry.precision for entry in second.latest()} == {"fp32", "w8a8"}
    assert set(second.runs) == {"run_1", "run_2"}


def test_appending_nothing_is_the_same_table() -> None:
    first = table()
    assert first.extended([], "run_2", {}) is first


@pytest.mark.parametrize(
    ("op", "precision", "threads"),
    [(OP, Precision("w4a8"), 1), (OP, FP32, 2), (LinearShape(2, 64, 32), FP32, 1)],
)
def test_what_was_not_measured_is_not_answered(op: LinearShape, precision: Precision, threads: int) -> None:
    assert not table().has(op, precision, threads)
    with pytest.raises(NotMeasured, match=op.signature) as caught:
        table().lookup(op, precision, threads)
    assert caught.value.code == "not_measured"
    assert caught.value.hint


def damaged(**changes: object) -> object:
    return {**table().to_json(), **changes}


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        "text",
        damaged(schema_version=99),
        damaged(rows=[{"signature": "x"}]),
        damaged(rows=[{**table().to_json()["rows"][0], "status": "guessed"}]),
        damaged(rows=[{**table().to_json()["rows"][0], "surprise": 1}]),
        damaged(rows=[{**table().to_json()["rows"][0], "median_us": "10"}]),
        damaged(rows=[{**table().to_json()["rows"][0], "median_us": 0.0}]),
        damaged(rows=[{**table().to_json()["rows"][0], "ci_low_us": -1.0}]),
        damaged(overheads=[{**table().to_json()["rows"][0], "p95_us": float("nan")}]),
        damaged(device={"kind": "cpu"}),
        {key: value for key, value in table().to_json().items() if key != "version"},
    ],
)
def test_a_damaged_document_is_refused(data: object) -> None:
    with pytest.raises(BadTable) as caught:
        LatencyTable.from_json(data)
    assert caught.value.code == "bad_latency_table"
    assert caught.value.hint


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(BadTable, match="not JSON"):
        LatencyTable.loads("{")


def test_rows_of_other_status_keep_their_word() -> None:
    estimated = replace(row(5.0), status=RowStatus.ESTIMATED, scope=RowScope.KERNEL)
    grown = table().extended([estimated], "run_2", {})
    again = LatencyTable.loads(json.dumps(grown.to_json()))
    assert again.lookup(OP, FP32, 1).status is RowStatus.ESTIMATED
    assert again.lookup(OP, FP32, 1).scope is RowScope.KERNEL
