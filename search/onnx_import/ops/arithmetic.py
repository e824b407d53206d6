"""Elementwise arithmetic: sums, products, powers, rounding and the unary functions of analysis."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from search.onnx_import.ops.table import OPS, Call, Op, aligned, is_integer, op


def pair(call: Call) -> tuple[Tensor, Tensor]:
    """Both operands; before opset 7 the second one is aligned at attribute `axis` instead of at the end."""
    a, b = aligned(call[0], call[1])
    if call.opset < 7 and "axis" in call.node.attributes and b.ndim:
        axis = call.attribute("axis")
        axis += a.ndim if axis < 0 else 0
        b = b.reshape(*b.shape, *[1] * (a.ndim - axis - b.ndim))
    return a, b


@op("Add")
def add(call: Call) -> Tensor:
    a, b = pair(call)
    return a + b


@op("Sub")
def sub(call: Call) -> Tensor:
    a, b = pair(call)
    return a - b


@op("Mul")
def mul(call: Call) -> Tensor:
    a, b = pair(call)
    return a * b


@op("Div")
def div(call: Call) -> Tensor:
    a, b = pair(call)
    return torch.div(a, b, rounding_mode="trunc") if is_integer(a) else a / b


@op("Mod")
def mod(call: Call) -> Tensor:
    a, b = pair(call)
    return torch.fmod(a, b) if call.attribute("fmod", 0) else torch.remainder(a, b)


@op("Pow")
def power(call: Call) -> Tensor:
    base, exponent = pair(call)
    if is_integer(base) and is_integer(exponent):
        return torch.pow(base, exponent).to(base.dtype)
    if is_integer(base):
        return torch.pow(base.to(torch.float64), exponent.to(torch.float64)).to(base.dtype)
    if exponent.numel() == 1:
        # A Python number keeps the derivative of x**2 at 0 exact; a tensor exponent would also build its own gradient.
        return torch.pow(base, exponent.reshape(()).item()) if exponent.ndim <= base.ndim else torch.pow(base, exponent)
    return torch.pow(base, exponent.to(base.dtype))


@op("Sum")
def sum_all(call: Call) -> Tensor:
    return functools.reduce(torch.add, call.present())


@op("Mean")
def mean_all(call: Call) -> Tensor:
    return functools.reduce(torch.add, call.present()) / len(call.present())


@op("Max")
def maximum(call: Call) -> Tensor:
    return functools.reduce(torch.maximum, call.present())


@op("Min")
def minimum(call: Call) -> Tensor:
    return functools.reduce(torch.minimum, call.present())


@op("BitShift")
def bit_shift(call: Call) -> Tensor:
    a, b = pair(call)
    left = call.attribute("direction") == "LEFT"
    return torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)


@op("Reciprocal")
def reciprocal(call: Call) -> Tensor:
    return torch.reciprocal(call[0])


@op("CumSum")
def cumulative_sum(call: Call) -> Tensor:
    x, axis = call[0], int(call[1].item())
    x = x.flip(axis) if call.attribute("reverse", 0) else x
    total = torch.cumsum(x, axis, dtype=x.dtype)
    total = total - x if call.attribute("exclusive", 0) else total
    return total.flip(axis) if call.attribute("reverse", 0) else total


@op("CumProd")
def cumulative_product(call: Call) -> Tensor:
    x, axis = call[0], int(call[1].item())
    x = x.flip(axis) if call.attribute("reverse", 0) else x
    if call.attribute("exclusive", 0):
        ones = torch.ones_like(x.narrow(axis, 0, 1))
        x = torch.cat([ones, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    product = torch.cumprod(x, axis, dtype=x.dtype)
    return product.flip(axis) if call.attribute("reverse", 0) else product


def _unary(function: Callable[[Tensor], Tensor]) -> Op:
    return lambda call: function(call[0])


for _name, _function in {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Log": torch.log, "Neg": torch.neg,
    "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}.items():  # fmt: skip
    OPS[_name] = _unary(_function)
