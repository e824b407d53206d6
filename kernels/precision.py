"""Precision: the number format of a layer's weights and activations together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from kernels.errors import UnsupportedPrecision

FLOAT_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8}
_PATTERN = re.compile(r"w(?P<w>\d+)a(?P<a>\d+)(?:-g(?P<g>\d+))?(?P<dyn>-dynamic)?")


@dataclass(frozen=True, order=True)
class Precision:
    """A weight and activation format, parsed from and printed as its name.

    | name           | weights              | activations                              |
    |----------------|----------------------|------------------------------------------|
    | `fp32`, `fp16` | float                | float                                    |
    | `w8a8`         | 8-bit, per channel   | 8-bit, ranges fixed by calibration       |
    | `w8a8-dynamic` | 8-bit, per channel   | 8-bit, ranges taken from each batch      |
    | `w4a8`         | 4-bit, per channel   | 8-bit, fixed ranges                      |
    | `w4a16-g32`    | 4-bit, groups of 32  | left in float by the graph (weight-only) |

    Stored bits and the kernel that runs are separate facts: `w4a8` on a device without 4-bit kernels has
    the latency of its 8-bit kernel and half the bytes.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name in FLOAT_BITS:
            return
        match = _PATTERN.fullmatch(self.name)
        if match is None:
            raise UnsupportedPrecision(
                f"{self.name!r} is not a precision",
                hint="write fp32, fp16, w8a8, w8a8-dynamic, w4a8, w4a16-g32 …",
            )
        if not (1 <= int(match["w"]) <= 16 and 1 <= int(match["a"]) <= 16) or match["g"] == "0":
            raise UnsupportedPrecision(
                f"{self.name!r} has bits or a group size out of range", hint="bits run from 1 to 16"
            )

    @cached_property
    def _fields(self) -> re.Match[str] | None:
        return _PATTERN.fullmatch(self.name)

    @property
    def is_float(self) -> bool:
        """True when nothing is quantized to integers."""
        return self._fields is None

    @property
    def weight_bits(self) -> int:
        return int(self._fields["w"]) if self._fields else FLOAT_BITS[self.name]

    @property
    def activation_bits(self) -> int:
        return int(self._fields["a"]) if self._fields else FLOAT_BITS[self.name]

    @property
    def group_size(self) -> int | None:
        """Weights per scale along the reduction dimension; None means one scale per output channel."""
        return int(self._fields["g"]) if self._fields and self._fields["g"] else None

    @property
    def is_dynamic(self) -> bool:
        return bool(self._fields and self._fields["dyn"])

    @property
    def is_weight_only(self) -> bool:
        return self._fields is not None and self.activation_bits == 16

    @property
    def quantizes_activations(self) -> bool:
        return self._fields is not None and self.activation_bits < 16

    @property
    def bops_per_mac(self) -> int:
        """Bit operations of one multiply-accumulate: weight bits × activation bits (HAWQ-V3, section 4)."""
        return self.weight_bits * self.activation_bits

    def __str__(self) -> str:
        return self.name


FP32, FP16, BF16 = Precision("fp32"), Precision("fp16"), Precision("bf16")
