"""Quantization ops of models that already carry them: exact integer codes, in the types the file names."""

from __future__ import annotations

import torch
from torch import Tensor

from search.onnx_import.ops.convolution import CONVOLUTIONS, torch_pads, window_pads
from search.onnx_import.ops.table import Call, aligned, op, positive_axis

# ONNX type name → (smallest code, largest code, torch type it is kept in).
_CODES: dict[str, tuple[int, int, torch.dtype]] = {
    "uint8": (0, 255, torch.uint8),
    "int8": (-128, 127, torch.int8),
    "uint16": (0, 65535, torch.int32),
    "int16": (-32768, 32767, torch.int16),
    "uint4": (0, 15, torch.uint8),
    "int4": (-8, 7, torch.int8),
    "uint2": (0, 3, torch.uint8),
    "int2": (-2, 1, torch.int8),
}
_TYPE_NAMES = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 21: "uint4", 22: "int4", 25: "uint2", 26: "int2"}


def _spread(values: Tensor, like: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points broadcast over `like`: one for all, one per index of `axis`, or one per block along it."""
    if values.numel() == 1:
        return values.reshape(())
    if block:
        length = like.shape[axis]
        return values.repeat_interleave(min(block, length), dim=axis).narrow(axis, 0, length)
    shape = [1] * like.ndim
    shape[positive_axis(axis, like.ndim)] = -1
    return values.reshape(shape)


def _codes(call: Call, values: Tensor, name: str) -> Tensor:
    if name not in _CODES:
        raise call.unsupported(f"codes of type {name}")
    low, high, kind = _CODES[name]
    return torch.clamp(torch.round(values), low, high).to(kind)


@op("QuantizeLinear")
def quantize_linear(call: Call) -> Tensor:
    x, scale = aligned(call[0], call[1])
    zero = call.optional(2)
    axis, block = call.attribute("axis", 1), call.attribute("block_size", 0)
    declared = _TYPE_NAMES.get(call.attribute("output_dtype", 0))
    name = call.type_name(2) if zero is not None else declared or "uint8"
    offset = 0 if zero is None else _spread(zero.to(x.device, scale.dtype), x, axis, block)
    return _codes(call, torch.round(x / _spread(scale, x, axis, block)) + offset, name)


@op("DequantizeLinear")
def dequantize_linear(call: Call) -> Tensor:
    codes, scale = aligned(call[0], call[1])
    zero = call.optional(2)
    axis, block = call.attribute("axis", 1), call.attribute("block_size", 0)
    values = codes.to(call.dtype)
    if zero is not None:
        # Subtract as integers where both are: int32 codes need not fit into a float.
        if codes.is_floating_point():
            values = values - _spread(zero.to(values), values, axis, block)
        else:
            wide = codes.to(torch.int64) - _spread(zero.to(codes.device, torch.int64), codes, axis, block)
            values = wide.to(call.dtype)
    return values * _spread(scale, values, axis, block)


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call) -> tuple[Tensor | None, ...]:
    x = call[0]
    low, high = torch.clamp(x.amin(), max=0), torch.clamp(x.amax(), min=0)
    scale = (high - low) / 255
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    codes = torch.clamp(torch.round(x / scale) + zero, 0, 255)
    return codes.to(torch.uint8), scale, zero.to(torch.uint8)


def _centred(codes: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """Codes minus zero point in float64, which holds every int8 product sum exactly."""
    values = codes.double()
    return values if zero is None else values - _spread(zero.double().to(values.device), values, axis, 0)


@op("MatMulInteger")
def matmul_integer(call: Call) -> Tensor:
    a, b = aligned(call[0], call[1])
    return torch.matmul(_centred(a, call.optional(2), -2), _centred(b, call.optional(3), -1)).to(torch.int32)


@op("QLinearMatMul")
def quantized_matmul(call: Call) -> Tensor:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = call.present()
    product = torch.matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))
    row = a_scale.double().reshape(-1, 1) if a_scale.numel() > 1 else a_scale.double().reshape(())
    column = b_scale.double().reshape(1, -1) if b_scale.numel() > 1 else b_scale.double().reshape(())
    scaled = product * (row * column / y_scale.double().reshape(()))
    return _codes(call, torch.round(scaled) + y_zero.double().reshape(()), call.type_name(7))


def _integer_conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    spatial = weight.ndim - 2
    if spatial not in CONVOLUTIONS:
        raise call.unsupported(f"{spatial} spatial dimensions")
    strides = list(call.attribute("strides", [1] * spatial))
    dilations = list(call.attribute("dilations", [1] * spatial))
    begins, ends = window_pads(call, x.shape[2:], list(weight.shape[2:]), strides, dilations)
    padded = torch.nn.functional.pad(x, torch_pads(begins, ends))
    groups = call.attribute("group", 1)
    return CONVOLUTIONS[spatial](padded, weight, bias, strides, 0, dilations, groups)


@op("ConvInteger")
def conv_integer(call: Call) -> Tensor:
    x, weight = aligned(call[0], call[1])
    return _integer_conv(call, _centred(x, call.optional(2), 1), _centred(weight, call.optional(3), 0), None).to(
        torch.int32
    )


@op("QLinearConv")
def quantized_conv(call: Call) -> Tensor:
    x, x_scale, x_zero, weight, w_scale, w_zero, y_scale, y_zero = call.present()[:8]
    bias = call.optional(8)
    sums = _integer_conv(
        call, _centred(x, x_zero, 1), _centred(weight, w_zero, 0), None if bias is None else bias.double()
    )
    scale = x_scale.double().reshape(()) * w_scale.double() / y_scale.double().reshape(())
    return _codes(call, torch.round(sums * _spread(scale, sums, 1, 0)) + y_zero.double().reshape(()), call.type_name(7))
