"""Random epilogues and what they must give, in numpy, operation by operation: what kernels are compared with.

The order of operations is that of `src/epilogue.cuh`; every float operation rounds once: equal means equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.cuda.epilogue import EpilogueArguments, Output, dyadic_pairs
from kernels.recipe import Granularity, Numerics
from kernels.reference import requantize

Array = np.ndarray[Any, Any]
Address = Callable[[Array, str], int]
"""Puts a named array on the device and gives its address; the array must live as long as the kernel may run."""

DTYPES: dict[Output, Any] = {
    Output.S32: np.int32, Output.F32: np.float32, Output.F16: np.float16, Output.BF16: np.uint16,
    Output.S8: np.int8, Output.U8: np.uint8,
}  # fmt: skip
"""What numpy holds each output in; bfloat16 as its 16 bits."""
_WIDE = Numerics(62, symmetric=True, signed=True, granularity=Granularity.TENSOR)


@dataclass(frozen=True)
class EpilogueCase:
    """Everything an epilogue may be given; None is absent. `residual` is (M, at least N) in the output's type."""

    output: Output
    bias: Array | None
    scale: Array
    integer_only: bool
    row_scale: Array | None
    offset: Array | None
    residual: Array | None
    residual_scale: float
    residual_zero_point: int
    zero_point: int
    relu: bool

    @property
    def clamp_low(self) -> int:
        low = -128 if self.output is Output.S8 else 0
        return max(low, self.zero_point) if self.relu else low

    @property
    def clamp_high(self) -> int:
        return 127 if self.output is Output.S8 else 255

    def arguments(self, address: Address, out: int, ld_out: int) -> EpilogueArguments:
        """The struct for a kernel that writes rows of `ld_out` elements at `out`."""

        def at(values: Array | None, name: str) -> int:
            return 0 if values is None else address(np.ascontiguousarray(values), name)

        made = EpilogueArguments(
            out=out, ld_out=ld_out, bias=at(self.bias, "bias"), scale=at(self.scale, "scale"),
            row_scale=at(self.row_scale, "row_scale"), offset=at(self.offset, "offset"),
            residual=at(self.residual, "residual"), residual_scale=self.residual_scale,
            ld_residual=0 if self.residual is None else self.residual.shape[1],
            residual_zero_point=self.residual_zero_point, zero_point=self.zero_point, clamp_low=self.clamp_low,
            clamp_high=self.clamp_high, relu=int(self.relu),
        )  # fmt: skip
        if self.integer_only:
            m, e = dyadic_pairs(self.scale.tolist())
            made.multiplier = at(np.array(m, np.int32), "multiplier")
            made.shift = at(np.array(e, np.int32), "shift")
            (made.residual_multiplier,), (made.residual_shift,) = dyadic_pairs([self.residual_scale])
        return made

    def expected(self, sums: Array) -> Array:
        """The output for exact int64 sums (M, N); raises `ValueError` for sums that 32 bits do not hold."""
        total = sums if self.bias is None else sums + self.bias
        if np.abs(total).max(initial=0) >= 1 << 31:
            raise ValueError("a sum does not fit 32 bits")
        if self.output is Output.S32:
            return total.astype(np.int32)
        if not self.integer_only:
            return self.expected_of_floats(total)
        codes = requantize(total, self.scale.astype(np.float64), 0, _WIDE)
        if self.residual is not None:
            other = self._residual(sums).astype(np.int64) - self.residual_zero_point
            codes = codes + requantize(other, float(np.float32(self.residual_scale)), 0, _WIDE)
        return self._codes(codes)

    def expected_of_floats(self, sums: Array) -> Array:
        """The output for sums (M, N) that are rounded to float32 first; the integer bias is not added to them."""
        y = sums.astype(np.float32) * self.scale
        if self.output.is_code:
            if self.residual is not None:
                other = self._residual(sums).astype(np.int32) - self.residual_zero_point
                y = y + other.astype(np.float32) * np.float32(self.residual_scale)
            return self._codes(np.rint(y.astype(np.float64)))
        if self.row_scale is not None:
            y = y * self.row_scale[:, None]
        if self.offset is not None:
            y = y + self.offset
        if self.residual is not None:
            y = y + from_stored(self._residual(sums))
        if self.relu:
            y = np.where(y > 0, y, np.float32(0))
        return stored(y, self.output)

    def _residual(self, sums: Array) -> Array:
        assert self.residual is not None
        return self.residual[:, : sums.shape[1]]

    def _codes(self, steps: Array) -> Array:
        codes = np.clip(steps + self.zero_point, self.clamp_low, self.clamp_high)
        return np.asarray(codes, DTYPES[self.output])


def random_epilogue(
    rng: np.random.Generator, output: Output, m: int, n: int, spread: float, ld_residual: int | None = None
) -> EpilogueCase:
    """An epilogue for sums of standard deviation `spread`; every part is there or not by chance."""

    def some(values: Array) -> Array | None:
        return values if rng.integers(2) else None

    code, sums = output.is_code, output is Output.S32
    shape = (m, ld_residual or n)
    if code:
        residual = rng.integers(-128, 128, shape, np.int8) if output is Output.S8 else rng.integers(0, 256, shape)
        residual = residual.astype(DTYPES[output])
    else:
        residual = stored(rng.standard_normal(shape).astype(np.float32), output)
    zero_point = rng.integers(100, 140) if output is Output.U8 else rng.integers(-20, 21)
    return EpilogueCase(
        output=output,
        bias=some((rng.standard_normal(n) * spread).astype(np.int32)),
        scale=(rng.uniform(0.2, 1, n) * (60 if code else 2) / spread).astype(np.float32),
        integer_only=code and bool(rng.integers(2)),
        row_scale=None if code or sums else some(rng.uniform(0.5, 2, m).astype(np.float32)),
        offset=None if code or sums else some(rng.standard_normal(n).astype(np.float32)),
        residual=None if sums else some(residual),
        residual_scale=float(np.float32(rng.uniform(0.1, 1.5))),
        residual_zero_point=int(rng.integers(-5, 6)) if code else 0,
        zero_point=int(zero_point) if code else 0,
        relu=bool(rng.integers(2)),
    )


def stored(values: Array, output: Output) -> Array:
    """float32 values as a float output holds them; bfloat16 as its 16 bits, rounded half to even."""
    if output is not Output.BF16:
        return values.astype(DTYPES[output])
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_stored(values: Array) -> Array:
    """float32 values of what `stored` gave."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
