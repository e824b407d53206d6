"""Packing of 4-bit weights: exact round trips, the ×16 identity, and dot products that survive the order of words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.cuda import packing
from kernels.errors import KernelsError

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 200), st.integers(0, 2**32 - 1))


def random_codes(n: int, k: int, seed: int, low: int = -8, high: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, (n, k), dtype=np.int8)


@given(SHAPES)
@settings(max_examples=60, deadline=None)
def test_signed_codes_come_back_and_the_padding_is_zero(shape: tuple[int, int, int]) -> None:
    n, k, seed = shape
    codes = random_codes(n, k, seed)
    words = packing.pack_int4(codes)
    assert words.dtype == np.uint32
    assert words.shape == (n, packing.padded_k(k) // 8)
    assert np.array_equal(packing.unpack_int4(words, k), codes)
    assert not packing.unpack_int4(words, packing.padded_k(k))[:, k:].any()


@given(SHAPES)
@settings(max_examples=40, deadline=None)
def test_unsigned_codes_are_signed_ones_with_the_top_bits_flipped(shape: tuple[int, int, int]) -> None:
    n, k, seed = shape
    codes = random_codes(n, k, seed, 0, 15)
    words = packing.pack_uint4(codes)
    assert np.array_equal(packing.unpack_uint4(words, k), codes)
    assert np.array_equal(words, packing.pack_int4(codes - 8))


def test_the_documented_bits() -> None:
    codes = np.zeros((1, 64), np.int8)
    codes[0, 8:16] = [1, 2, 3, 4, 5, 6, 7, -8]
    assert packing.pack_int4(codes)[0, 1] == 0x84736251
    assert np.count_nonzero(packing.pack_int4(codes)) == 1


@given(SHAPES)
@settings(max_examples=40, deadline=None)
def test_mask_and_shift_give_sixteen_times_the_code(shape: tuple[int, int, int]) -> None:
    n, k, seed = shape
    codes = np.pad(random_codes(n, k, seed), ((0, 0), (0, packing.padded_k(k) - k)))
    low, high = packing.times16(packing.pack_int4(codes))
    by_word = codes.reshape(n, -1, 8).astype(int) * 16
    assert np.array_equal(low.reshape(n, -1, 4), by_word[:, :, :4])
    assert np.array_equal(high.reshape(n, -1, 4), by_word[:, :, 4:])


@given(SHAPES, st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_a_zero_point_is_a_correction_by_row_sums(shape: tuple[int, int, int], m: int) -> None:
    n, k, seed = shape
    rng = np.random.default_rng(seed)
    codes, zeros = rng.integers(0, 16, (n, k)), rng.integers(0, 16, n)
    x = rng.integers(-128, 128, (m, k))
    stored = packing.unpack_int4(packing.pack_uint4(codes), k).astype(np.int64)
    found = reference.linear(x, stored.T) - packing.zero_point_correction(x.sum(axis=1), zeros)
    assert np.array_equal(found, reference.linear(x, (codes - zeros[:, None]).T))


@given(SHAPES, st.sampled_from([None, 16, 32, 64, 128]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_fragments_come_back_with_their_scales(
    shape: tuple[int, int, int], group: int | None, asymmetric: bool
) -> None:
    n, k, seed = shape
    rng = np.random.default_rng(seed)
    groups = 1 if group is None else -(-k // group)
    codes = random_codes(n, k, seed, 0, 15) if asymmetric else random_codes(n, k, seed)
    zeros = rng.integers(0, 16, (groups, n)) if asymmetric else None
    scale = rng.uniform(1e-6, 1e-4, (groups, n)).astype(np.float32)
    weights = packing.pack_fragments(codes, scale, group, zeros)
    assert np.array_equal(packing.unpack_fragments(weights), codes)
    assert weights.words.shape == (-(-n // 16), packing.padded_k(k) // 64, 32, 4)
    assert weights.scales().shape == (groups, n)
    assert np.allclose(weights.scales(), scale, rtol=2**-11, atol=0)


def test_scales_that_float16_holds_are_kept_exactly_at_any_magnitude() -> None:
    rng = np.random.default_rng(5)
    scale = rng.uniform(0.5, 1, (4, 20)).astype(np.float16).astype(np.float64) * 2.0**-30
    weights = packing.pack_fragments(random_codes(20, 256, 1), scale, 64)
    assert np.array_equal(weights.scales(), scale)


def test_fragment_words_follow_the_documented_lanes() -> None:
    codes = random_codes(37, 150, 3)
    words = packing.pack_fragments(codes, np.ones(37)).words
    padded = np.pad(codes, ((0, 48 - 37), (0, 192 - 150)))
    rng = np.random.default_rng(0)
    for _ in range(400):
        strip, block, g, t = rng.integers(3), rng.integers(3), rng.integers(8), rng.integers(4)
        step, r, h = rng.integers(4), rng.integers(4), rng.integers(2)
        n = 16 * strip + g + 8 * (r & 1)
        if n < 37:
            nibble = int(words[strip, block, 4 * g + t, step]) >> int(4 * r + 16 * h) & 0xF
            assert nibble - 8 == padded[n, 64 * block + 16 * step + 8 * (r >> 1) + 2 * t + h]


@pytest.mark.parametrize(
    "codes",
    [
        np.full((2, 3), 8),
        np.full((2, 3), -9),
        np.ones((2, 3), np.float32),
        np.ones(3, np.int8),
        np.ones((0, 3), np.int8),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes: np.ndarray) -> None:
    for pack in (packing.pack_int4, lambda c: packing.pack_fragments(c, np.ones(2))):
        with pytest.raises(KernelsError) as caught:
            pack(codes)
        assert caught.value.code == "bad_int4_codes"
        assert caught.value.hint


def test_bad_groups_scales_and_zero_points_are_refused() -> None:
    codes = random_codes(4, 64, 0)
    for arguments, code in [
        ((codes, np.ones((2, 4)), 48), "bad_group_size"),
        ((codes, np.ones((3, 4)), 32), "bad_scale"),
        ((codes, np.zeros(4), None), "bad_scale"),
        ((codes, np.full(4, np.inf), None), "bad_scale"),
        ((codes & 7, np.ones(4), None, np.full(4, 16)), "bad_int4_codes"),
    ]:
        with pytest.raises(KernelsError) as caught:
            packing.pack_fragments(*arguments)
        assert caught.value.code == code
