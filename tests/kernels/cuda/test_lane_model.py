"""Lane models of the 4-bit kernels against the reference: packing, fragment maps and instruction order agree."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import reference
from kernels.cuda import lane_model, packing

SHAPES = [(1, 64, 8), (16, 64, 8), (17, 65, 9), (5, 200, 23), (33, 129, 40), (24, 320, 12)]


def random_int4(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-8, 8, shape, dtype=np.int8)


@pytest.mark.parametrize("m,k,n", SHAPES)
def test_w4a8_gives_sixteen_times_the_product(m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(m * n + k)
    x, weight = rng.integers(-128, 128, (m, k), dtype=np.int8), random_int4(rng, n, k)
    expected = 16 * reference.linear(x.astype(np.int64), weight.T.astype(np.int64))
    for tile in (lane_model.w4a8_tile, lane_model.w4a8_tile_halves):
        assert np.array_equal(lane_model.gemm_words(x, packing.pack_int4(weight), tile), expected)


@pytest.mark.parametrize("m,k,n", SHAPES)
def test_one_packing_serves_the_int8_path_and_both_native_ones(m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(m * n + k)
    x, weight = random_int4(rng, m, k), random_int4(rng, n, k)
    expected = reference.linear(x.astype(np.int64), weight.T.astype(np.int64))
    operands = packing.pack_int4(x), packing.pack_int4(weight)
    assert np.array_equal(lane_model.gemm_words(*operands, lane_model.w4a4_tile), 256 * expected)
    assert np.array_equal(lane_model.gemm_words(*operands, lane_model.s4_tile), expected)
    assert np.array_equal(lane_model.gemm_words(*operands, lane_model.s4_tile_turing), expected)


@pytest.mark.parametrize("group", [None, 16, 32, 64, 128])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_weight_only_fragments(group: int | None, asymmetric: bool) -> None:
    rng = np.random.default_rng(group or 1)
    m, k, n = 11, 300, 37
    groups = 1 if group is None else -(-k // group)
    codes = rng.integers(0, 16, (n, k)) if asymmetric else random_int4(rng, n, k)
    zeros = rng.integers(0, 16, (groups, n)) if asymmetric else None
    weights = packing.pack_fragments(codes, 2.0 ** rng.integers(-8, 0, (groups, n)), group, zeros)
    x = rng.integers(-50, 51, (m, k)).astype(np.float64)
    width = group or k
    shift = 0 if zeros is None else np.repeat(zeros, width, axis=0)[:k]
    values = (codes.T - shift) * np.repeat(weights.scales(), width, axis=0)[:k]
    assert np.array_equal(lane_model.gemm_fragments(x, weights), reference.linear(x, values))


def test_the_turing_int8_product_covers_the_same_matrix() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2**32, (32, 4), dtype=np.uint32)
    b = rng.integers(0, 2**32, (32, 2), dtype=np.uint32)
    wide = lane_model.mma_m16n8k32_s8(a, b, np.zeros((32, 4), np.int64))
    top = lane_model.mma_m8n8_s8(
        a[:, 2], b[:, 1], lane_model.mma_m8n8_s8(a[:, 0], b[:, 0], np.zeros((32, 2), np.int64))
    )
    low = lane_model.mma_m8n8_s8(
        a[:, 3], b[:, 1], lane_model.mma_m8n8_s8(a[:, 1], b[:, 0], np.zeros((32, 2), np.int64))
    )
    assert np.array_equal(wide, np.concatenate([top, low], axis=1))


def test_the_accumulator_bound_is_reached_only_by_all_minus_eights() -> None:
    k = 512
    extreme = packing.pack_int4(np.full((16, k), -8))
    assert lane_model.gemm_words(extreme[:8], extreme, lane_model.w4a4_tile).max() == 16384 * k
