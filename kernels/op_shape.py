"""Op shape: what a kernel sees of a layer. Canonical and hashable, so that equal work shares one table row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from kernels.errors import KernelsError


@dataclass(frozen=True, order=True)
class LinearShape:
    """A matrix product (M, K) × (K, N) with one weight matrix; M counts all rows (batch × tokens)."""

    m: int
    k: int
    n: int
    bias: bool = True

    kind = "linear"

    @property
    def signature(self) -> str:
        return f"linear_m{self.m}_k{self.k}_n{self.n}_b{int(self.bias)}"

    @property
    def macs(self) -> int:
        return self.m * self.k * self.n

    @property
    def weight_count(self) -> int:
        return self.k * self.n

    @property
    def input_elements(self) -> int:
        return self.m * self.k

    @property
    def output_elements(self) -> int:
        return self.m * self.n


@dataclass(frozen=True, order=True)
class Conv2dShape:
    """A 2-D convolution (1-D ones have height 1). `padding` is (top, left, bottom, right)."""

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True

    kind = "conv2d"

    @property
    def signature(self) -> str:
        def x(pair: tuple[int, ...]) -> str:
            return "x".join(map(str, pair))

        return (
            f"conv2d_n{self.batch}_c{self.in_channels}_h{self.height}_w{self.width}_o{self.out_channels}"
            f"_k{x(self.kernel)}_s{x(self.stride)}_p{x(self.padding)}_d{x(self.dilation)}_g{self.groups}"
            f"_b{int(self.bias)}"
        )

    @property
    def out_size(self) -> tuple[int, int]:
        def along(axis: int, size: int) -> int:
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            return (size + self.padding[axis] + self.padding[axis + 2] - reach) // self.stride[axis] + 1

        return along(0, self.height), along(1, self.width)

    @property
    def macs(self) -> int:
        return self.batch * self.weight_count * prod(self.out_size)

    @property
    def weight_count(self) -> int:
        return self.out_channels * (self.in_channels // self.groups) * prod(self.kernel)

    @property
    def input_elements(self) -> int:
        return self.batch * self.in_channels * self.height * self.width

    @property
    def output_elements(self) -> int:
        return self.batch * self.out_channels * prod(self.out_size)


@dataclass(frozen=True, order=True)
class EmbeddingShape:
    """A table look-up: `tokens` rows gathered from a (rows, width) table. Its cost is bytes, not multiplications."""

    tokens: int
    rows: int
    width: int

    kind = "embedding"
    macs = 0

    @property
    def signature(self) -> str:
        return f"embedding_t{self.tokens}_r{self.rows}_w{self.width}"

    @property
    def weight_count(self) -> int:
        return self.rows * self.width

    @property
    def input_elements(self) -> int:
        return self.tokens

    @property
    def output_elements(self) -> int:
        return self.tokens * self.width


OpShape = LinearShape | Conv2dShape | EmbeddingShape

_NUMBER = re.compile(r"([a-z])([0-9x]+)")


def parse_op_shape(signature: str) -> OpShape:
    """The op shape whose `signature` this is; raises `KernelsError` (`bad_op_shape`) for anything else."""
    kind, *parts = signature.split("_")
    fields: dict[str, tuple[int, ...]] = {}
    for part in parts:
        match = _NUMBER.fullmatch(part)
        if match:
            fields[match[1]] = tuple(int(value) for value in match[2].split("x") if value)
    shape: OpShape | None = None
    try:
        one = {name: values[0] for name, values in fields.items()}
        if kind == "linear":
            shape = LinearShape(m=one["m"], k=one["k"], n=one["n"], bias=bool(one["b"]))
        elif kind == "conv2d":
            shape = Conv2dShape(
                batch=one["n"], in_channels=one["c"], height=one["h"], width=one["w"], out_channels=one["o"],
                kernel=fields["k"], stride=fields["s"], padding=fields["p"], dilation=fields["d"],  # type: ignore[arg-type]
                groups=one["g"], bias=bool(one["b"]),
            )  # fmt: skip
        elif kind == "embedding":
            shape = EmbeddingShape(tokens=one["t"], rows=one["r"], width=one["w"])
    except (KeyError, IndexError):
        shape = None
    if shape is None or shape.signature != signature:
        raise KernelsError(
            f"{signature!r} is not an op shape",
            hint="for example linear_m1_k768_n3072_b1 or conv2d_n1_c64_h56_w56_o64_k3x3_s1x1_p1x1x1x1_d1x1_g1_b1",
            code="bad_op_shape",
        )
    return shape
