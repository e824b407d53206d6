"""Kernels of 8-bit codes: the W8A8 matrix products, the boundary kernels, and the empty one that prices a launch."""

from __future__ import annotations

from kernels.cuda.capability import ARCHITECTURES
from kernels.cuda.epilogue import Output
from kernels.cuda.source import Defines, KernelSource

_DEFAULTS = {"A_UNSIGNED": 0, "ALIGN_A": 16, "ALIGN_B": 16, "SPLIT_K": 0, "OUTPUT": int(Output.S8)}


def gemm_tile(block_m: int, block_n: int, block_k: int, stages: int, warps_m: int, warps_n: int) -> Defines:
    """Macros of one configuration of `gemm_s8.cu`; the rest (output, alignment, split) take their defaults."""
    return {
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "STAGES": stages, "WARPS_M": warps_m,
        "WARPS_N": warps_n, **_DEFAULTS,
    }  # fmt: skip


GEMM_S8_TILES = {
    "128x128": gemm_tile(128, 128, 64, 3, 2, 2),
    "256x128": gemm_tile(256, 128, 64, 4, 4, 2),
    "128x256": gemm_tile(128, 256, 64, 4, 2, 4),
    "128x64": gemm_tile(128, 64, 64, 4, 2, 2),
    "64x128": gemm_tile(64, 128, 64, 4, 2, 2),
    "64x64": gemm_tile(64, 64, 128, 3, 2, 2),
    "32x128": gemm_tile(32, 128, 128, 3, 1, 4),
    "32x64": gemm_tile(32, 64, 128, 4, 1, 4),
    "16x128": gemm_tile(16, 128, 128, 4, 1, 4),
    "16x64": gemm_tile(16, 64, 256, 3, 1, 4),
}
"""Rows x columns of one block's output. The tall ones reuse most and want many products; the flat ones are for few
rows, where weights stream by once and K is split over blocks."""

MAX_K = 131071
"""Longest sum of products of int8 codes that 32 bits hold, were all of them -128."""
WGMMA_BLOCK_K = 128
_SLICE_BYTES = 16 * (32 + 8) * 4
_BARRIER_BYTES = 8


def _wgmma_tile(block_m: int, block_n: int, stages: int) -> Defines:
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "STAGES": stages, "A_UNSIGNED": 0, "OUTPUT": int(Output.S8)}


WGMMA_TILES = {
    "128x256": _wgmma_tile(128, 256, 4),
    "128x128": _wgmma_tile(128, 128, 6),
    "64x256": _wgmma_tile(64, 256, 5),
    "64x128": _wgmma_tile(64, 128, 8),
}
"""Blocks of the sm_90a product; each fills the 227 KiB of a multiprocessor with stages."""

_MMA_S8 = ("mma.m16n8k32.s8", "mma.m8n8k16.s8")
_BOUNDARY = {"BLOCK_THREADS": 256, "ITEMS": 4}

EMPTY = KernelSource("empty", "empty.cu", "empty", {"default": {}})
QUANTIZE = KernelSource(
    "quantize", "quantize.cu", "quantize",
    {"default": {"MODE": 0, "INPUT": int(Output.F32), "OUTPUT": int(Output.S8), **_BOUNDARY}},
)  # fmt: skip
DEQUANTIZE = KernelSource(
    "dequantize", "quantize.cu", "dequantize",
    {"default": {"MODE": 1, "INPUT": int(Output.S8), "OUTPUT": int(Output.F32), **_BOUNDARY}},
)  # fmt: skip
REQUANTIZE = KernelSource(
    "requantize", "quantize.cu", "requantize",
    {"default": {"MODE": 2, "INPUT": int(Output.S8), "OUTPUT": int(Output.S8), **_BOUNDARY}},
)  # fmt: skip
GEMM_S8 = KernelSource("gemm_s8", "gemm_s8.cu", "gemm_s8", GEMM_S8_TILES, _MMA_S8)
GEMM_S8_WGMMA = KernelSource(
    "gemm_s8_wgmma", "gemm_s8_wgmma.cu", "gemm_s8_wgmma", WGMMA_TILES, ("wgmma.m64n256k32.s8",),
    rejected_by=frozenset(ARCHITECTURES) - {"sm_90a"},
)  # fmt: skip
SOURCES = (EMPTY, QUANTIZE, DEQUANTIZE, REQUANTIZE, GEMM_S8, GEMM_S8_WGMMA)


def wgmma_shared_bytes(tile: Defines) -> int:
    """Dynamic shared memory of a tile of `gemm_s8_wgmma.cu`: stages, a slice for every warp, barriers."""
    m, n, stages = (int(tile[name]) for name in ("BLOCK_M", "BLOCK_N", "STAGES"))
    return stages * (m + n) * WGMMA_BLOCK_K + m // 16 * _SLICE_BYTES + 2 * stages * _BARRIER_BYTES


def wgmma_threads(tile: Defines) -> int:
    """Threads of a block: a warpgroup for every 64 rows and one that copies."""
    return 128 * (int(tile["BLOCK_M"]) // 64 + 1)
