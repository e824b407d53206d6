"""Spot check: exact expected values of a few outputs of an op, where computing all of them would take minutes.

A sampled output is computed by `kernels.reference` from the rows, columns or patches it depends on, so the check is as
exact as the reference itself. Corners are always among the samples: that is where tiles end and padding begins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kernels import reference
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape
from kernels.random_layer import RandomLayer

Array = np.ndarray[Any, Any]
ROWS, COLUMNS = 48, 48


@dataclass(frozen=True)
class Sample:
    """Where to look in an output of shape (rows, columns) and what must stand there, both (samples, columns)."""

    rows: Array
    columns: Array
    expected: Array

    def of(self, output: Array) -> Array:
        return np.asarray(output[np.ix_(self.rows, self.columns)])


def sample(layer: RandomLayer, seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> Sample:
    """Samples of a linear op (rows of its output), or of a convolution (rows are output pixels, in NHWC order)."""
    rng = np.random.default_rng([seed, *layer.op.signature.encode()])
    match layer.op:
        case LinearShape():
            picked, channels = _pick(rng, layer.op.m, rows), _pick(rng, layer.op.n, columns)
            return Sample(picked, channels, reference.expected_output(_part(layer, layer.op, picked, channels)))
        case Conv2dShape():
            height, width = layer.op.out_size
            picked = _pick(rng, layer.op.batch * height * width, rows)
            channels = _pick(rng, layer.op.out_channels, columns)
            return Sample(picked, channels, _conv(layer, layer.op, picked, channels))
        case EmbeddingShape():
            picked, channels = _pick(rng, layer.op.tokens, rows), np.arange(layer.op.width)
            return Sample(picked, channels, reference.expected_output(replace(layer, input=layer.input[picked])))


def _pick(rng: np.random.Generator, size: int, count: int) -> Array:
    """Sorted distinct indices, the first and the last among them."""
    if size <= count:
        return np.arange(size)
    return np.unique(np.concatenate([[0, size - 1], rng.choice(size, count - 2, replace=False)]))


def _part(layer: RandomLayer, op: LinearShape, rows: Array, columns: Array) -> RandomLayer:
    """The same op for some rows and output channels alone."""
    scale = layer.weight_scale
    return replace(
        layer,
        op=LinearShape(len(rows), op.k, len(columns), op.bias),
        input=layer.input[rows],
        weight=layer.weight[:, columns],
        weight_scale=None if scale is None else scale[..., columns],
        bias=None if layer.bias is None else layer.bias[columns],
    )


def _conv(layer: RandomLayer, op: Conv2dShape, pixels: Array, channels: Array) -> Array:
    number = np.float64 if layer.recipe is None else np.int64
    zero = layer.input_zero_point if layer.recipe is not None else 0
    per_group = op.in_channels // op.groups
    group = channels // (op.out_channels // op.groups)
    weight = layer.weight[channels].astype(number).reshape(len(channels), -1)
    sums = np.zeros((len(pixels), len(channels)), number)
    for index, pixel in enumerate(pixels):
        patch = _patch(layer.input, op, int(pixel), zero).astype(number)
        by_group = patch.reshape(op.groups, per_group * op.kernel[0] * op.kernel[1])
        sums[index] = np.einsum("ck,ck->c", weight, by_group[group])
    if layer.recipe is None:
        return sums if layer.bias is None else sums + layer.bias[channels].astype(np.float64)
    assert layer.weight_scale is not None
    scale = np.float64(np.float32(layer.input_scale)) * layer.weight_scale[channels].astype(np.float64)
    if layer.bias_codes is not None:
        sums = sums + layer.bias_codes[channels]
    if layer.output_scale is None:
        return np.asarray(sums * scale)
    assert layer.recipe.activation is not None
    multiplier = scale / np.float64(np.float32(layer.output_scale))
    return reference.requantize(sums, multiplier, layer.output_zero_point, layer.recipe.activation)


def _patch(x: Array, op: Conv2dShape, pixel: int, zero: int) -> Array:
    """What one output pixel sees: (channels, kernel height, kernel width), less the zero point, 0 in the padding."""
    height, width = op.out_size
    image, rest = divmod(pixel, height * width)
    row, column = divmod(rest, width)
    patch = np.zeros((op.in_channels, *op.kernel), np.float64 if x.dtype.kind == "f" else np.int64)
    for r in range(op.kernel[0]):
        y = row * op.stride[0] - op.padding[0] + r * op.dilation[0]
        for s in range(op.kernel[1]):
            z = column * op.stride[1] - op.padding[1] + s * op.dilation[1]
            if 0 <= y < op.height and 0 <= z < op.width:
                patch[:, r, s] = x[image, :, y, z].astype(patch.dtype) - zero
    return patch
