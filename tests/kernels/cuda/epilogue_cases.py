"""Random epilogues and what they must give, in numpy, operation by operation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.cuda.epilogue import EpilogueArguments, Output, dyadic_pairs
from kernels.recipe import Granularity, Numerics
from kernels.reference import requantize
from tests.kernels.cuda.simt.emulator import GuardedArray, Memory

Array = np.ndarray[Any, Any]
DTYPES = {
    Output.S32: np.int32, Output.F32: np.float32, Output.F16: np.float16, Output.BF16: np.uint16,
    Output.S8: np.int8, Output.U8: np.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class EpilogueCase:
    """Everything an epilogue may be given; None is absent."""

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

    def arguments(self, device: Memory, out: GuardedArray, ld_out: int) -> EpilogueArguments:
        """The struct for a kernel, its arrays uploaded."""

        def address(values: Array | None, name: str) -> int:
            return 0 if values is None else device.upload(np.ascontiguousarray(values), name).address

        made = EpilogueArguments(
            out=out.address, ld_out=ld_out, bias=address(self.bias, "bias"), scale=address(self.scale, "scale"),
            row_scale=address(self.row_scale, "row_scale"), offset=address(self.offset, "offset"),
            residual=address(self.residual, "residual"), residual_scale=self.residual_scale,
            ld_residual=0 if self.residual is None else self.residual.shape[1],
            residual_zero_point=self.residual_zero_point, zero_point=self.zero_point, clamp_low=self.clamp_low,
            clamp_high=self.clamp_high, relu=int(self.relu),
        )  # fmt: skip
        if self.integer_only:
            m, e = dyadic_pairs(self.scale.tolist())
            made.multiplier = address(np.array(m, np.int32), "multiplier")
            made.shift = address(np.array(e, np.int32), "shift")
            (made.residual_multiplier,), (made.residual_shift,) = dyadic_pairs([self.residual_scale])
        return made

    def expected(self, sums: Array) -> Array:
        """The output for exact int64 sums (M, N)."""
        total = sums if self.bias is None else sums + self.bias
        assert np.abs(total).max(initial=0) < 1 << 31
        if self.output is Output.S32:
            return total.astype(np.int32)
        if self.integer_only:
            return self._by_integers(total)
        y = total.astype(np.float32) * self.scale
        if self.output.is_code:
            if self.residual is not None:
                other = self.residual.astype(np.int32) - self.residual_zero_point
                y = y + other.astype(np.float32) * np.float32(self.residual_scale)
            codes = np.rint(y.astype(np.float64)) + self.zero_point
            return np.clip(codes, self.clamp_low, self.clamp_high).astype(DTYPES[self.output])
        if self.row_scale is not None:
            y = y * self.row_scale[:, None]
        if self.offset is not None:
            y = y + self.offset
        if self.residual is not None:
            y = y + _as_float(self.residual)
        if self.relu:
            y = np.where(y > 0, y, np.float32(0))
        return bfloat16(y) if self.output is Output.BF16 else y.astype(DTYPES[self.output])

    def _by_integers(self, total: Array) -> Array:
        wide = Numerics(62, symmetric=True, signed=True, granularity=Granularity.TENSOR)
        codes = requantize(total, self.scale.astype(np.float64), 0, wide)
        if self.residual is not None:
            other = self.residual.astype(np.int64) - self.residual_zero_point
            codes = codes + requantize(other, float(np.float32(self.residual_scale)), 0, wide)
        return np.clip(codes + self.zero_point, self.clamp_low, self.clamp_high).astype(DTYPES[self.output])


def random_epilogue(
    rng: np.random.Generator, output: Output, m: int, n: int, spread: float, ld_residual: int | None = None
) -> EpilogueCase:
    """An epilogue for sums of standard deviation `spread`; every part is there or not by chance."""

    def some(values: Array) -> Array | None:
        return values if rng.integers(2) else None

    code = output.is_code
    shape = (m, ld_residual or n)
    residual = {
        Output.S8: lambda: rng.integers(-128, 128, shape, np.int8),
        Output.U8: lambda: rng.integers(0, 256, shape, np.uint8),
        Output.BF16: lambda: bfloat16(rng.standard_normal(shape).astype(np.float32)),
        Output.S32: lambda: np.zeros(shape, np.int32),
    }.get(output, lambda: rng.standard_normal(shape).astype(DTYPES[output]))()
    return EpilogueCase(
        output=output,
        bias=some((rng.standard_normal(n) * spread).astype(np.int32)),
        scale=(rng.uniform(0.2, 1, n) * (60 if code else 2) / spread).astype(np.float32),
        integer_only=code and bool(rng.integers(2)),
        row_scale=None if code or output is Output.S32 else some(rng.uniform(0.5, 2, m).astype(np.float32)),
        offset=None if code or output is Output.S32 else some(rng.standard_normal(n).astype(np.float32)),
        residual=None if output is Output.S32 else some(residual),
        residual_scale=float(np.float32(rng.uniform(0.1, 1.5))),
        residual_zero_point=int(rng.integers(-5, 6)) if code else 0,
        zero_point=0
        if not code
        else int(rng.integers(100, 140))
        if output is Output.U8
        else int(rng.integers(-20, 21)),
        relu=bool(rng.integers(2)),
    )


def plain(case: EpilogueCase, columns: int) -> EpilogueCase:
    """The case with a residual of exactly `columns` columns, as the reference needs it."""
    if case.residual is None:
        return case
    return dataclasses.replace(case, residual=case.residual[:, :columns])


def bfloat16(values: Array) -> Array:
    """The 16 bits of float32 values rounded half to even to bfloat16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _as_float(values: Array) -> Array:
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
