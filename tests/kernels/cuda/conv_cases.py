"""Random convolutions for the conv tests: every geometry in small, with codes over their whole range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.op_shape import Conv2dShape
from kernels.reference import conv2d

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ConvCase:
    """An op with codes: activations (N, H, W, C), weights (O, C / groups, R, S); `sums` is (N·P·Q, O) by reference."""

    op: Conv2dShape
    x: Array
    w: Array

    @property
    def sums(self) -> Array:
        op = self.op
        found = conv2d(
            self.x.transpose(0, 3, 1, 2).astype(np.int64), self.w.astype(np.int64), stride=op.stride,
            padding=op.padding, dilation=op.dilation, groups=op.groups,
        )  # fmt: skip
        return found.transpose(0, 2, 3, 1).reshape(-1, op.out_channels)


FIXED = {
    "first layer": Conv2dShape(2, 3, 11, 9, 17, (7, 7), (2, 2), (3, 3, 3, 3)),
    "plain": Conv2dShape(1, 64, 7, 7, 40, (3, 3), (1, 1), (1, 1, 1, 1)),
    "pads that differ": Conv2dShape(1, 16, 6, 5, 8, (3, 2), (1, 2), (2, 0, 1, 3)),
    "dilated": Conv2dShape(1, 20, 9, 9, 9, (3, 3), (1, 1), (2, 2, 2, 2), (2, 3)),
    "groups": Conv2dShape(2, 24, 5, 6, 18, (3, 3), (1, 1), (1, 1, 1, 1), groups=3),
    "groups of whole vectors": Conv2dShape(1, 64, 4, 4, 32, (3, 3), (1, 1), (1, 1, 1, 1), groups=2),
    "one by one, strided": Conv2dShape(1, 48, 7, 7, 33, (1, 1), (2, 2)),
    "one pixel": Conv2dShape(1, 5, 1, 1, 3, (1, 1)),
    "all padding around one pixel": Conv2dShape(1, 4, 1, 1, 2, (5, 5), (1, 1), (4, 4, 4, 4)),
    "one row": Conv2dShape(1, 30, 1, 20, 12, (1, 9), (1, 1), (0, 4, 0, 4)),
}


def fixed_case(name: str, *, weight_bits: int = 8, activation_bits: int = 8) -> ConvCase:
    return _filled(FIXED[name], np.random.default_rng(list(name.encode())), weight_bits, activation_bits)


def random_case(seed: int, *, weight_bits: int = 8, activation_bits: int = 8, depthwise: bool = False) -> ConvCase:
    """One of endless small ops: stride, pads on each side, dilation, groups and channels all free."""
    rng = np.random.default_rng(seed)

    def draw(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    while True:
        groups = draw(1, 4) if rng.random() < 0.4 else 1
        per_group = draw(1, 40) if groups == 1 else draw(1, 20)
        out = draw(1, 70) if groups == 1 else groups * draw(1, 12)
        if depthwise:
            groups, per_group = draw(2, 75), 1
            out = groups * (draw(2, 3) if rng.random() < 0.3 else 1)
        op = Conv2dShape(
            batch=draw(1, 3), in_channels=groups * per_group, height=draw(1, 10), width=draw(1, 10), out_channels=out,
            kernel=(draw(1, 4), draw(1, 4)), stride=(draw(1, 3), draw(1, 3)),
            padding=(draw(0, 3), draw(0, 3), draw(0, 3), draw(0, 3)), dilation=(draw(1, 2), draw(1, 2)), groups=groups,
        )  # fmt: skip
        if min(op.out_size) >= 1:
            return _filled(op, rng, weight_bits, activation_bits)


def _filled(op: Conv2dShape, rng: np.random.Generator, weight_bits: int, activation_bits: int) -> ConvCase:
    def codes(bits: int, shape: tuple[int, ...]) -> Array:
        return rng.integers(-(1 << bits - 1), 1 << bits - 1, shape).astype(np.int8)

    return ConvCase(
        op,
        codes(activation_bits, (op.batch, op.height, op.width, op.in_channels)),
        codes(weight_bits, (op.out_channels, op.in_channels // op.groups, *op.kernel)),
    )
