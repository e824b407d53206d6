"""Activations to codes row by row, run on the CPU: bit for bit what the reference says, packed as the products read."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import reference
from kernels.cuda import packing
from kernels.cuda.epilogue import Output
from kernels.cuda.int4 import QUANTIZE_ROWS
from tests.kernels.cuda.simt.emulator import Memory, emulate

SHAPES = [(1, 1), (3, 64), (5, 63), (9, 520), (2, 301)]


def run(
    x: np.ndarray,
    bits: int,
    dynamic: bool,
    *,
    scale: float = 1.0,
    zero_point: int = 0,
    ld_x: int = 0,
    odd: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (rows, columns), scales and sums by row."""
    rows, columns = x.shape
    device = Memory()
    source = device.empty((rows, max(ld_x, columns)), x.dtype, "x")
    source.array[:, :columns] = x
    if bits == 4:
        codes = device.empty((rows, packing.padded_k(columns) // 8), np.uint32, "words")
        pitch = codes.array.shape[1] * 4
    else:
        pitch = columns + odd
        codes = device.empty((rows, pitch), np.int8, "codes")
    scales, sums = device.empty((rows,), np.float32, "scales"), device.empty((rows,), np.int32, "sums")
    kind = {np.dtype(np.float32): Output.F32, np.dtype(np.float16): Output.F16, np.dtype(np.int8): Output.S8}[x.dtype]
    macros = {"INPUT": int(kind), "CODE_BITS": bits, "DYNAMIC": int(dynamic)}
    emulate(QUANTIZE_ROWS, "sm_80", None, macros).launch(
        device, (-(-rows // 4),), (128,),
        [source, codes, scales, sums, np.float32(scale), np.int32(zero_point), np.int32(rows), np.int32(columns),
         np.int32(source.array.shape[1]), np.int32(pitch)],
    )  # fmt: skip
    found = packing.unpack_int4(codes.array, packing.padded_k(columns)) if bits == 4 else codes.array
    assert bits == 8 or not found[:, columns:].any()
    return found[:, :columns], scales.array, sums.array


@pytest.mark.parametrize("shape", SHAPES)
def test_dynamic_rows_equal_the_reference(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(shape[1]).normal(0, 3, shape).astype(np.float32)
    x[-1] = 0.0
    codes, scales, sums = run(x, 8, dynamic=True, ld_x=shape[1] + 3)
    expected, expected_scales = reference.quantize_rows(x, shape[1])
    assert np.array_equal(codes, expected)
    assert np.array_equal(scales, expected_scales[:, 0])
    assert np.array_equal(sums, expected.sum(axis=1))


@pytest.mark.parametrize("shape", SHAPES)
def test_dynamic_words_hold_the_nearest_codes(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(shape[0]).normal(0, 3, shape).astype(np.float16)
    codes, scales, sums = run(x, 4, dynamic=True)
    expected_scales = np.abs(x.astype(np.float32)).max(axis=1) / np.float32(7)
    steps = x.astype(np.float32) * (np.float32(1) / expected_scales)[:, None]
    assert np.array_equal(scales, expected_scales)
    assert np.array_equal(codes, np.clip(np.rint(steps), -8, 7))
    assert np.array_equal(sums, codes.sum(axis=1, dtype=np.int64))


@pytest.mark.parametrize(("bits", "odd"), [(8, False), (8, True), (4, False)])
def test_fixed_scales_divide_and_saturate(bits: int, odd: bool) -> None:
    x = np.random.default_rng(bits).normal(0, 3, (6, 72)).astype(np.float32)
    codes, _, sums = run(x, bits, dynamic=False, scale=0.03, zero_point=2, odd=odd)
    limit = 1 << (bits - 1)
    expected = np.clip(np.rint(x / np.float32(0.03)) + 2, -limit, limit - 1)
    assert np.array_equal(codes, expected)
    assert np.array_equal(sums, expected.sum(axis=1))


def test_codes_are_only_packed() -> None:
    x = np.random.default_rng(0).integers(-8, 8, (7, 130), dtype=np.int8)
    codes, _, sums = run(x, 4, dynamic=False)
    assert np.array_equal(codes, x)
    assert np.array_equal(sums, x.sum(axis=1, dtype=np.int64))
