"""Random layer: one op with random weights and input in a recipe's own number format, for timing and for checking.

Data is random and fills the whole code range: zeros would flatter kernels that skip them and hide saturation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape, OpShape
from kernels.precision import Precision
from kernels.recipe import Granularity, Numerics, Recipe

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RandomLayer:
    """The numbers of one op.

    `input` is float32 (conv NCHW, linear (M, K)) or, for an embedding, int64 row numbers; where the recipe quantizes
    activations statically it holds the *codes* (uint8 or int8) and `input_scale`, `input_zero_point` read them.
    `weight` holds float32 values (full precision) or int8 codes, in layout OIHW, (K, N) or (rows, width);
    `weight_scale` is (channels,) or, in groups of g along K, (K/g, N). `bias` is float32, on the grid
    input_scale * weight_scale where the kernel adds it as int32. `output_*` is set when the output is quantized.
    """

    op: OpShape
    precision: Precision
    recipe: Recipe | None
    input: Array
    weight: Array
    weight_scale: Array | None
    bias: Array | None
    input_scale: float = 1.0
    input_zero_point: int = 0
    output_scale: float | None = None
    output_zero_point: int = 0

    @property
    def is_static(self) -> bool:
        """True when `input` holds codes."""
        return self.recipe is not None and self.recipe.activation is not None and not self.recipe.activation.dynamic

    @property
    def bias_codes(self) -> Array | None:
        """The bias as int32 at scale input_scale * weight_scale; None without bias."""
        if self.bias is None:
            return None
        assert self.weight_scale is not None
        step = np.float64(np.float32(self.input_scale)) * self.weight_scale.astype(np.float64)
        return np.asarray(np.rint(self.bias / step), dtype=np.int32)


def random_layer(op: OpShape, precision: Precision, recipe: Recipe | None, seed: int = 0) -> RandomLayer:
    """An op over seeded random data; `recipe` None means full precision."""
    rng = np.random.default_rng([seed, *op.signature.encode()])
    channels, weight_shape, input_shape, reduction = _geometry(op)
    if recipe is None:
        return RandomLayer(
            op=op,
            precision=precision,
            recipe=None,
            input=_float_input(rng, op, input_shape),
            weight=(rng.standard_normal(weight_shape) / np.sqrt(reduction)).astype(np.float32),
            weight_scale=None,
            bias=rng.standard_normal(channels).astype(np.float32) if getattr(op, "bias", False) else None,
        )
    weight = _codes(rng, recipe.weight, weight_shape)
    weight_scale = _weight_scale(rng, recipe.weight, op, channels)
    activation = recipe.activation
    static = activation is not None and not activation.dynamic
    is_symmetric = activation is not None and activation.symmetric
    input_scale = float(np.float32(rng.uniform(0.02, 0.04))) if static else 1.0
    zero_point = 0
    if static:
        zero_point = 0 if is_symmetric else int(rng.integers(100, 140))
    # Standard deviation of the accumulated product of two independent, roughly uniform code distributions.
    spread = input_scale * 74 * float(np.mean(weight_scale)) * (recipe.weight.code_max * 0.58) * np.sqrt(reduction)
    output_scale = float(np.float32(spread / 32)) if recipe.output_quantized else None
    bias = None
    if getattr(op, "bias", False):
        bias = (rng.standard_normal(channels) * (spread if static else 1.0)).astype(np.float32)
        if static:
            step = np.float32(input_scale) * weight_scale.astype(np.float32)
            bias = (np.rint(bias / step) * step).astype(np.float32)
    return RandomLayer(
        op=op,
        precision=precision,
        recipe=recipe,
        input=_codes(rng, activation, input_shape) if activation and static else _float_input(rng, op, input_shape),
        weight=weight,
        weight_scale=weight_scale,
        bias=bias,
        input_scale=input_scale,
        input_zero_point=zero_point,
        output_scale=output_scale,
        output_zero_point=int(rng.integers(100, 140)) if output_scale is not None and not is_symmetric else 0,
    )


def _geometry(op: OpShape) -> tuple[int, tuple[int, ...], tuple[int, ...], int]:
    """Output channels, weight shape, input shape and products summed per output."""
    match op:
        case LinearShape():
            return op.n, (op.k, op.n), (op.m, op.k), op.k
        case Conv2dShape():
            per_group = op.in_channels // op.groups
            weight = (op.out_channels, per_group, *op.kernel)
            return op.out_channels, weight, (op.batch, op.in_channels, op.height, op.width), int(np.prod(weight[1:]))
        case EmbeddingShape():
            return op.rows, (op.rows, op.width), (op.tokens,), 1


def _float_input(rng: np.random.Generator, op: OpShape, shape: tuple[int, ...]) -> Array:
    if isinstance(op, EmbeddingShape):
        return rng.integers(0, op.rows, shape, dtype=np.int64)
    return rng.standard_normal(shape).astype(np.float32)


def _codes(rng: np.random.Generator, numerics: Numerics, shape: tuple[int, ...]) -> Array:
    kind = np.int8 if numerics.signed else np.uint8
    return rng.integers(numerics.code_min, numerics.code_max + 1, shape).astype(kind)


def _weight_scale(rng: np.random.Generator, numerics: Numerics, op: OpShape, channels: int) -> Array:
    shape: tuple[int, ...] = (channels,)
    if numerics.granularity is Granularity.GROUP:
        assert isinstance(op, LinearShape)
        assert numerics.group_size is not None
        shape = (-(-op.k // numerics.group_size), op.n)
    return rng.uniform(0.5, 1.5, shape).astype(np.float32) / np.float32(8 * numerics.code_max)
