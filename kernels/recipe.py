"""Recipe: the numerics a runtime imposes on a quantized layer, independent of any device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Granularity(str, Enum):
    """How many values share one scale. For weights of shape (out=64, in=256), group size 32:

    | granularity | scales         |
    |-------------|----------------|
    | `tensor`    | 1              |
    | `channel`   | 64             |
    | `group`     | 64 × 8         |
    | `row`       | one per row of an activation matrix, found at run time |
    """

    TENSOR = "tensor"
    CHANNEL = "channel"
    GROUP = "group"
    ROW = "row"


@dataclass(frozen=True)
class Numerics:
    """One tensor's integer format.

    `signed` with `symmetric` means codes in [-2^(b-1), 2^(b-1)-1] and zero point 0; unsigned asymmetric means
    codes in [0, 2^b-1] and a zero point. `reduced_range` drops one bit (x86 without VNNI saturates otherwise).
    `dynamic` ranges are found at run time from the tensor itself.
    """

    bits: int
    symmetric: bool
    signed: bool
    granularity: Granularity
    group_size: int | None = None
    reduced_range: bool = False
    dynamic: bool = False

    @property
    def code_min(self) -> int:
        bits = self.bits - self.reduced_range
        return -(1 << (bits - 1)) if self.signed else 0

    @property
    def code_max(self) -> int:
        bits = self.bits - self.reduced_range
        return (1 << (bits - 1)) - 1 if self.signed else (1 << bits) - 1


@dataclass(frozen=True)
class Recipe:
    """How one precision is computed: weights, the activations read, and whether the output is quantized too.

    `output_quantized`: the runtime's kernel needs a quantizer behind the layer (QLinearConv does; QGemm and
    MatMulIntegerToFloat do not). `activation` None means the graph leaves activations in float; then
    `internal_activation` says what the kernel does to them by itself (MatMulNBits at accuracy level 4
    quantizes each row to symmetric int8 per weight block), which simulation must reproduce.
    """

    name: str
    weight: Numerics
    activation: Numerics | None
    output_quantized: bool
    internal_activation: Numerics | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recipe:
        def numerics(value: dict[str, Any] | None) -> Numerics | None:
            return None if value is None else Numerics(**{**value, "granularity": Granularity(value["granularity"])})

        weight = numerics(data["weight"])
        assert weight is not None
        return cls(
            name=data["name"],
            weight=weight,
            activation=numerics(data["activation"]),
            output_quantized=data["output_quantized"],
            internal_activation=numerics(data["internal_activation"]),
        )
