"""Rows of a latency table: only missing ones, resumable, honest about what it could not measure."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from kernels.backends.base import KernelFallback, Runnable
from kernels.backends.fake import FakeBackend, fake_latency_us, fake_profile
from kernels.errors import BackendUnavailable, BadTable, KernelsError
from kernels.interleaving import Protocol
from kernels.latency_table import LatencyTable, RowScope, RowStatus
from kernels.microbench import empty_table, measure_missing, measure_rows
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape, OpShape
from kernels.precision import FP32, Precision
from kernels.registry import backend_for, load_profile

W8A8 = Precision("w8a8")
LINEAR = LinearShape(8, 64, 32)
CONV = Conv2dShape(1, 8, 6, 6, 8, (3, 3), padding=(1, 1, 1, 1))


class CountingBackend(FakeBackend):
    """The fake backend, with what it built and a pair that falls back."""

    def __init__(self, falls_back: Precision | None = None, latency_us: float | None = None) -> None:
        super().__init__(fake_profile())
        self.built: list[str] = []
        self.closed = 0
        self._falls_back = falls_back
        self._fixed_us = latency_us

    def build(self, op: OpShape, precision: Precision, threads: int, seed: int = 0):  # type: ignore[no-untyped-def]
        if precision == self._falls_back:
            raise KernelFallback(f"{precision} ran as Gemm")
        self.built.append(f"{op.signature} {precision}")
        runnable = super().build(op, precision, threads, seed)
        if self._fixed_us is not None:
            runnable._latency_us = self._fixed_us
        close = runnable.close

        def counted() -> None:
            self.closed += 1
            close()

        runnable.close = counted  # type: ignore[method-assign]
        return runnable


def measured(pairs, backend: FakeBackend | None = None, table: LatencyTable | None = None):  # type: ignore[no-untyped-def]
    backend = backend or CountingBackend()
    return measure_missing(backend, backend.profile, pairs, 2, table or empty_table(backend.profile))


def test_rows_hold_what_the_clock_said_and_where_it_comes_from() -> None:
    backend = CountingBackend()
    table = measured([(LINEAR, W8A8), (LINEAR, FP32)], backend).table
    row = table.lookup(LINEAR, W8A8, 2)
    assert row.median_us == pytest.approx(fake_latency_us(LINEAR, W8A8, 2), abs=1e-3)
    assert (row.status, row.scope, row.executed_kernel) == (
        RowStatus.MEASURED,
        RowScope.DEPLOYABLE,
        "fake_linear_w8a8",
    )
    run = table.runs[row.run]
    assert run["backend"] == "fake"
    assert run["clock"] == "fake"
    assert run["threads"] == 2
    assert run["protocol"]["min_samples"] == 30
    assert {"started_at", "load_average_before", "load_average_after", "anchor_drift", "steady"} <= set(run)
    assert backend.closed == 2


def test_only_missing_rows_are_measured() -> None:
    first = measured([(LINEAR, FP32)]).table
    backend = CountingBackend()
    second = measured([(LINEAR, FP32), (LINEAR, W8A8), (LINEAR, W8A8)], backend, first).table
    assert backend.built == [f"{LINEAR.signature} w8a8"]
    assert second.rows[0] == first.rows[0]
    assert (second.version, len(second.rows), len(second.runs)) == (2, 2, 2)
    assert measured([(LINEAR, FP32)], backend, second).table is second


def test_an_interrupted_run_keeps_its_chunks_and_resumes_with_the_rest() -> None:
    ops = [LinearShape(m, 32, 32) for m in range(1, 30)]
    pairs = [(op, precision) for op in ops for precision in (FP32, W8A8)]
    kept: list[LatencyTable] = []

    def interrupt(table: LatencyTable) -> None:
        kept.append(table)
        if len(kept) == 2:
            raise KeyboardInterrupt

    backend = CountingBackend()
    with pytest.raises(KeyboardInterrupt):
        measure_missing(backend, backend.profile, pairs, 1, empty_table(backend.profile), checkpoint=interrupt)
    done = len(kept[-1].rows)
    assert 0 < done < len(pairs)
    again = CountingBackend()
    table = measure_missing(again, again.profile, pairs, 1, kept[-1]).table
    assert len(again.built) == len(pairs) - done
    assert len(table.rows) == len(pairs)


def test_the_precisions_of_a_shape_are_timed_side_by_side() -> None:
    order: list[str] = []
    backend = CountingBackend()
    build = backend.build

    def spying(op: OpShape, precision: Precision, threads: int, seed: int = 0) -> Runnable:
        runnable = build(op, precision, threads, seed)
        run = runnable.run

        def spied() -> None:
            order.append(f"{op.kind} {precision}")
            run()

        runnable.run = spied  # type: ignore[method-assign]
        return runnable

    backend.build = spying  # type: ignore[method-assign]
    backend.protocol = Protocol(warmup_us=0.0, sample_us=0.0, min_samples=5, max_samples=5)  # type: ignore[misc]
    measured([(LINEAR, FP32), (CONV, FP32), (LINEAR, W8A8)], backend)
    assert order[-6:] == ["conv2d fp32", "linear fp32", "linear w8a8"] * 2


def test_a_fallback_gets_no_row_and_is_reported() -> None:
    result = measured([(LINEAR, FP32), (LINEAR, W8A8)], CountingBackend(falls_back=W8A8))
    assert not result.table.has(LINEAR, W8A8, 2)
    assert [(entry.precision, entry.code) for entry in result.refused] == [("w8a8", "kernel_fallback")]
    (run,) = result.table.runs.values()
    assert run["refused"][0]["reason"] == "w8a8 ran as Gemm"


def test_a_pair_the_profile_lacks_is_reported_too() -> None:
    result = measured([(LINEAR, Precision("w2a2"))])
    assert [entry.code for entry in result.refused] == ["unsupported_precision"]
    assert result.table.rows == ()


def test_a_time_no_device_can_reach_is_no_row() -> None:
    big = LinearShape(512, 4096, 4096)
    result = measured([(big, FP32)], CountingBackend(latency_us=3.0))
    assert [entry.code for entry in result.refused] == ["below_roofline"]
    assert result.table.rows == ()


def test_progress_reaches_its_total_once() -> None:
    backend = CountingBackend()
    seen: list[tuple[int, int]] = []
    pairs = [(op, p) for op in (LINEAR, CONV, EmbeddingShape(4, 9, 8)) for p in (FP32,)]
    measure_rows(
        backend, backend.profile, pairs, 1, empty_table(backend.profile), lambda done, of: seen.append((done, of))
    )
    assert seen[-1] == (3, 3)
    assert [pair for pair in seen if pair == (3, 3)] == [(3, 3)]
    assert all(a <= b for a, b in itertools.pairwise(seen))


def test_another_device_runtime_or_thread_count_is_refused() -> None:
    backend = CountingBackend()
    profile = backend.profile
    table = empty_table(profile)
    away = replace(profile, measurable_here=False)
    with pytest.raises(BackendUnavailable):
        measure_rows(backend, away, [(LINEAR, FP32)], 1, table)
    with pytest.raises(BadTable, match=r"version 0\.9 is not 1") as caught:
        measure_rows(backend, profile, [(LINEAR, FP32)], 1, replace(table, runtime_version="0.9"))
    assert caught.value.code == "table_mismatch"
    with pytest.raises(KernelsError, match="65 threads") as threads:
        measure_rows(backend, profile, [(LINEAR, FP32)], 65, table)
    assert threads.value.code == "threads_unavailable"


@pytest.mark.parametrize("name", ["cpu-local", "cpu-local-openvino"])
def test_real_runtimes_fill_a_table(name: str) -> None:
    profile = load_profile(name)
    quick = Protocol(warmup_us=500.0, sample_us=50.0, min_samples=10, max_samples=10, arm_seconds=0.02)
    pairs = [(op, p) for op in (LINEAR, CONV) for p in (FP32, W8A8)]
    table = measure_rows(backend_for(profile), profile, pairs, 1, empty_table(profile), protocol=quick)
    medians = [table.lookup(op, p, 1).median_us for op, p in pairs]
    assert np.all(np.array(medians) > 0.1)
    (run,) = table.runs.values()
    assert run["session_options"] == dict(profile.session_options)
    assert run["refused"] == []
