"""The CUDA backend on the fake device: contenders, rows, resume, refusals, overheads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.backends.base import OpFailed
from kernels.backends.cuda import Cuda
from kernels.backends.cuda_device import DeviceLost, OutOfDeviceMemory
from kernels.backends.cuda_fake import FAKE_GPU, FakeCudaDevice
from kernels.backends.cuda_kernels import OurKernels
from kernels.backends.cuda_models import MODELS
from kernels.backends.cuda_opponents import opponents
from kernels.backends.cuda_timing import MOST_COPIES, ROTATED_SHARE, copies_for
from kernels.cuda.int8 import GEMM_S8
from kernels.errors import BadTable, KernelsError
from kernels.hardware_profile import HardwareProfile
from kernels.latency_table import LatencyTable, RowScope
from kernels.microbench import empty_table, measure_missing
from kernels.op_shape import LinearShape, OpShape, parse_op_shape
from kernels.precision import FP32, Precision
from kernels.profiles.cuda import cuda_profile
from kernels.reference import expected_output

LINEAR = LinearShape(32, 64, 48)
CONV = parse_op_shape("conv2d_n1_c16_h6_w6_o12_k3x3_s1x1_p1x1x1x1_d1x1_g1_b1")
W8A8, W4A8, W4A4 = Precision("w8a8"), Precision("w4a8"), Precision("w4a4")
PAIRS = [(LINEAR, FP32), (LINEAR, W8A8), (LINEAR, W4A8), (CONV, FP32), (CONV, W8A8), (CONV, W4A8)]


def profile_of(device: FakeCudaDevice) -> HardwareProfile:
    return replace(cuda_profile("cuda-local", device.identity, device.arch), measurable_here=True)


def backend_on(device: FakeCudaDevice) -> Cuda:
    return Cuda(profile_of(device), device, [OurKernels(device), *opponents(device)])


def measured(backend: Cuda, pairs, table: LatencyTable | None = None, **more):  # type: ignore[no-untyped-def]
    return measure_missing(backend, backend.profile, pairs, 1, table or empty_table(backend.profile), **more)


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w4a4", "w4a16-g128"])
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a", "sm_120a"])
def test_linear_ops_compute_what_the_recipe_says(arch: str, precision: str) -> None:
    runnable = backend_on(FakeCudaDevice(arch=arch)).build(LinearShape(5, 70, 33), Precision(precision), 1)
    expected = expected_output(runnable.layer)
    np.testing.assert_allclose(runnable.output(), expected, atol=2e-3 * np.abs(expected).max(), rtol=0)


CONVS = [
    "conv2d_n2_c3_h9_w9_o10_k3x3_s2x2_p1x1x1x1_d1x1_g1_b1",
    "conv2d_n1_c24_h7_w5_o18_k3x2_s1x2_p2x0x1x3_d1x1_g3_b0",
    "conv2d_n1_c32_h6_w5_o20_k1x1_s1x1_p0x0x0x0_d1x1_g1_b1",
    "conv2d_n1_c12_h6_w6_o12_k3x3_s2x2_p0x1x1x0_d1x2_g12_b1",
]


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w4a4"])
@pytest.mark.parametrize("signature", CONVS)
def test_convolutions_leave_exactly_the_codes_of_the_reference(signature: str, precision: str) -> None:
    runnable = backend_on(FakeCudaDevice()).build(parse_op_shape(signature), Precision(precision), 1)
    expected = expected_output(runnable.layer).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(runnable.output(), expected.reshape(-1, expected.shape[-1]))


def test_a_row_names_the_fastest_and_what_the_others_took() -> None:
    backend = backend_on(FakeCudaDevice())
    result = measured(backend, PAIRS)
    assert result.refused == ()
    table = result.table
    assert len(table.rows) == len(PAIRS)
    row = table.lookup(LINEAR, W8A8, 1)
    assert row.scope is RowScope.KERNEL
    assert row.executed_kernel in row.tried
    assert row.tried[row.executed_kernel] == min(row.tried.values())
    assert {"torch._int_mm"} < set(row.tried)
    assert row.samples >= 30
    assert "torch" in table.lookup(LINEAR, FP32, 1).executed_kernel
    run = table.runs[row.run]
    assert run["clock"] == "cuda_events"
    assert run["device_before"]["uuid_hash"] == "fake"
    assert run["device_after"]["sm_clock_mhz"] == 1980
    assert LatencyTable.from_json(table.to_json()) == table


def test_launches_and_conversions_are_rows_of_their_own_measured_once() -> None:
    backend = backend_on(FakeCudaDevice())
    first = measured(backend, [(LINEAR, W8A8)]).table
    found = {(row.signature.split("_")[0], row.precision) for row in first.overheads}
    assert {("empty", "fp16"), ("quantize", "w8a8"), ("dequantize", "w8a8")} <= found
    again = measured(backend, [(LINEAR, W4A8)], first).table
    assert again.overheads == first.overheads
    assert len(again.rows) == 2


@pytest.mark.parametrize("cache", ["cold_weights", "cold", "hot"])
def test_cache_modes_are_rows_beside_each_other(cache: str) -> None:
    backend = backend_on(FakeCudaDevice())
    table = measured(backend, [(LINEAR, W8A8)], cache=cache).table
    assert table.has(LINEAR, W8A8, 1, cache)
    assert table.has(LINEAR, W8A8, 1) == (cache == "cold_weights")
    assert next(iter(table.runs.values()))["cache"] == cache


def test_an_unknown_cache_mode_is_refused() -> None:
    with pytest.raises(KernelsError) as caught:
        measured(backend_on(FakeCudaDevice()), [(LINEAR, W8A8)], cache="tepid")
    assert caught.value.code == "bad_cache_mode"


def test_rotation_outgrows_the_second_level_cache() -> None:
    op, l2 = LinearShape(1, 4096, 4096), 50_000_000
    cold = copies_for(op, W8A8, l2, "cold_weights")
    assert cold.inputs == 1
    assert cold.weights * op.weight_count >= ROTATED_SHARE * l2
    assert copies_for(op, W8A8, l2, "hot").weights == 1
    assert copies_for(LinearShape(1, 16, 16), W8A8, l2, "cold").inputs == MOST_COPIES


def test_rows_that_are_there_are_not_measured_again() -> None:
    device = FakeCudaDevice()
    first = measured(backend_on(device), PAIRS[:3]).table
    before = len(device.launches)
    assert measured(backend_on(device), PAIRS[:3], first).table is first
    assert len(device.launches) == before


def faulty(kernel: str, error: Exception) -> Cuda:
    tiles = [f"{m}x{n}" for m in (16, 32, 64, 128, 256) for n in (64, 128, 256)]
    return backend_on(FakeCudaDevice(arch="sm_80", fails_on={f"{kernel} {tile}": error for tile in tiles}))


def test_a_kernel_that_fails_is_left_out_and_the_pair_goes_to_another() -> None:
    backend = faulty("gemm_s8", OpFailed("CUDA_ERROR_INVALID_VALUE"))
    row = measured(backend, [(LINEAR, W8A8)]).table.lookup(LINEAR, W8A8, 1)
    assert row.executed_kernel == "torch._int_mm"
    assert any("INVALID_VALUE" in reason for reason in backend.reasons[LINEAR.signature, "w8a8"].values())


def test_a_full_card_costs_the_pair_and_not_the_sweep() -> None:
    backend = faulty("gemm_w4a8", OutOfDeviceMemory("out of memory", hint="use a smaller batch"))
    result = measured(backend, [(LINEAR, W4A8), (LINEAR, W8A8)])
    assert [(entry.precision, entry.code) for entry in result.refused] == [("w4a8", "device_out_of_memory")]
    assert "out of memory" in result.refused[0].reason
    assert "smaller batch" in result.refused[0].hint
    assert result.table.has(LINEAR, W8A8, 1)


def test_memory_is_not_blamed_where_another_kernel_failed_otherwise() -> None:
    fails: dict[str, Exception] = {f"gemm_s8 {tile}": OutOfDeviceMemory("out of memory") for tile in GEMM_S8.tiles}
    fails["torch._int_mm"] = OpFailed("CUDA_ERROR_INVALID_VALUE")
    result = measured(backend_on(FakeCudaDevice(arch="sm_80", fails_on=fails)), [(LINEAR, W8A8)])
    assert [entry.code for entry in result.refused] == ["op_failed"]
    assert "out of memory" in result.refused[0].reason


@pytest.mark.parametrize(
    "error", [OutOfDeviceMemory("out of memory"), OpFailed("CUDA_ERROR_INVALID_VALUE")], ids=["memory", "launch"]
)
def test_a_conversion_that_fails_costs_its_row_and_not_the_sweep(error: OpFailed) -> None:
    result = measured(backend_on(FakeCudaDevice(fails_on={"quantize default": error})), [(LINEAR, W8A8)])
    assert result.refused == ()
    assert result.table.has(LINEAR, W8A8, 1)
    assert "quantize" not in {row.signature.split("_")[0] for row in result.table.overheads}
    (run,) = result.table.runs.values()
    assert {entry["code"] for entry in run["overheads_refused"]} == {error.code}


def test_a_wrong_kernel_gets_no_row() -> None:
    def off_by_one(defines, geometry, at) -> None:  # type: ignore[no-untyped-def]
        MODELS["conv_s8"](defines, geometry, at)
        import ctypes

        ctypes.c_int8.from_address(at["e"].out).value ^= 1

    device = FakeCudaDevice({**MODELS, "conv_s8": off_by_one})
    result = measured(backend_on(device), [(CONV, W8A8), (CONV, W4A8)])
    assert [(entry.precision, entry.code) for entry in result.refused] == [("w8a8", "op_failed")]
    assert "sampled outputs are off" in result.refused[0].reason
    assert result.table.has(CONV, W4A8, 1)


def test_outputs_that_are_not_written_are_noticed() -> None:
    device = FakeCudaDevice({**MODELS, "conv_s8": lambda defines, geometry, at: None})
    result = measured(backend_on(device), [(CONV, W8A8)])
    assert [entry.code for entry in result.refused] == ["op_failed"]


def test_a_lost_device_ends_the_sweep_with_what_was_measured() -> None:
    kept: list[LatencyTable] = []
    big = LinearShape(32, 64, 4096)
    backend = faulty("gemm_w4a8", DeviceLost("illegal address", hint="start again"))
    many = [LinearShape(32, 64, n) for n in range(16, 400, 16)]
    pairs: list[tuple[OpShape, Precision]] = [*((op, W8A8) for op in many), (big, W4A8)]
    with pytest.raises(DeviceLost) as caught:
        measured(backend, pairs, checkpoint=kept.append)
    assert caught.value.code == "device_lost"
    assert 0 < len(kept[-1].rows) < len(pairs)


def test_a_precision_without_a_kernel_is_refused_by_name() -> None:
    result = measured(backend_on(FakeCudaDevice()), [(CONV, Precision("w2a2")), (CONV, W8A8)])
    assert [(entry.precision, entry.code) for entry in result.refused] == [("w2a2", "unsupported_precision")]
    assert result.table.has(CONV, W8A8, 1)


def test_groups_that_no_kernel_scales_by_are_refused_by_name() -> None:
    result = measured(backend_on(FakeCudaDevice()), [(LINEAR, Precision("w4a16-g48")), (LINEAR, W8A8)])
    assert [(entry.precision, entry.code) for entry in result.refused] == [("w4a16-g48", "unsupported_precision")]
    assert result.table.has(LINEAR, W8A8, 1)


def test_a_table_of_another_card_or_driver_is_refused() -> None:
    backend = backend_on(FakeCudaDevice())
    table = empty_table(backend.profile)
    for change in ({"driver": "CUDA 12.4"}, {"name": "NVIDIA L4"}):
        with pytest.raises(BadTable) as caught:
            measured(backend, [(LINEAR, W8A8)], replace(table, device=replace(FAKE_GPU, **change)))
        assert caught.value.code == "table_mismatch"


def test_a_table_of_another_schema_is_refused() -> None:
    table = measured(backend_on(FakeCudaDevice()), [(LINEAR, W8A8)]).table.to_json()
    with pytest.raises(BadTable, match="schema version 99"):
        LatencyTable.from_json({**table, "schema_version": 99})
