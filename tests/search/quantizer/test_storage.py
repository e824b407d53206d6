"""Bytes on disk are those of the ONNX tensors that hold the same values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from kernels.recipe import Granularity, Numerics
from search.quantizer.clipping import quantize_weight
from search.quantizer.storage import code_bytes, layer_bytes, round_int32_bias, weight_bytes


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1001])
def test_packed_codes_take_what_onnx_packs(count):
    codes = np.zeros(count, dtype=np.int8)
    assert code_bytes(count, 8) == len(onnx.numpy_helper.from_array(codes, "w8").raw_data)
    four = onnx.helper.make_tensor("w4", onnx.TensorProto.INT4, [count], codes)
    assert code_bytes(count, 4) == len(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(four)).raw_data)


def test_scales_zero_points_and_bias_are_counted():
    weight = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    symmetric = Numerics(4, symmetric=True, signed=True, granularity=Granularity.CHANNEL)
    asymmetric = Numerics(4, symmetric=False, signed=True, granularity=Granularity.CHANNEL)
    grouped = Numerics(4, symmetric=True, signed=True, granularity=Granularity.GROUP, group_size=4)
    assert weight_bytes(quantize_weight(weight, symmetric, 0, "min-max")) == 27 + 6 * 4
    assert weight_bytes(quantize_weight(weight, asymmetric, 0, "min-max")) == 27 + 6 * 4 + 3
    assert weight_bytes(quantize_weight(weight, grouped, 0, "min-max")) == 27 + 6 * 3 * 4
    assert layer_bytes(quantize_weight(weight, symmetric, 0, "min-max"), np.zeros(6, np.float32)) == 27 + 24 + 24


def test_int32_bias_is_rounded_at_the_product_of_scales():
    codes = round_int32_bias(np.array([1.0, -0.26, 1e12]), 0.5, np.array([0.5, 0.5, 0.5], np.float32))
    assert codes.tolist() == [4, -1, 2**31 - 1]
    assert codes.dtype == np.int32
