"""Uniform quantization: exact small cases, and what must hold for every weight and range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernels.errors import UnsupportedPrecision
from kernels.recipe import Granularity, Numerics
from search.assembly import ActivationQuantizer
from search.quantizer.uniform import (
    fake_quantize,
    quantize_rows,
    range_parameters,
    scale_channels,
    weight_rows,
)

U8 = Numerics(8, symmetric=False, signed=False, granularity=Granularity.TENSOR)
CHANNEL4 = Numerics(4, symmetric=True, signed=True, granularity=Granularity.CHANNEL)
GROUP4 = Numerics(4, symmetric=True, signed=True, granularity=Granularity.GROUP, group_size=2)
TENSOR8 = Numerics(8, symmetric=True, signed=True, granularity=Granularity.TENSOR)
ASYMMETRIC4 = Numerics(4, symmetric=False, signed=True, granularity=Granularity.CHANNEL)

finite = st.floats(-1e3, 1e3, width=32)


def test_codes_of_a_small_matrix_by_hand():
    weight = np.array([[1.0, -2.0, 7.0], [0.5, 0.25, -0.75]], dtype=np.float32)
    rows = weight_rows(weight, CHANNEL4, 0)
    quantized = quantize_rows(rows, np.array([1.0, 0.25]))
    assert quantized.codes.tolist() == [[1, -2, 7], [2, 1, -3]]
    assert quantized.dequantize().tolist() == weight.tolist()
    assert quantized.zero_point is None


def test_half_rounds_to_even():
    rows = weight_rows(np.array([[0.5, 1.5, 2.5, -0.5, -1.5]], dtype=np.float32), CHANNEL4, 0)
    assert quantize_rows(rows, np.array([1.0])).codes.tolist() == [[0, 2, 2, 0, -2]]


def test_groups_run_along_the_reduction_axis_and_the_last_may_be_short():
    weight = np.arange(1, 11, dtype=np.float32).reshape(5, 2)  # (K, N), channels on axis 1
    rows = weight_rows(weight, GROUP4, 1)
    assert rows.values.tolist() == [[1, 3], [5, 7], [9, 0], [2, 4], [6, 8], [10, 0]]
    quantized = quantize_rows(rows, np.arange(1, 7))
    assert quantized.scale.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert quantized.codes.shape == (5, 2)
    spread = np.repeat(quantized.scale, 2, axis=0)[:5]
    assert (quantized.dequantize() == quantized.codes * spread).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_group_layout_is_restored_for_either_channel_axis(axis):
    weight = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    rows = weight_rows(weight, GROUP4, axis)
    assert (rows.restore(rows.values) == weight).all()


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("numerics", [CHANNEL4, TENSOR8])
def test_every_layout_is_restored(axis, numerics):
    weight = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype(np.float32)
    rows = weight_rows(weight, numerics, axis)
    assert (rows.restore(rows.values) == weight).all()


def test_two_bit_codes_reach_one_and_a_half():
    two = Numerics(2, symmetric=True, signed=True, granularity=Granularity.CHANNEL)
    scale, _ = range_parameters(np.array([-3.0]), np.array([1.0]), two)
    assert scale.tolist() == [2.0]


@given(low=finite, high=finite)
def test_every_activation_range_contains_an_exact_zero(low, high):
    scale, point = range_parameters(np.array([min(low, high)]), np.array([max(low, high)]), U8)
    assert U8.code_min <= point[0] <= U8.code_max
    quantizer = ActivationQuantizer("x", float(scale[0]), int(point[0]), U8)
    assert fake_quantize(np.zeros(1, np.float32), quantizer)[0] == 0


@given(low=finite, high=finite, share=st.floats(0, 1))
def test_activations_inside_the_range_are_off_by_half_a_step(low, high, share):
    low, high = min(low, high, 0.0), max(low, high, 0.0)
    scale, point = range_parameters(np.array([low]), np.array([high]), U8)
    value = np.float32(low + share * (high - low))
    read = fake_quantize(np.array([value]), ActivationQuantizer("x", float(scale[0]), int(point[0]), U8))[0]
    # one more half step where rounding the zero point moved the range
    assert abs(read - value) <= scale[0] * 1.01 + 1e-30


@given(
    weight=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=5), elements=finite),
    numerics=st.sampled_from([CHANNEL4, TENSOR8, ASYMMETRIC4]),
)
@settings(deadline=None)
def test_round_trip_is_within_half_a_step_and_repeats_itself(weight, numerics):
    rows = weight_rows(weight, numerics, 0)
    scale, point = range_parameters(rows.values.min(1), rows.values.max(1), numerics)
    first = quantize_rows(rows, scale, point)
    assert first.codes.min() >= numerics.code_min
    assert first.codes.max() <= numerics.code_max
    read = first.dequantize()
    steps = np.broadcast_to(scale.reshape(-1, 1), (len(scale), read.size // len(scale)))
    half = 0.5 if numerics.symmetric else 1.0
    error = np.abs(weight_rows(read, numerics, 0).values - rows.values)
    assert (error <= half * steps * 1.001 + 1e-30).all()
    again = quantize_rows(weight_rows(read, numerics, 0), scale, point)
    assert (again.codes == first.codes).all()


@given(factors=hnp.arrays(np.float64, 3, elements=st.floats(0.01, 100)))
def test_scaling_channels_scales_the_weight_and_keeps_codes(factors):
    weight = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    for numerics in (CHANNEL4, GROUP4, TENSOR8, ASYMMETRIC4):
        rows = weight_rows(weight, numerics, 1)
        before = quantize_rows(rows, *range_parameters(rows.values.min(1), rows.values.max(1), numerics))
        after = scale_channels(before, factors)
        assert after.codes is before.codes
        np.testing.assert_allclose(after.dequantize(), before.dequantize() * factors, rtol=1e-5, atol=1e-30)


def test_a_constant_zero_tensor_has_a_safe_scale():
    scale, point = range_parameters(np.zeros(1), np.zeros(1), U8)
    assert scale.tolist() == [1.0]
    assert point.tolist() == [0]


@pytest.mark.parametrize(
    "numerics",
    [
        Numerics(8, symmetric=False, signed=False, granularity=Granularity.CHANNEL),
        Numerics(16, symmetric=True, signed=True, granularity=Granularity.CHANNEL),
        Numerics(1, symmetric=True, signed=True, granularity=Granularity.CHANNEL),
        Numerics(4, symmetric=True, signed=True, granularity=Granularity.ROW),
    ],
)
def test_weights_that_int8_cannot_hold_are_refused(numerics):
    with pytest.raises(UnsupportedPrecision) as refused:
        weight_rows(np.ones((2, 2), np.float32), numerics, 0)
    assert refused.value.hint


def test_groups_of_a_convolution_are_refused_with_its_shape():
    with pytest.raises(UnsupportedPrecision, match=r"\(2, 2, 3, 3\)"):
        weight_rows(np.ones((2, 2, 3, 3), np.float32), GROUP4, 0)
