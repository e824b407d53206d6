"""Matrix products with 4-bit weights from the host's side: kernels, tiles, launch geometry and argument structs.

| kernel           | activations         | weights                      | on                                           |
|------------------|---------------------|------------------------------|----------------------------------------------|
| `GEMM_W4A8`      | s8 (M, K)           | `pack_int4`                  | every architecture, 8-bit tensor cores       |
| `GEMM_W4A4`      | `pack_int4`         | `pack_int4`                  | every architecture, 8-bit tensor cores       |
| `GEMM_S4_NATIVE` | `pack_int4`         | `pack_int4`                  | sm_75, 80, 86, 87, 89: 4-bit tensor cores    |
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.cuda.epilogue import Output
from kernels.cuda.packing import padded_k, relative_scales
from kernels.cuda.source import Defines, KernelSource
from kernels.errors import KernelsError

Array = np.ndarray[Any, Any]

STEP_K = 64
W_BYTES = 32
RATIO_ALIGNMENT = 8
MAX_K_OF_A_SLICE = 131_071
"""Times 16384, the largest product of unpacked codes, this still fits 32 bits; longer sums need split-K."""
SCALE_GROUPS = (0, 32, 64, 128, 256, 512, 1024)


def _tile(m: int, n: int, warps_m: int, warps_n: int, stages: int) -> Defines:
    return {
        "BLOCK_M": m, "BLOCK_N": n, "WARPS_M": warps_m, "WARPS_N": warps_n, "STAGES": stages, "ALIGN_A": 16,
        "SCALE_GROUP": 0, "SPLIT_K": 0, "OUTPUT": int(Output.F16),
    }  # fmt: skip


TILES: Mapping[str, Defines] = {
    "128x128": _tile(128, 128, 4, 2, 4),
    "128x128-4w": _tile(128, 128, 2, 2, 4),
    "128x256": _tile(128, 256, 2, 4, 3),
    "64x128": _tile(64, 128, 2, 2, 4),
    "64x64": _tile(64, 64, 2, 2, 5),
    "32x128": _tile(32, 128, 1, 4, 5),
    "16x128": _tile(16, 128, 1, 4, 6),
}
"""Rows × channels of one block. Those of `PER_CHANNEL_TILES` keep 64 × 64 sums in a warp, which reuses most and leaves
no registers for float totals of groups."""
WORD_TILES: Mapping[str, Defines] = {name: {**tile, "STAGES": int(tile["STAGES"]) + 1} for name, tile in TILES.items()}
"""The same where activations have 4 bits too, with one more stage for the smaller rows."""
PER_CHANNEL_TILES = frozenset({"128x128-4w", "128x256"})

_S8 = ("mma.m16n8k32.s8", "mma.m8n8k16.s8")
_S4 = ("mma.m16n8k64.s4", "mma.m8n8k32.s4")
GEMM_W4A8 = KernelSource("gemm_w4a8", "gemm_w4a8.cu", "gemm_w4a8", TILES, _S8)
GEMM_W4A4 = KernelSource("gemm_w4a4", "gemm_w4a4.cu", "gemm_w4a4", WORD_TILES, _S8)
GEMM_S4_NATIVE = KernelSource("gemm_s4_native", "gemm_s4_native.cu", "gemm_s4_native", WORD_TILES, _S4)

QUANTIZE_ROWS = KernelSource(
    "quantize_rows", "quantize_rows.cu", "quantize_rows",
    {"default": {"INPUT": int(Output.F16), "CODE_BITS": 8, "DYNAMIC": 1, "WARPS": 4}},
)  # fmt: skip
"""Activations to 8-bit codes or 4-bit words, with scales and sums by row. A warp takes a row: the grid is
ceil(rows / WARPS) blocks of 32 · WARPS threads."""
INT4_STEP = KernelSource(
    "int4_step", "int4_step.cu", "int4_step", {"w4a8": {"STEP": 8}, "w4a4": {"STEP": 4}, "s4": {"STEP": 0}}
)
"""One warp's step of K 64 and nothing else: by its machine code, and its time, the three paths are compared."""
PRODUCTS = (GEMM_W4A8, GEMM_W4A4, GEMM_S4_NATIVE)
SOURCES = (*PRODUCTS, QUANTIZE_ROWS)


class Int4WeightsArguments(ctypes.Structure):
    """`struct Int4Weights` of `src/int4_gemm.cuh`: device addresses (0: absent) and the ratios' row length."""

    _fields_ = (
        ("words", ctypes.c_uint64),
        ("ratios", ctypes.c_uint64),
        ("zero_points", ctypes.c_uint64),
        ("row_sums", ctypes.c_uint64),
        ("ld_ratios", ctypes.c_int32),
    )


@dataclass(frozen=True)
class LaunchGeometry:
    """What a launch needs beside its arguments.

    `defines` are the macros to compile with beside the tile's. With split-K, `partial_bytes` of scratch memory and
    `arrivals` words that are 0 before the first launch (and after every one) go with it.
    """

    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    defines: Defines
    partial_bytes: int = 0
    arrivals: int = 0


def plan_gemm(
    source: KernelSource,
    m: int,
    n: int,
    k: int,
    *,
    tile: str | None = None,
    scale_group: int = 0,
    slices: int = 1,
    output: Output = Output.F16,
    align_a: int = 16,
) -> LaunchGeometry:
    """How to launch one of the integer kernels on (M, K) × (K, N) in one tile configuration.

    Arguments of the kernel, in order: activations, `Int4WeightsArguments`, `EpilogueArguments`, m, n, k, bytes from row
    to row of the activations, partial sums, arrivals. Raises `KernelsError`: `bad_group_size` for a group that the
    kernel cannot scale by, `sum_too_long` when a slice of K could overflow 32 bits.
    """
    macros = source.defines(tile)
    block_m, block_n = int(macros["BLOCK_M"]), int(macros["BLOCK_N"])
    if scale_group not in SCALE_GROUPS or (scale_group == 32 and source is GEMM_S4_NATIVE):
        raise KernelsError(
            f"kernel {source.name!r} cannot scale by groups of {scale_group}",
            hint="groups of 64 and larger powers of two run everywhere, 32 on the 8-bit paths, 0 is per channel",
            code="bad_group_size",
        )
    if scale_group and tile in PER_CHANNEL_TILES:
        raise KernelsError(
            f"tile {tile!r} has no room for sums by groups",
            hint=f"use one of {', '.join(name for name in TILES if name not in PER_CHANNEL_TILES)}",
            code="bad_group_size",
        )
    if source is not GEMM_S4_NATIVE and scale_group == 0 and padded_k(-(-k // slices)) > MAX_K_OF_A_SLICE:
        raise KernelsError(
            f"a sum of {k} products in {slices} slice(s) may exceed 32 bits",
            hint=f"use {-(-k // MAX_K_OF_A_SLICE) + 1} slices",
            code="sum_too_long",
        )
    threads = 32 * int(macros["WARPS_M"]) * int(macros["WARPS_N"])
    x_bytes = STEP_K if source is GEMM_W4A8 else W_BYTES
    ratio_rows = 0 if scale_group == 0 else 2 if scale_group == 32 else 1
    stage = block_m * x_bytes + block_n * (W_BYTES + 2 * ratio_rows)
    tiles = -(-m // block_m) * -(-n // block_n)
    split = slices > 1
    return LaunchGeometry(
        grid=(tiles, 1, slices),
        threads=threads,
        shared_bytes=int(macros["STAGES"]) * stage,
        defines={"SCALE_GROUP": scale_group, "SPLIT_K": int(split), "OUTPUT": int(output), "ALIGN_A": align_a},
        partial_bytes=4 * tiles * slices * block_m * block_n if split else 0,
        arrivals=tiles if split else 0,
    )


def pack_ratios(scale: Array) -> tuple[Array, Array]:
    """Scales (groups, N) as the integer kernels take them: float16 ratios (groups, N padded to 8) and float32 (N,).

    value = code · ratio · channel scale, see `packing.relative_scales`. Raises `KernelsError` (`bad_scale`).
    """
    scale = np.asarray(scale, np.float64)
    if scale.ndim != 2 or not bool(np.all(np.isfinite(scale) & (scale > 0))):
        raise KernelsError(
            f"scales of shape {scale.shape} are not positive numbers (groups, N)",
            hint="one positive scale per group and channel",
            code="bad_scale",
        )
    found, channel = relative_scales(scale)
    ratios = np.zeros((scale.shape[0], -(-scale.shape[1] // RATIO_ALIGNMENT) * RATIO_ALIGNMENT), np.float16)
    ratios[:, : scale.shape[1]] = found
    return ratios, channel
