"""Scales by group in the 4-bit matrix kernels, run on the CPU: exact where floats are, bounded elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import reference
from kernels.cuda import int4
from kernels.cuda.epilogue import Output
from kernels.cuda.source import KernelSource
from tests.kernels.cuda.int4_cases import Problem


@pytest.mark.parametrize(
    ("source", "group"),
    [(int4.GEMM_W4A8, 32), (int4.GEMM_W4A8, 64), (int4.GEMM_W4A8, 512), (int4.GEMM_W4A4, 32), (int4.GEMM_W4A4, 128)],
    ids=lambda value: getattr(value, "name", value),
)
def test_exact_with_scales_that_are_powers_of_two(source: KernelSource, group: int) -> None:
    rng = np.random.default_rng(group)
    for m, n, k, slices in [(19, 75, 1100, 2), (35, 8, 65, 2), (3, 130, 700, 3)]:
        problem = Problem.random(source, m, n, k, group)
        scale = 2.0 ** rng.integers(-4, 1, (-(-k // group), n))
        spread = np.repeat(scale, group, axis=0)[:k]
        expected = reference.linear(problem.x.astype(np.float64), problem.weight.T * spread)
        found = problem.run(Output.F32, {}, scale=scale, group=group, slices=slices)
        assert np.array_equal(found, expected.astype(np.float32)), (m, n, k)


def test_scales_of_any_value_stay_within_the_bound_of_float_sums() -> None:
    problem = Problem.random(int4.GEMM_S4_NATIVE, 20, 24, 640, 9)
    scale = np.random.default_rng(9).uniform(1e-3, 2e-2, (10, 24))
    ratios, channel = int4.pack_ratios(scale)
    stored = ratios[:, :24].astype(np.float64) * channel
    terms = problem.x[:, :, None].astype(np.float64) * (problem.weight.T * np.repeat(stored, 64, axis=0))
    found = problem.run(Output.F32, {}, scale=scale, group=64, tile="64x64")
    bound = 12 * 2.0**-24 * np.abs(terms).sum(axis=1)  # ten additions, the scale and its product
    assert (np.abs(found - terms.sum(axis=1)) <= bound).all()


def test_to_codes() -> None:
    problem = Problem.random(int4.GEMM_W4A8, 9, 40, 256, 4)
    scale = 2.0 ** -np.random.default_rng(4).integers(8, 12, (2, 40)).astype(np.float64)
    fields = {"zero_point": -5, "clamp_low": -128, "clamp_high": 127}
    exact = reference.linear(problem.x.astype(np.float64), problem.weight.T * np.repeat(scale, 128, axis=0))
    found = problem.run(Output.S8, fields, scale=scale, group=128)
    assert np.array_equal(found, np.clip(np.rint(exact) - 5, -128, 127))
