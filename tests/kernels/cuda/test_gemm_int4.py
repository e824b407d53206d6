"""The 4-bit matrix kernels themselves, run on the CPU: exact on shapes that divide nothing, into poisoned outputs."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from kernels import reference
from kernels.cuda import int4
from kernels.cuda.epilogue import Output, dyadic_pairs
from kernels.cuda.source import KernelSource
from kernels.errors import KernelsError
from kernels.recipe import Granularity, Numerics
from tests.kernels.cuda.int4_cases import Problem

INT8 = Numerics(8, symmetric=True, signed=True, granularity=Granularity.TENSOR)
NAMED = pytest.mark.parametrize("source", int4.PRODUCTS, ids=lambda source: source.name)


def random_shapes(count: int, seed: int) -> list[tuple[int, int, int]]:
    rng = np.random.default_rng(seed)
    return [tuple(int(v) | 1 for v in rng.integers(1, (70, 140, 330))) for _ in range(count)]


@NAMED
def test_exact_on_shapes_that_divide_nothing(source: KernelSource) -> None:
    for i, (m, n, k) in enumerate([*random_shapes(19, 7), (1, 1, 1), (16, 128, 64)]):
        problem = Problem.random(source, m, n, k, i)
        bias = np.random.default_rng(i).integers(-(2**20), 2**20, n, dtype=np.int32)
        assert np.array_equal(problem.run(Output.S32, {"bias": bias}, seed=i), problem.sums + bias), (m, n, k)


LARGE_TILES = [name for name in int4.TILES if name != "16x128"]


@pytest.mark.parametrize(
    ("source", "tile"),
    [*((int4.GEMM_W4A8, tile) for tile in LARGE_TILES), (int4.GEMM_W4A4, "128x128"), (int4.GEMM_S4_NATIVE, "64x64")],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_tile(source: KernelSource, tile: str) -> None:
    problem = Problem.random(source, 130, 139, 201, 1)
    assert np.array_equal(problem.run(Output.S32, {}, tile=tile), problem.sums)


@pytest.mark.parametrize("source", [int4.GEMM_W4A8, int4.GEMM_S4_NATIVE], ids=lambda source: source.name)
def test_turing_has_quarters_of_the_products(source: KernelSource) -> None:
    problem = Problem.random(source, 19, 139, 201, 2)
    assert np.array_equal(problem.run(Output.S32, {}, arch="sm_75"), problem.sums)


@NAMED
def test_split_k_is_the_same_sum_with_zero_points_too(source: KernelSource) -> None:
    for m, n, k, slices in [(5, 130, 500, 3), (33, 67, 129, 2), (3, 3, 64, 2)]:
        problem = Problem.random(source, m, n, k, k)
        assert np.array_equal(problem.run(Output.S32, {}, slices=slices), problem.sums)
    rng = np.random.default_rng(5)
    codes, zeros = rng.integers(0, 16, (n, k)), rng.integers(0, 16, n)
    expected = reference.linear(problem.x.astype(np.int64), (codes - zeros[:, None]).T)
    assert np.array_equal(problem.run(Output.S32, {}, unsigned=codes, zero_points=zeros, slices=2), expected)


@pytest.mark.parametrize("align", [1, 4])
def test_rows_of_activations_of_any_alignment(align: int) -> None:
    for k in (1, 63, 65, 130):
        problem = Problem.random(int4.GEMM_W4A8, 17, 9, k, k)
        assert np.array_equal(problem.run(Output.S32, {}, align=align), problem.sums)


@pytest.mark.parametrize("source", [int4.GEMM_W4A8, int4.GEMM_S4_NATIVE], ids=lambda source: source.name)
def test_codes_equal_the_reference_requantization(source: KernelSource) -> None:
    problem = Problem.random(source, 33, 70, 190, 3)
    multiplier = np.random.default_rng(3).uniform(1e-4, 1e-2, 70)
    mantissas, exponents = dyadic_pairs(multiplier.tolist())
    fields = {
        "multiplier": np.array(mantissas, np.int32), "shift": np.array(exponents, np.int32),
        "zero_point": 3, "clamp_low": -128, "clamp_high": 127,
    }  # fmt: skip
    expected = reference.requantize(problem.sums, multiplier, 3, INT8)
    assert np.array_equal(problem.run(Output.S8, fields), expected)


def test_extreme_codes_fill_the_accumulator_without_overflow() -> None:
    k = 4096
    x, weight = np.full((2, k), -8, np.int8), np.full((3, k), -8, np.int8)
    assert (Problem(int4.GEMM_W4A4, x, weight).run(Output.S32, {}) == 64 * k).all()


def test_plans_refuse_what_would_be_wrong() -> None:
    with pytest.raises(KernelsError) as group:
        int4.plan_gemm(int4.GEMM_S4_NATIVE, 8, 8, 64, scale_group=32)
    assert group.value.code == "bad_group_size"
    with pytest.raises(KernelsError) as long:
        int4.plan_gemm(int4.GEMM_W4A4, 8, 8, 131_072)
    assert long.value.code == "sum_too_long"
    assert int4.plan_gemm(int4.GEMM_W4A4, 8, 8, 131_072, slices=2).partial_bytes > 0
    with pytest.raises(KernelsError, match="no room for sums by groups"):
        int4.plan_gemm(int4.GEMM_W4A8, 8, 8, 64, scale_group=64, tile="128x256")
    with pytest.raises(KernelsError) as scale:
        int4.pack_ratios(np.zeros((2, 3)))
    assert scale.value.code == "bad_scale"


def test_the_argument_struct_has_the_size_of_the_kernels() -> None:
    assert ctypes.sizeof(int4.Int4WeightsArguments) == 40
