"""Comparisons, boolean and bitwise logic, selection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from search.onnx_import.ops.arithmetic import pair
from search.onnx_import.ops.table import OPS, Call, Op, aligned, op


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    return lambda call: function(*pair(call))


for _name, _function in {
    "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}.items():  # fmt: skip
    OPS[_name] = _binary(_function)


@op("Not")
def logical_not(call: Call) -> Tensor:
    return torch.logical_not(call[0])


@op("BitwiseNot")
def bitwise_not(call: Call) -> Tensor:
    return torch.bitwise_not(call[0])


@op("IsNaN")
def is_nan(call: Call) -> Tensor:
    return torch.isnan(call[0])


@op("IsInf")
def is_inf(call: Call) -> Tensor:
    positive = torch.isposinf(call[0]) & bool(call.attribute("detect_positive", 1))
    return positive | (torch.isneginf(call[0]) & bool(call.attribute("detect_negative", 1)))


@op("Where")
def where(call: Call) -> Tensor:
    condition, a, b = aligned(call[0], call[1], call[2])
    return torch.where(condition, a, b)
