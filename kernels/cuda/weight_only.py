"""Matrix products with 4-bit weights and 16-bit activations from the host's side: tiles, launch geometry, arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from kernels.cuda.epilogue import Output
from kernels.cuda.int4 import LaunchGeometry
from kernels.cuda.packing import GROUP_SIZES, STRIP_ROWS
from kernels.cuda.source import Defines, KernelSource
from kernels.errors import KernelsError

BLOCK_K = 64
BLOCK_BYTES = 512
"""One strip of 16 channels and one block of 64 k: 32 lanes × 16 bytes."""


def _tile(tokens: int, strips: int, warps_n: int, warps_k: int, stages: int) -> Defines:
    return {
        "TOKENS": tokens, "STRIPS": strips, "WARPS_N": warps_n, "WARPS_K": warps_k, "STAGES": stages, "ALIGN_A": 16,
        "SCALE_GROUP": 128, "ZERO_POINTS": 0, "BF16": 0, "SPLIT_K": 0, "OUTPUT": int(Output.F16),
    }  # fmt: skip


TILES: Mapping[str, Defines] = {
    "16x128": _tile(16, 4, 2, 4, 4),
    "8x64": _tile(8, 2, 2, 4, 4),
    "8x128": _tile(8, 4, 2, 4, 4),
    "16x64": _tile(16, 2, 2, 4, 4),
    "32x128": _tile(32, 2, 4, 2, 4),
    "64x128": _tile(64, 2, 4, 1, 4),
}
"""Tokens × channels of one block. The flat ones split K over their warps and are for decoding; `64x128` is for batches
and has the whole K in every warp."""

GEMM_W4A16 = KernelSource(
    "gemm_w4a16", "gemm_w4a16.cu", "gemm_w4a16", TILES, ("mma.m16n8k16.f16", "mma.m16n8k8.f16")
)  # fmt: skip
GEMM_W4A16_BF16 = KernelSource(
    "gemm_w4a16_bf16", "gemm_w4a16.cu", "gemm_w4a16",
    {name: {**tile, "BF16": 1, "OUTPUT": int(Output.BF16)} for name, tile in TILES.items()},
    ("mma.m16n8k16.bf16",), rejected_by=frozenset({"sm_75"}),
)  # fmt: skip
SOURCES = (GEMM_W4A16, GEMM_W4A16_BF16)


class FragmentsArguments(ctypes.Structure):
    """`struct Fragments` of `gemm_w4a16.cu`: device addresses of the parts of `FragmentWeights` (0: absent)."""

    _fields_ = (("words", ctypes.c_uint64), ("ratios", ctypes.c_uint64), ("zero_points", ctypes.c_uint64))


def plan_weight_only(
    source: KernelSource,
    m: int,
    n: int,
    k: int,
    *,
    tile: str | None = None,
    group_size: int | None = None,
    zero_points: bool = False,
    slices: int = 1,
    output: Output | None = None,
    align_a: int = 16,
) -> LaunchGeometry:
    """How to launch the weight-only kernel on (M, K) × (K, N) in one tile configuration.

    Arguments of the kernel, in order: activations, `FragmentsArguments`, `EpilogueArguments` (whose `scale` is the
    weights' channel scale), m, n, k, bytes from row to row of the activations, partial sums, arrivals. `align_a` is
    what these rows' addresses are multiples of: 16, 4 or 1. Raises `KernelsError` (`bad_group_size`).
    """
    if group_size is not None and group_size not in GROUP_SIZES:
        raise KernelsError(
            f"kernel {source.name!r} cannot scale by groups of {group_size}",
            hint=f"group sizes are {', '.join(map(str, GROUP_SIZES))}, or none",
            code="bad_group_size",
        )
    macros = source.defines(tile)
    tokens, warps_k = int(macros["TOKENS"]), int(macros["WARPS_K"])
    warps = int(macros["WARPS_N"]) * warps_k
    strips = int(macros["STRIPS"])
    channels = STRIP_ROWS * strips * int(macros["WARPS_N"])
    ratios = 0 if group_size is None else max(1, BLOCK_K // group_size)
    pairs = ratios * (1 + zero_points) + (group_size is None and zero_points)
    stage = tokens * 2 * BLOCK_K * warps_k + warps * strips * (BLOCK_BYTES + 128 * pairs)
    tiles = -(-m // tokens) * -(-n // channels)
    split = slices > 1
    return LaunchGeometry(
        grid=(tiles, 1, slices),
        threads=32 * warps,
        shared_bytes=int(macros["STAGES"]) * stage,
        defines={
            "SCALE_GROUP": group_size or 0, "ZERO_POINTS": int(zero_points), "SPLIT_K": int(split), "ALIGN_A": align_a,
            "OUTPUT": int(macros["OUTPUT"] if output is None else output),
        },
        partial_bytes=4 * tiles * slices * tokens * channels if split else 0,
        arrivals=tiles if split else 0,
    )  # fmt: skip


def suggest_tile(m: int) -> str:
    """The tile that wastes least for this many rows of activations: measure its neighbours before trusting it."""
    return next((name for name, limit in (("8x64", 8), ("16x64", 16), ("32x128", 32)) if m <= limit), "64x128")


def suggest_slices(n: int, k: int, multiprocessors: int, tile: str, m: int = 1) -> int:
    """Slices of K that give every multiprocessor two blocks, with at least two steps in each slice."""
    macros = TILES[tile]
    channels = STRIP_ROWS * int(macros["STRIPS"]) * int(macros["WARPS_N"])
    tiles = -(-n // channels) * -(-m // int(macros["TOKENS"]))
    steps = -(-k // (BLOCK_K * int(macros["WARPS_K"])))
    return max(1, min(2 * multiprocessors // tiles, steps // 2))
