"""Fake quantization in torch: the float values a quantized kernel reads, for static, dynamic and in-kernel rounding.

Every function computes in float32 whatever the input's dtype, because that is what runtimes do, and returns the
input's dtype. Rounding is half to even. None of it carries a useful gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.errors import UnsupportedPrecision
from kernels.recipe import Granularity, Numerics, Recipe
from search.assembly import ActivationQuantizer

Transform = Callable[[Tensor], Tensor]


def static(quantizer: ActivationQuantizer) -> Transform:
    """QuantizeLinear followed by DequantizeLinear with the quantizer's fixed scale and zero point."""
    numerics, point = quantizer.numerics, quantizer.zero_point
    low, high = float(numerics.code_min - point), float(numerics.code_max - point)

    def apply(values: Tensor) -> Tensor:
        scale = torch.tensor(quantizer.scale, dtype=torch.float32, device=values.device)
        return torch.round(values.float() / scale).clamp_(low, high).mul_(scale).to(values.dtype)

    return apply


def dynamic_tensor(numerics: Numerics) -> Transform:
    """DynamicQuantizeLinear: one range per tensor, taken from the tensor itself and widened to contain 0.

    The batch shares the range, so a sample's result depends on what it is batched with.
    """
    if numerics.symmetric:
        raise UnsupportedPrecision(
            "symmetric per-tensor dynamic activations have no kernel", hint="use unsigned asymmetric 8-bit"
        )
    low_code, high_code = float(numerics.code_min), float(numerics.code_max)

    def apply(values: Tensor) -> Tensor:
        exact = values.float()
        if exact.numel() == 0:
            return values
        low = exact.amin().clamp(max=0.0)
        high = exact.amax().clamp(min=0.0)
        scale = (high - low) / (high_code - low_code)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        point = torch.round((low_code - low / scale).clamp(low_code, high_code))
        codes = (torch.round(exact / scale) + point).clamp_(low_code, high_code)
        return (codes - point).mul_(scale).to(values.dtype)

    return apply


def dynamic_rows(numerics: Numerics, block: int | None) -> Transform:
    """Each row of the last axis, in blocks of `block`, rounded to symmetric integers of its own scale.

    MatMulNBits at accuracy level 4 does this inside the kernel: scale = max|x| / 127 per row and weight block,
    code = round(x * (1 / scale)).
    """
    top = float(numerics.code_max)

    def apply(values: Tensor) -> Tensor:
        exact, width = values.float(), values.shape[-1]
        size = block or width
        padding = -width % size
        if padding:
            exact = torch.nn.functional.pad(exact, (0, padding))
        blocks = exact.reshape(*exact.shape[:-1], -1, size)
        scale = blocks.abs().amax(-1, keepdim=True) / top
        inverse = torch.where(scale > 0, 1.0 / scale, torch.zeros_like(scale))
        read = torch.round(blocks * inverse).mul_(scale).reshape(exact.shape)
        return (read[..., :width] if padding else read).to(values.dtype)

    return apply


def activation_transform(recipe: Recipe, quantizer: ActivationQuantizer | None) -> Transform | None:
    """What the recipe's kernel does to the activations it reads; None when it reads plain floats.

    `quantizer` is the tensor's own, needed by recipes with static activations. Raises `UnsupportedPrecision` for
    numerics that nothing here computes.
    """
    numerics = recipe.activation if recipe.activation is not None else recipe.internal_activation
    if numerics is None:
        return None
    if not numerics.dynamic and numerics is recipe.activation:
        if quantizer is None:
            raise UnsupportedPrecision(
                f"recipe {recipe.name!r} reads a tensor that has no quantizer", hint="calibrate the tensor first"
            )
        return static(quantizer)
    if numerics.granularity is Granularity.TENSOR:
        return dynamic_tensor(numerics)
    if numerics.granularity is Granularity.ROW and numerics.symmetric:
        return dynamic_rows(numerics, numerics.group_size or recipe.weight.group_size)
    raise UnsupportedPrecision(
        f"recipe {recipe.name!r} has activations of granularity {numerics.granularity.value!r} that are not simulated",
        hint="per tensor (static or dynamic) and symmetric per row are",
    )
