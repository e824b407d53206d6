"""The reference against arithmetic nobody can doubt: fractions, nested loops, and the runtimes' own specifications."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import reference
from kernels.recipe import Granularity, Numerics
from kernels.recipes import ACTIVATION_U8, weight_per_channel

INT8 = weight_per_channel(8)
WIDE = Numerics(16, symmetric=True, signed=True, granularity=Granularity.TENSOR)


@given(st.floats(min_value=1e-12, max_value=1e6))
def test_dyadic_multiplier_is_the_nearest_with_31_bits(real: float) -> None:
    m, e = reference.dyadic_multiplier(real)
    assert 1 << 30 <= m < 1 << 31
    assert abs(Fraction(m, 1 << e) / Fraction(real) - 1 if e >= 0 else 0) <= Fraction(1, 1 << 31)


def test_a_mantissa_that_rounds_up_to_one_is_renormalised() -> None:
    almost_one = 1 - 2.0**-40
    assert reference.dyadic_multiplier(almost_one) == (1 << 30, 30)
    assert reference.dyadic_multiplier(0.5) == (1 << 30, 31)


@pytest.mark.parametrize("real", [0.0, -1.0, math.inf, math.nan])
def test_a_multiplier_must_be_positive_and_finite(real: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        reference.dyadic_multiplier(real)


@given(
    st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=1, max_size=20),
    st.floats(min_value=1e-9, max_value=0.9),
    st.integers(0, 255),
)
def test_requantize_equals_rational_half_up_rounding(sums: list[int], real: float, zero_point: int) -> None:
    m, e = reference.dyadic_multiplier(real)
    expected = [min(255, max(0, math.floor(Fraction(acc * m, 1 << e) + Fraction(1, 2)) + zero_point)) for acc in sums]
    found = reference.requantize(np.array(sums), real, zero_point, ACTIVATION_U8)
    assert found.tolist() == expected


def test_requantize_rounds_ties_up_and_uses_one_multiplier_per_channel() -> None:
    sums = np.array([[1, 3, -1, -3], [1, 3, -1, -3]])
    found = reference.requantize(sums, np.array([[0.5], [0.25]]), 0, WIDE)
    assert found.tolist() == [[1, 2, 0, -1], [0, 1, 0, -1]]


def test_requantize_beyond_shift_62_is_zero_and_extremes_do_not_overflow() -> None:
    largest = np.array([2**31 - 1, -(2**31) + 1])
    assert reference.requantize(largest, 1e-30, 7, ACTIVATION_U8).tolist() == [7, 7]
    nearly_one = 1 - 2.0**-31
    assert reference.requantize(largest, nearly_one, 0, WIDE).tolist() == [2**15 - 1, -(2**15)]


def test_requantize_refuses_what_32_bits_cannot_hold() -> None:
    with pytest.raises(ValueError, match="does not fit 32 bits"):
        reference.requantize(np.array([2**31]), 0.5, 0, INT8)
    with pytest.raises(ValueError, match="too large"):
        reference.requantize(np.array([1]), 2.0**32, 0, INT8)


def test_linear_is_exact_where_float32_is_not() -> None:
    rng = np.random.default_rng(1)
    x, w = rng.integers(0, 256, (2, 4000)), rng.integers(-128, 128, (4000, 3))
    found = reference.linear(x, w)
    assert found.tolist() == [
        [sum(int(a) * int(b) for a, b in zip(row, w[:, n], strict=True)) for n in range(3)] for row in x
    ]


@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride", "padding", "dilation", "groups"),
    [
        (3, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
        (4, 6, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), 2),
        (4, 4, (3, 3), (2, 2), (0, 0, 0, 0), (2, 1), 4),
        (2, 3, (1, 1), (3, 2), (0, 1, 0, 0), (1, 1), 1),
    ],
)
def test_conv2d_equals_nested_loops(channels, out, kernel, stride, padding, dilation, groups) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(2)
    x = rng.integers(-128, 128, (2, channels, 7, 8))
    w = rng.integers(-128, 128, (out, channels // groups, *kernel))
    found = reference.conv2d(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)
    for n, o, p, q in itertools.product(*map(range, found.shape)):
        first = o // (out // groups) * (channels // groups)
        total = 0
        for c, r, s in itertools.product(*map(range, w.shape[1:])):
            row = p * stride[0] + r * dilation[0] - padding[0]
            column = q * stride[1] + s * dilation[1] - padding[1]
            if 0 <= row < 7 and 0 <= column < 8:
                total += int(x[n, first + c, row, column]) * int(w[o, c, r, s])
        assert found[n, o, p, q] == total


def test_conv2d_refuses_groups_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="2 group"):
        reference.conv2d(np.zeros((1, 3, 4, 4)), np.zeros((2, 2, 1, 1)), groups=2)


def test_quantize_rounds_half_to_even_and_clips() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, 1e9, -1e9])
    assert reference.quantize(values, 1.0, 10, ACTIVATION_U8).tolist() == [10, 12, 12, 10, 255, 0]
    assert reference.quantize(values, 1.0, 0, INT8).tolist() == [0, 2, 2, 0, 127, -128]


def test_reduced_range_drops_one_bit() -> None:
    reduced = weight_per_channel(8, reduced_range=True)
    assert reference.quantize(np.array([1e9, -1e9]), 1.0, 0, reduced).tolist() == [63, -64]


def test_dequantize_inverts_quantize_on_the_grid() -> None:
    codes = np.arange(256)
    values = reference.dequantize(codes, np.float32(0.1), 17)
    assert reference.quantize(values, np.float32(0.1), 17, ACTIVATION_U8).tolist() == codes.tolist()


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30))
def test_dynamic_quantizer_keeps_zero_exact_and_covers_the_range(values: list[float]) -> None:
    x = np.array(values, np.float32)
    scale, zero_point = reference.dynamic_quantizer(x)
    codes = reference.quantize(x, scale, zero_point, ACTIVATION_U8)
    assert 0 <= zero_point <= 255
    restored = reference.dequantize(codes, scale, zero_point)
    assert np.all(np.abs(restored - x) <= scale * 1.01 + 1e-30)
    assert reference.dequantize(np.array([zero_point]), scale, zero_point) == 0


def test_quantize_rows_is_symmetric_per_row_and_group_and_pads_the_last() -> None:
    x = np.array([[1.0, -2.0, 4.0, 0.5, 10.0], [0.0, 0.0, 0.0, 0.0, -3.0]])
    codes, scale = reference.quantize_rows(x, 2)
    assert codes.shape == (2, 5)
    np.testing.assert_allclose(scale * 127, [[2, 4, 10], [0, 0, 3]], rtol=1e-6)
    assert codes.tolist() == [[64, -127, 127, 16, 127], [0, 0, 0, 0, -127]]
