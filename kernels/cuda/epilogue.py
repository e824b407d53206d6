"""Epilogue arguments: the struct that every kernel takes by value, field for field as in `src/epilogue.cuh`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum


class Output(IntEnum):
    """Element type that a kernel writes, passed to it as the macro `OUTPUT`.

    | name | bytes | holds                                    |
    |------|-------|------------------------------------------|
    | S32  | 4     | the accumulator plus bias                |
    | F32, F16, BF16 | 4, 2, 2 | accumulator * scale, in float |
    | S8, U8 | 1   | codes of the next layer's quantizer      |
    """

    S32 = 0
    F32 = 1
    F16 = 2
    BF16 = 3
    S8 = 4
    U8 = 5

    @property
    def size_bytes(self) -> int:
        return (4, 4, 2, 2, 1, 1)[self]

    @property
    def is_code(self) -> bool:
        return self in (Output.S8, Output.U8)


class EpilogueArguments(ctypes.Structure):
    """`struct Epilogue`: device addresses (0: absent) and numbers; unset fields are 0."""

    _fields_ = (
        ("out", ctypes.c_uint64),
        ("bias", ctypes.c_uint64),
        ("scale", ctypes.c_uint64),
        ("multiplier", ctypes.c_uint64),
        ("shift", ctypes.c_uint64),
        ("row_scale", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("residual", ctypes.c_uint64),
        ("ld_out", ctypes.c_int32),
        ("ld_residual", ctypes.c_int32),
        ("residual_scale", ctypes.c_float),
        ("residual_multiplier", ctypes.c_int32),
        ("residual_shift", ctypes.c_int32),
        ("residual_zero_point", ctypes.c_int32),
        ("zero_point", ctypes.c_int32),
        ("clamp_low", ctypes.c_int32),
        ("clamp_high", ctypes.c_int32),
        ("relu", ctypes.c_int32),
    )


def dyadic_pairs(multipliers: Sequence[float]) -> tuple[list[int], list[int]]:
    """Mantissas and exponents for the integer-only form; a multiplier too small for it becomes 0 / 2^62.

    Raises `ValueError` for a multiplier that is not positive and finite or is 2^30 and more.
    """
    from kernels.reference import MAX_SHIFT, dyadic_multiplier  # brings numpy, which the argument structs do not need

    mantissas, exponents = [], []
    for real in multipliers:
        m, e = dyadic_multiplier(real)
        if e < 1:
            raise ValueError(f"a multiplier of {real} is too large to requantize with")
        mantissas.append(m if e <= MAX_SHIFT else 0)
        exponents.append(min(e, MAX_SHIFT))
    return mantissas, exponents
