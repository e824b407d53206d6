"""Integer biases: int32 codes at input scale × weight scale, added to the accumulator of an integer kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from search.assembly import QuantizedWeight

Array = np.ndarray[Any, Any]
# Half of int32: the accumulator is added on top and must not wrap either.
_LARGEST_BIAS_CODE = 1 << 30


def widen_dead_channels(weight: QuantizedWeight, bias: Array, input_scale: float) -> QuantizedWeight:
    """`weight` with larger scales where a channel is so small that its bias would overflow int32.

    An integer bias has scale `input_scale * weight scale`; a (nearly) all-zero channel would need a code beyond
    2^30. Its weights are far below the bias, so re-rounding them to a larger scale changes nothing visible.
    """
    scale = np.broadcast_to(weight.scale, bias.shape).astype(np.float64)
    smallest = np.abs(bias.astype(np.float64)) / (float(input_scale) * _LARGEST_BIAS_CODE)
    if np.all(scale >= smallest):
        return weight
    wider = np.maximum(scale, smallest * (1 + 1e-6)).astype(np.float32)
    shape = [1] * weight.codes.ndim
    shape[weight.channel_axis] = -1
    ratio = (scale / wider).reshape(shape)
    zero = 0 if weight.zero_point is None else np.broadcast_to(weight.zero_point, bias.shape).reshape(shape)
    codes = np.rint((weight.codes.astype(np.float64) - zero) * ratio) + zero
    zero_point = None if weight.zero_point is None else np.broadcast_to(weight.zero_point, bias.shape).copy()
    return QuantizedWeight(
        codes.astype(np.int8), wider, zero_point, weight.channel_axis, weight.bits, weight.group_size
    )


def bias_codes(weight: QuantizedWeight, bias: Array, input_scale: float) -> tuple[Array, Array]:
    """The bias as int32 codes at scale input scale × weight scale (multiplied in float32, as runtimes check it)."""
    scale = np.broadcast_to(np.float32(input_scale) * weight.scale.astype(np.float32), bias.shape).astype(np.float32)
    return np.rint(bias.astype(np.float64) / scale.astype(np.float64)).astype(np.int32), scale
