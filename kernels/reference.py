"""Reference: exact integer arithmetic of quantized layers, the definition every backend is compared with.

Slow and obvious on purpose. Accumulators are int64 and never rounded. The one place where rounding to codes happens
after an integer sum is `requantize`; its rule is a 31-bit dyadic multiplier with half-up rounding (HAWQ-V3, arXiv
2011.10680, section 3.2, with the multiplier renormalised where its mantissa rounds to 2^31).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape
from kernels.random_layer import RandomLayer
from kernels.recipe import Numerics

Array = np.ndarray[Any, Any]
MANTISSA_BITS = 31
MAX_SHIFT = 62
MAX_ACCUMULATOR = 1 << 31


def quantize(values: Array, scale: Array | float, zero_point: Array | int, numerics: Numerics) -> Array:
    """Codes clip(round_half_even(values / scale) + zero_point), int64; the division is float32, as ONNX defines it."""
    steps = np.rint(np.asarray(values, np.float32) / np.asarray(scale, np.float32)).astype(np.int64)
    return np.asarray(np.clip(steps + zero_point, numerics.code_min, numerics.code_max))


def dequantize(codes: Array, scale: Array | float, zero_point: Array | int = 0) -> Array:
    """float64 values (codes - zero_point) * scale."""
    return np.asarray((codes.astype(np.int64) - zero_point) * np.asarray(scale, np.float64))


def linear(x: Array, weight: Array) -> Array:
    """(M, K) x (K, N) in the inputs' own type: int64 sums of integer inputs are exact."""
    return np.asarray(x @ weight)


def conv2d(
    x: Array,
    weight: Array,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Array:
    """Convolution of (N, C, H, W) with (O, C/groups, R, S) in the inputs' own type.

    `padding` is (top, left, bottom, right) and adds zeros: integer inputs must have their zero point subtracted.
    """
    batch, channels, _, _ = x.shape
    out_channels, per_group, kernel_h, kernel_w = weight.shape
    if channels != per_group * groups or out_channels % groups:
        raise ValueError(f"weight {weight.shape} in {groups} group(s) does not fit {channels} input channels")
    top, left, bottom, right = padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    out_h = (padded.shape[2] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (padded.shape[3] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    grouped = weight.reshape(groups, out_channels // groups, per_group, kernel_h, kernel_w)
    total = np.zeros((batch, groups, out_channels // groups, out_h, out_w), np.result_type(x, weight))
    for r in range(kernel_h):
        rows = slice(r * dilation[0], r * dilation[0] + stride[0] * (out_h - 1) + 1, stride[0])
        for s in range(kernel_w):
            columns = slice(s * dilation[1], s * dilation[1] + stride[1] * (out_w - 1) + 1, stride[1])
            window = padded[:, :, rows, columns].reshape(batch, groups, per_group, out_h, out_w)
            total += np.einsum("ngchw,goc->ngohw", window, grouped[:, :, :, r, s])
    return total.reshape(batch, out_channels, out_h, out_w)


def dyadic_multiplier(real: float) -> tuple[int, int]:
    """(m, e) with m / 2^e nearest to a positive `real` and 2^30 <= m < 2^31.

    A mantissa that rounds up to 2^31 does not fit 31 bits and becomes (2^30, e - 1), the same number.
    """
    if not (math.isfinite(real) and real > 0):
        raise ValueError(f"a requantization multiplier must be positive and finite, not {real}")
    mantissa, exponent = math.frexp(real)
    m = math.floor(mantissa * (1 << MANTISSA_BITS) + 0.5)
    e = MANTISSA_BITS - exponent
    return (m >> 1, e - 1) if m == 1 << MANTISSA_BITS else (m, e)


def requantize(accumulator: Array, multiplier: Array | float, zero_point: int, numerics: Numerics) -> Array:
    """Codes clip(floor(acc * multiplier + 1/2) + zero_point), int64, with the multiplier held as m / 2^e.

    `multiplier` broadcasts against the accumulator, whose magnitude must stay below 2^31. Shifts beyond 62 give 0; a
    multiplier of 2^31 and more (e < 1) is refused, no quantizer has one.
    """
    acc = accumulator.astype(np.int64)
    if acc.size and int(np.abs(acc).max()) >= MAX_ACCUMULATOR:
        raise ValueError(f"accumulator {int(np.abs(acc).max())} does not fit 32 bits")
    reals = np.asarray(multiplier, np.float64)
    pairs = [dyadic_multiplier(float(value)) for value in reals.ravel()]
    if any(e < 1 for _, e in pairs):
        raise ValueError(f"a multiplier of {float(reals.max())} is too large to requantize with")
    m = np.array([pair[0] for pair in pairs], np.int64).reshape(reals.shape)
    e = np.array([pair[1] for pair in pairs], np.int64).reshape(reals.shape)
    shift = np.minimum(e, MAX_SHIFT)
    rounded = (acc * m + (np.int64(1) << (shift - 1))) >> shift
    codes = np.where(e > MAX_SHIFT, 0, rounded) + zero_point
    return np.asarray(np.clip(codes, numerics.code_min, numerics.code_max))


def dynamic_quantizer(x: Array) -> tuple[float, int]:
    """Scale and zero point that ONNX DynamicQuantizeLinear takes from a whole tensor (uint8, range includes 0)."""
    low = np.float32(min(0.0, float(x.min())))
    high = np.float32(max(0.0, float(x.max())))
    scale = np.float32((high - low) / np.float32(255))
    if scale == 0:
        return 1.0, 0
    return float(scale), int(np.clip(np.rint(-low / scale), 0, 255))


def quantize_rows(x: Array, group_size: int) -> tuple[Array, Array]:
    """Symmetric int8 codes (M, K) of every row and group of K, and their scales (M, ceil(K / group_size))."""
    rows, width = x.shape
    padded = np.pad(np.asarray(x, np.float32), ((0, 0), (0, -width % group_size)))
    grouped = padded.reshape(rows, -1, group_size)
    scale = np.abs(grouped).max(axis=2) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.rint(grouped * inverse[:, :, None]).astype(np.int64).reshape(rows, -1)[:, :width], scale


def expected_output(layer: RandomLayer) -> Array:
    """What a layer computes by its recipe: int64 codes where the output is quantized, else float64 values."""
    match layer.op:
        case LinearShape():
            return _expected_linear(layer)
        case Conv2dShape():
            return _expected_conv(layer, layer.op)
        case EmbeddingShape():
            rows = layer.weight[layer.input]
            if layer.weight_scale is None:
                return rows.astype(np.float64)
            return dequantize(rows, layer.weight_scale[layer.input][:, None])


def _expected_linear(layer: RandomLayer) -> Array:
    bias = np.float64(0) if layer.bias is None else layer.bias.astype(np.float64)
    if layer.recipe is None:
        return linear(layer.input.astype(np.float64), layer.weight.astype(np.float64)) + bias
    assert layer.weight_scale is not None
    weight = layer.weight.astype(np.int64)
    scale = layer.weight_scale.astype(np.float64)
    activation, inside = layer.recipe.activation, layer.recipe.internal_activation
    if activation is not None and activation.dynamic:
        input_scale, zero = dynamic_quantizer(layer.input)
        codes = quantize(layer.input, input_scale, zero, activation)
        return np.asarray(linear(codes - zero, weight) * (input_scale * scale) + bias)
    if activation is not None:
        codes = layer.input.astype(np.int64) - layer.input_zero_point
        if layer.bias is None:
            return linear(codes, weight) * (np.float64(np.float32(layer.input_scale)) * scale)
        accumulator = linear(codes, weight) + layer.bias_codes
        return np.asarray(accumulator * (np.float64(np.float32(layer.input_scale)) * scale))
    group = layer.recipe.weight.group_size
    if inside is None or group is None:
        spread = scale if group is None else np.repeat(scale, group, axis=0)[: weight.shape[0]]
        return linear(layer.input.astype(np.float64), weight * spread) + bias
    codes, step = quantize_rows(layer.input, group)
    total = np.zeros((codes.shape[0], weight.shape[1]))
    for block in range(scale.shape[0]):
        at = slice(block * group, (block + 1) * group)
        total += linear(codes[:, at], weight[at]) * step[:, block, None].astype(np.float64) * scale[block]
    return np.asarray(total + bias)


def _expected_conv(layer: RandomLayer, op: Conv2dShape) -> Array:
    geometry: dict[str, Any] = {
        "stride": op.stride,
        "padding": op.padding,
        "dilation": op.dilation,
        "groups": op.groups,
    }
    if layer.recipe is None:
        result = conv2d(layer.input.astype(np.float64), layer.weight.astype(np.float64), **geometry)
        return result if layer.bias is None else result + layer.bias.astype(np.float64)[:, None, None]
    assert layer.weight_scale is not None
    assert layer.output_scale is not None
    assert layer.recipe.activation is not None
    codes = layer.input.astype(np.int64) - layer.input_zero_point
    accumulator = conv2d(codes, layer.weight.astype(np.int64), **geometry)
    if layer.bias_codes is not None:
        accumulator = accumulator + layer.bias_codes.astype(np.int64)[:, None, None]
    scale = np.float64(np.float32(layer.input_scale)) * layer.weight_scale.astype(np.float64)
    multiplier = (scale / np.float64(np.float32(layer.output_scale)))[:, None, None]
    return requantize(accumulator, multiplier, layer.output_zero_point, layer.recipe.activation)
