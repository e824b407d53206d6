"""The 4-bit matrix kernels themselves, run on the CPU: exact on shapes that divide nothing, into poisoned outputs."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest

from kernels import reference
from kernels.cuda import int4, packing
from kernels.cuda.epilogue import EpilogueArguments, Output, dyadic_pairs
from kernels.cuda.source import KernelSource
from kernels.errors import KernelsError
from kernels.recipe import Granularity, Numerics
from tests.kernels.cuda.simt.emulator import Memory, emulate

INT8 = Numerics(8, symmetric=True, signed=True, granularity=Granularity.TENSOR)
KERNELS = [int4.GEMM_W4A8, int4.GEMM_W4A4, int4.GEMM_S4_NATIVE]
TYPES = {Output.S32: np.int32, Output.F32: np.float32, Output.F16: np.float16, Output.S8: np.int8}


@dataclass(frozen=True)
class Problem:
    """Codes of one product and how to launch it."""

    source: KernelSource
    x: np.ndarray
    weight: np.ndarray

    @classmethod
    def random(cls, source: KernelSource, m: int, n: int, k: int, seed: int) -> Problem:
        rng = np.random.default_rng(seed)
        bits = 7 if source is int4.GEMM_W4A8 else 3
        x = rng.integers(-(1 << bits), 1 << bits, (m, k), dtype=np.int8)
        return cls(source, x, rng.integers(-8, 8, (n, k), dtype=np.int8))

    @property
    def sums(self) -> np.ndarray:
        return reference.linear(self.x.astype(np.int64), self.weight.T.astype(np.int64))

    def run(
        self,
        output: Output,
        epilogue: dict[str, np.ndarray | int | float],
        *,
        tile: str = "64x64",
        arch: str = "sm_80",
        slices: int = 1,
        scale: np.ndarray | None = None,
        group: int = 0,
        align: int = 16,
        zero_points: np.ndarray | None = None,
        unsigned: np.ndarray | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        m, k = self.x.shape
        n = self.weight.shape[0]
        device = Memory()
        plan = int4.plan_gemm(
            self.source, m, n, k, tile=tile, scale_group=group, slices=slices, output=output, align_a=align
        )
        if self.source is int4.GEMM_W4A8:
            ld = -(-k // align) * align
            x = device.empty((m, ld), np.int8, "activations")
            x.array[:, :k] = self.x  # what lies behind a row is poison and must not count
        else:
            x = device.upload(packing.pack_int4(self.x), "activations")
            ld = x.array.shape[1] * 4
        words = packing.pack_int4(self.weight) if unsigned is None else packing.pack_uint4(unsigned)
        weights = int4.Int4WeightsArguments(words=device.upload(words, "weights").address)
        fields = dict(epilogue)
        if scale is not None:
            ratios, fields["scale"] = int4.pack_ratios(scale)
            weights.ratios, weights.ld_ratios = device.upload(ratios, "ratios").address, ratios.shape[1]
        if zero_points is not None:
            weights.zero_points = device.upload(packing.signed_zero_points(zero_points), "zero points").address
            sums = self.x.sum(axis=1, dtype=np.int64).astype(np.int32)
            weights.row_sums = device.upload(sums, "row sums").address
        out = device.empty((m, n), TYPES[output], "out")
        held = {
            name: device.upload(value, name).address if isinstance(value, np.ndarray) else value
            for name, value in fields.items()
        }
        partial = device.empty((plan.partial_bytes,), np.uint8, "partial") if slices > 1 else None
        arrivals = device.upload(np.zeros(plan.arrivals, np.uint32), "arrivals") if slices > 1 else None
        emulate(self.source, arch, tile, plan.defines).launch(
            device, plan.grid, (plan.threads,),
            [x, weights, EpilogueArguments(out=out.address, ld_out=n, ld_residual=n, **held),
             np.int32(m), np.int32(n), np.int32(k), np.int32(ld), partial, arrivals],
            shared_bytes=plan.shared_bytes, seed=seed,
        )  # fmt: skip
        assert arrivals is None or not arrivals.array.any()
        return out.array


def random_shapes(count: int, seed: int) -> list[tuple[int, int, int]]:
    rng = np.random.default_rng(seed)
    shapes = [tuple(int(v) for v in rng.integers(1, (100, 100, 330))) for _ in range(count)]
    return [(m | 1, n | 1, k | 1) for m, n, k in shapes]


@pytest.mark.parametrize("source", KERNELS, ids=lambda source: source.name)
def test_exact_on_shapes_that_divide_nothing(source: KernelSource) -> None:
    for i, (m, n, k) in enumerate([*random_shapes(19, 7), (1, 1, 1), (64, 64, 64)]):
        problem = Problem.random(source, m, n, k, i)
        bias = np.random.default_rng(i).integers(-(2**20), 2**20, n, dtype=np.int32)
        assert np.array_equal(problem.run(Output.S32, {"bias": bias}, seed=i), problem.sums + bias), (m, n, k)


@pytest.mark.parametrize("source", KERNELS, ids=lambda source: source.name)
@pytest.mark.parametrize("tile", list(int4.TILES))
def test_every_tile_and_turing(source: KernelSource, tile: str) -> None:
    problem = Problem.random(source, 130, 139, 201, 1)
    assert np.array_equal(problem.run(Output.S32, {}, tile=tile), problem.sums)
    if tile == "64x64":
        assert np.array_equal(problem.run(Output.S32, {}, tile=tile, arch="sm_75"), problem.sums)


@pytest.mark.parametrize("source", KERNELS, ids=lambda source: source.name)
def test_split_k_is_the_same_sum(source: KernelSource) -> None:
    for m, n, k, slices in [(5, 130, 500, 3), (65, 67, 129, 2), (3, 3, 64, 2)]:
        problem = Problem.random(source, m, n, k, k)
        found = problem.run(Output.S32, {}, tile="16x128", slices=slices)
        assert np.array_equal(found, problem.sums)


@pytest.mark.parametrize("align", [1, 4, 16])
def test_rows_of_activations_of_any_alignment(align: int) -> None:
    for k in (1, 63, 65, 130):
        problem = Problem.random(int4.GEMM_W4A8, 17, 9, k, k)
        assert np.array_equal(problem.run(Output.S32, {}, align=align, tile="16x128"), problem.sums)


@pytest.mark.parametrize("source", KERNELS, ids=lambda source: source.name)
def test_codes_equal_the_reference_requantization(source: KernelSource) -> None:
    problem = Problem.random(source, 33, 70, 190, 3)
    rng = np.random.default_rng(3)
    multiplier = rng.uniform(1e-4, 1e-2, 70)
    mantissas, exponents = dyadic_pairs(multiplier.tolist())
    fields = {
        "multiplier": np.array(mantissas, np.int32), "shift": np.array(exponents, np.int32),
        "zero_point": 3, "clamp_low": -128, "clamp_high": 127,
    }  # fmt: skip
    expected = reference.requantize(problem.sums, multiplier, 3, INT8)
    assert np.array_equal(problem.run(Output.S8, fields), expected)


@pytest.mark.parametrize("source", [int4.GEMM_W4A8, int4.GEMM_W4A4], ids=lambda source: source.name)
@pytest.mark.parametrize("group", [32, 64, 128, 512])
def test_group_scales_are_exact_where_floats_are(source: KernelSource, group: int) -> None:
    rng = np.random.default_rng(group)
    for m, n, k, slices in [(19, 75, 1100, 1), (66, 8, 33, 1), (3, 130, 700, 2)]:
        problem = Problem.random(source, m, n, k, group)
        scale = 2.0 ** rng.integers(-4, 1, (-(-k // group), n))
        spread = np.repeat(scale, group, axis=0)[:k]
        expected = reference.linear(problem.x.astype(np.float64), problem.weight.T * spread)
        found = problem.run(Output.F32, {}, scale=scale, group=group, slices=slices, tile="16x128")
        assert np.array_equal(found, expected.astype(np.float32)), (m, n, k)


def test_group_scales_of_any_value_stay_within_the_bound_of_float_sums() -> None:
    problem = Problem.random(int4.GEMM_S4_NATIVE, 20, 24, 640, 9)
    scale = np.random.default_rng(9).uniform(1e-3, 2e-2, (10, 24))
    ratios, channel = int4.pack_ratios(scale)
    stored = ratios[:, :24].astype(np.float64) * channel
    terms = problem.x[:, :, None].astype(np.float64) * (problem.weight.T * np.repeat(stored, 64, axis=0))
    found = problem.run(Output.F32, {}, scale=scale, group=64)
    bound = 12 * 2.0**-24 * np.abs(terms).sum(axis=1)  # ten additions, the scale and its product
    assert (np.abs(found - terms.sum(axis=1)) <= bound).all()


def test_group_scales_to_codes() -> None:
    problem = Problem.random(int4.GEMM_W4A8, 9, 40, 256, 4)
    scale = 2.0 ** -np.random.default_rng(4).integers(8, 12, (2, 40)).astype(np.float64)
    fields = {"zero_point": -5, "clamp_low": -128, "clamp_high": 127}
    exact = reference.linear(problem.x.astype(np.float64), problem.weight.T * np.repeat(scale, 128, axis=0))
    found = problem.run(Output.S8, fields, scale=scale, group=128, tile="16x128")
    assert np.array_equal(found, np.clip(np.rint(exact) - 5, -128, 127))


@pytest.mark.parametrize("source", KERNELS, ids=lambda source: source.name)
def test_asymmetric_weights_by_row_sums(source: KernelSource) -> None:
    problem = Problem.random(source, 18, 33, 100, 5)
    rng = np.random.default_rng(5)
    codes, zeros = rng.integers(0, 16, (33, 100)), rng.integers(0, 16, 33)
    expected = reference.linear(problem.x.astype(np.int64), (codes - zeros[:, None]).T)
    found = problem.run(Output.S32, {}, unsigned=codes, zero_points=zeros, tile="16x128", slices=2)
    assert np.array_equal(found, expected)


def test_extreme_codes_fill_the_accumulator_without_overflow() -> None:
    k = 4096
    x, weight = np.full((2, k), -8, np.int8), np.full((3, k), -8, np.int8)
    assert (Problem(int4.GEMM_W4A4, x, weight).run(Output.S32, {}, tile="16x128") == 64 * k).all()


def test_plans_refuse_what_would_be_wrong() -> None:
    with pytest.raises(KernelsError) as group:
        int4.plan_gemm(int4.GEMM_S4_NATIVE, 8, 8, 64, scale_group=32)
    assert group.value.code == "bad_group_size"
    with pytest.raises(KernelsError) as long:
        int4.plan_gemm(int4.GEMM_W4A4, 8, 8, 131_072)
    assert long.value.code == "sum_too_long"
    assert int4.plan_gemm(int4.GEMM_W4A4, 8, 8, 131_072, slices=2).partial_bytes > 0
    with pytest.raises(KernelsError) as scale:
        int4.pack_ratios(np.zeros((2, 3)))
    assert scale.value.code == "bad_scale"


def test_the_argument_struct_has_the_size_of_the_kernels() -> None:
    assert ctypes.sizeof(int4.Int4WeightsArguments) == 40
