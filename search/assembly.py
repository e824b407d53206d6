"""Assembly: an allocation made concrete, the one description that simulation and export both obey."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernels.precision import Precision
from kernels.recipe import Numerics, Recipe


@dataclass(frozen=True)
class QuantizedWeight:
    """Integer codes of a weight and how to read them back: `value = (codes - zero_point) * scale`.

    `codes` are int8 in the layout that reaches the node. `scale` (float32) is () for one scale, (C,) along
    `channel_axis` for one per output channel, or, with `group_size` g, of the codes' 2-D shape with the reduction
    axis (the other axis) divided by g (rounded up). `zero_point` has the shape of `scale`, or is None for 0.
    """

    codes: np.ndarray[Any, np.dtype[np.int8]]
    scale: np.ndarray[Any, np.dtype[np.float32]]
    zero_point: np.ndarray[Any, np.dtype[np.int8]] | None
    channel_axis: int
    bits: int
    group_size: int | None = None

    def dequantize(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The float32 weight that the codes stand for, in the codes' layout."""
        codes = self.codes.astype(np.float32)
        if self.zero_point is not None:
            codes = codes - self._spread(self.zero_point).astype(np.float32)
        return np.asarray(codes * self._spread(self.scale), dtype=np.float32)

    def _spread(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if values.ndim == 0:
            return values
        if self.group_size is not None:
            axis = 1 - self.channel_axis
            return np.repeat(values, self.group_size, axis=axis).take(range(self.codes.shape[axis]), axis=axis)
        shape = [1] * self.codes.ndim
        shape[self.channel_axis] = -1
        return values.reshape(shape)


@dataclass(frozen=True)
class ActivationQuantizer:
    """A static quantizer of one tensor: codes = clip(round_half_even(x / scale) + zero_point, code_min, code_max)."""

    tensor: str
    scale: float
    zero_point: int
    numerics: Numerics


@dataclass(frozen=True)
class Candidate:
    """A finished quantizer for one layer at one precision: calibrated, corrected, ready to be built.

    `bias` is the complete bias after the affine refit, shape (C,), or None when the layer gets none. `size_bytes`
    is what the layer's constants take on disk: packed codes, scales, zero points and bias. `residual` is the part of
    the layer output's variance that is still wrong after the refit (0 = exact). `clipping` names the rule that won.
    """

    layer: str
    precision: Precision
    recipe: Recipe
    weight: QuantizedWeight
    bias: np.ndarray[Any, np.dtype[np.float32]] | None
    clipping: str
    residual: float
    size_bytes: int


@dataclass(frozen=True)
class Assembly:
    """What is built: a candidate per quantized layer (absent layers stay in full precision) and the tensor quantizers.

    `quantizers` maps a tensor to its one quantizer. Who sees the quantized value: if the tensor is in
    `output_quantized` its producer quantizes it and *every* reader sees the quantized value; otherwise only the
    layers of this assembly whose recipe quantizes activations statically do, other readers see the float.
    Dynamic precisions quantize what they read by themselves and need no entry.
    """

    candidates: Mapping[str, Candidate]
    quantizers: Mapping[str, ActivationQuantizer]
    output_quantized: frozenset[str] = field(default=frozenset())

    def precision_of(self, layer: str) -> str:
        """The layer's precision name, `fp32` when it is not quantized."""
        return self.candidates[layer].precision.name if layer in self.candidates else "fp32"
