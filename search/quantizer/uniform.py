"""Uniform quantization in numpy: the definition of every code that simulation and export share.

A value x becomes code q = clip(round_half_even(x / scale) + zero_point, code_min, code_max) and is read back as
(q - zero_point) * scale, all in float32, as ONNX QuantizeLinear and DequantizeLinear define it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.errors import UnsupportedPrecision
from kernels.recipe import Granularity, Numerics
from search.assembly import ActivationQuantizer, QuantizedWeight
from search.errors import BadSubmission

Array = np.ndarray[Any, Any]

# The smallest scale ever written: s_x * s_w, the scale of an int32 bias, must stay a normal float32.
SMALLEST_SCALE = np.float32(2.0**-60)


@dataclass(frozen=True)
class WeightRows:
    """A weight as rows that share one scale each, shape (rows, elements), and the way back.

    `tensor` granularity has one row, `channel` one per output channel, `group` one per (channel, group) in
    channel-major order; the last group of a channel is padded with zeros, which every rule here ignores because
    all ranges contain 0.
    """

    values: Array
    shape: tuple[int, ...]
    channel_axis: int
    numerics: Numerics

    def restore(self, rows: Array) -> Array:
        """Values given per row element, back in the weight's layout."""
        channels = self.shape[self.channel_axis]
        if self.numerics.granularity is Granularity.GROUP:
            reduction = self.shape[1 - self.channel_axis]
            rows = rows.reshape(channels, -1)[:, :reduction]
        if self.numerics.granularity is Granularity.TENSOR:
            return rows.reshape(self.shape)
        rest = tuple(size for axis, size in enumerate(self.shape) if axis != self.channel_axis)
        return np.ascontiguousarray(np.moveaxis(rows.reshape(channels, *rest), 0, self.channel_axis))

    def scale_shape(self, per_row: Array) -> Array:
        """One value per row in the shape that `QuantizedWeight.scale` has."""
        if self.numerics.granularity is Granularity.TENSOR:
            return per_row.reshape(())
        if self.numerics.granularity is Granularity.CHANNEL:
            return per_row.reshape(-1)
        grid = per_row.reshape(self.shape[self.channel_axis], -1)
        return np.ascontiguousarray(grid if self.channel_axis == 0 else grid.T)


def weight_rows(weight: Array, numerics: Numerics, channel_axis: int) -> WeightRows:
    """The weight cut into rows that share a scale.

    Raises `UnsupportedPrecision` when the granularity does not fit the weight (groups need two dimensions) or the
    codes do not fit int8, with the shape and the reason.
    """
    if numerics.code_min < -128 or numerics.code_max > 127 or numerics.code_max < 1:
        raise UnsupportedPrecision(
            f"weight codes {numerics.code_min}..{numerics.code_max} cannot be stored as int8",
            hint="weights take 2 to 8 signed bits, or 2 to 7 unsigned ones",
        )
    shape = tuple(weight.shape)
    values = np.asarray(weight, dtype=np.float32)
    if numerics.granularity is Granularity.TENSOR:
        return WeightRows(values.reshape(1, -1), shape, channel_axis, numerics)
    rows = np.moveaxis(values, channel_axis, 0).reshape(shape[channel_axis], -1)
    if numerics.granularity is Granularity.CHANNEL:
        return WeightRows(rows, shape, channel_axis, numerics)
    if numerics.granularity is not Granularity.GROUP or not numerics.group_size:
        raise UnsupportedPrecision(
            f"weights cannot have granularity {numerics.granularity.value!r}", hint="tensor, channel or group"
        )
    if values.ndim != 2:
        raise UnsupportedPrecision(
            f"groups of {numerics.group_size} need a weight matrix, this weight has shape {shape}",
            hint="offer a per-channel precision for this op",
        )
    padding = -rows.shape[1] % numerics.group_size
    rows = np.pad(rows, ((0, 0), (0, padding))).reshape(-1, numerics.group_size)
    return WeightRows(rows, shape, channel_axis, numerics)


def encode(values: Array, scale: Array, zero_point: Array, numerics: Numerics) -> Array:
    """Integer codes (int32) of float values; `scale` and `zero_point` broadcast against them."""
    codes = np.rint(values / scale) + zero_point
    return np.asarray(np.clip(codes, numerics.code_min, numerics.code_max), dtype=np.int32)


def range_parameters(low: Array, high: Array, numerics: Numerics) -> tuple[Array, Array]:
    """Scale (float32) and zero point (int32) per range [low, high], which is first widened to contain 0.

    Symmetric numerics map the larger end to code_max (at 2 bits to 1.5, see `search.quantizer.clipping`) and have
    zero point 0. Asymmetric numerics spread the range over all codes and round the zero point to an integer, so
    that 0 is exact. An empty range (a constant 0) gets scale 1, which represents it exactly.
    """
    low = np.minimum(np.asarray(low, dtype=np.float64), 0.0)
    high = np.maximum(np.asarray(high, dtype=np.float64), 0.0)
    if numerics.symmetric:
        reach = np.maximum(high, -low)
        scale = reach / symmetric_reach(numerics)
    else:
        scale = (high - low) / (numerics.code_max - numerics.code_min)
    scale = np.where(scale > 0, np.maximum(scale, SMALLEST_SCALE), 1.0).astype(np.float32)
    if numerics.symmetric:
        return scale, np.zeros(scale.shape, dtype=np.int32)
    zero_point = np.clip(np.rint(numerics.code_min - low / scale), numerics.code_min, numerics.code_max)
    return scale, zero_point.astype(np.int32)


def symmetric_reach(numerics: Numerics) -> float:
    """The code that the largest magnitude maps to without clipping: code_max, but 1.5 for 2-bit codes -2..1.

    With codes -2..1 the full range at code 1 would waste half of the levels on nothing.
    """
    top = float(numerics.code_max)
    return 1.5 if top == 1 else top


def quantize_rows(rows: WeightRows, scale: Array, zero_point: Array | None = None) -> QuantizedWeight:
    """The weight with one scale (and zero point) per row."""
    numerics = rows.numerics
    scale = np.maximum(np.asarray(scale, dtype=np.float32), SMALLEST_SCALE).reshape(-1)
    points = np.zeros(scale.shape, dtype=np.int32) if zero_point is None else zero_point.reshape(-1)
    codes = encode(rows.values, scale[:, None], points[:, None], numerics)
    return QuantizedWeight(
        codes=rows.restore(codes).astype(np.int8),
        scale=rows.scale_shape(scale),
        zero_point=None if numerics.symmetric else rows.scale_shape(points).astype(np.int8),
        channel_axis=rows.channel_axis,
        bits=numerics.bits,
        group_size=numerics.group_size if numerics.granularity is Granularity.GROUP else None,
    )


def scale_channels(weight: QuantizedWeight, factors: Array) -> QuantizedWeight:
    """The same codes with each output channel's scales multiplied by its factor, shape (C,).

    A per-tensor scale becomes one per channel. Raises `BadSubmission` when a group weight has more than two axes.
    """
    factors = np.asarray(factors, dtype=np.float64)
    if weight.group_size is not None:
        if weight.codes.ndim != 2:
            raise BadSubmission(f"group scales of a weight of shape {weight.codes.shape}", code="bad_weight")
        spread = factors[:, None] if weight.channel_axis == 0 else factors[None, :]
        scale = weight.scale * spread
    else:
        scale = weight.scale * factors
    zero_point = weight.zero_point
    if zero_point is not None and zero_point.shape != scale.shape:
        zero_point = np.broadcast_to(zero_point, scale.shape).copy()
    return QuantizedWeight(
        codes=weight.codes,
        scale=np.asarray(scale, dtype=np.float32),
        zero_point=zero_point,
        channel_axis=weight.channel_axis,
        bits=weight.bits,
        group_size=weight.group_size,
    )


def fake_quantize(values: Array, quantizer: ActivationQuantizer) -> Array:
    """What a reader of the quantized tensor sees: float32 values on the quantizer's grid."""
    scale, zero_point = np.float32(quantizer.scale), quantizer.zero_point
    numerics = quantizer.numerics
    codes = np.clip(
        np.rint(np.asarray(values, dtype=np.float32) / scale) + zero_point, numerics.code_min, numerics.code_max
    )
    return np.asarray((codes - zero_point).astype(np.float32) * scale, dtype=np.float32)
