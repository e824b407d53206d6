"""Bytes on disk: what a quantized layer's constants take in the exported file, and how its bias is stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.recipe import Recipe
from search.assembly import QuantizedWeight
from search.graph import Graph, Layer

_FLOAT_BYTES = 4
# int32 biases keep this distance to overflow, so that adding the accumulator cannot wrap either.
INT32_BIAS_LIMIT = float(2**30)


def code_bytes(count: int, bits: int) -> int:
    """Bytes of `count` packed codes: ONNX has 4-bit tensors (two per byte, the last one padded), else 8-bit ones."""
    return (count + 1) // 2 if bits <= 4 else count


def weight_bytes(weight: QuantizedWeight) -> int:
    """Bytes of packed codes, float32 scales, and zero points (packed like codes) of one weight."""
    points = 0 if weight.zero_point is None else code_bytes(weight.zero_point.size, weight.bits)
    return code_bytes(weight.codes.size, weight.bits) + _FLOAT_BYTES * weight.scale.size + points


def layer_bytes(weight: QuantizedWeight, bias: np.ndarray[Any, Any] | None) -> int:
    """Bytes of a layer's constants: the weight and a bias of four bytes per channel, float32 or int32 alike."""
    return weight_bytes(weight) + (0 if bias is None else _FLOAT_BYTES * bias.size)


def has_int32_bias(graph: Graph, layer: Layer, recipe: Recipe) -> bool:
    """True where the runtime adds the bias to the integer accumulator, as int32 at scale s_x * s_w.

    Conv and Gemm with static activations do; a MatMul keeps a float Add behind it, dynamic and weight-only
    precisions add a float bias.
    """
    return (
        recipe.activation is not None
        and not recipe.activation.dynamic
        and graph.nodes[layer.node].op_type in ("Conv", "ConvTranspose", "Gemm")
    )


def round_int32_bias(
    bias: np.ndarray[Any, Any], input_scale: float, weight_scale: np.ndarray[Any, Any]
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The bias codes int32(round(bias / (s_x * s_w))); float32 scales multiplied in float32, as the runtime does."""
    scale = np.float32(input_scale) * np.asarray(weight_scale, dtype=np.float32)
    codes = np.rint(np.asarray(bias, dtype=np.float64) / scale.astype(np.float64))
    return np.clip(codes, -(2**31), 2**31 - 1).astype(np.int32)
