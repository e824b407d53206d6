"""Triton as a contender: the kernels of `triton_kernels`, in the few tiles that suit an op's rows.

Each tile is a variant that the backend checks and gets a first impression of, as it does with ours: that is all the
tuning there is, and it is bounded. Triton compiles a tile when it is first checked, never inside a capture: copies are
allocations of their own, hence all aligned alike, so no launch asks for another specialization later.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch

from kernels.backends.cuda_contender import Array, upload
from kernels.backends.cuda_product import Multiply, ProductContender
from kernels.cuda.launch import Reads
from kernels.op_shape import LinearShape, OpShape
from kernels.precision import Precision
from kernels.random_layer import RandomLayer

Tile = Mapping[str, int]
MAX_K = 131_071
"""Longest sum of products of int8 codes that 32 bits hold, were all of them -128."""
MOST_STEP = 128
LEAST_GROUP = 32
"""A step of 32 k is two products of 16, the least that tensor cores take."""
FEW_ROWS = 32
GROUP_M = 8
_ZERO = 8
_TOLERANCE = 2e-3


def _tile(m: int, n: int, k: int, warps: int, stages: int) -> Tile:
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}


INT8_TILES: Mapping[str, Tile] = {
    "128x256": _tile(128, 256, 128, 8, 3),
    "128x128": _tile(128, 128, 128, 8, 3),
    "64x64": _tile(64, 64, 128, 4, 4),
    "32x64": _tile(32, 64, 256, 4, 3),
    "16x32": _tile(16, 32, 256, 4, 4),
}
INT4_TILES: Mapping[str, Tile] = {
    "128x128": _tile(128, 128, 0, 8, 3),
    "64x64": _tile(64, 64, 0, 4, 4),
    "32x64": _tile(32, 64, 0, 4, 4),
    "16x64": _tile(16, 64, 0, 4, 5),
    "16x32": _tile(16, 32, 0, 4, 5),
}
"""Rows × columns of a program, warps, and steps of K in flight; the step itself is the group's or `MOST_STEP`."""


class Triton(ProductContender):
    """w8a8 and weight-only 4-bit products with fused scale and bias, from int8 codes or halves to halves."""

    name = "triton"
    tolerance = _TOLERANCE

    @property
    def missing(self) -> str:
        return _missing() or ("" if self.device.torch_device != "cpu" or _interprets() else "triton needs a GPU")

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        is_int4 = precision.is_weight_only and precision.weight_bits == 4
        if not isinstance(op, LinearShape) or not (is_int4 or precision.name == "w8a8"):
            return "has w8a8 and 4-bit weight-only matrix products"
        if not is_int4 and op.k > MAX_K:
            return f"sums at most {MAX_K} products of int8"
        group = precision.group_size
        if is_int4 and group is not None and (group < LEAST_GROUP or group & (group - 1)):
            return f"scales by groups of powers of two from {LEAST_GROUP}"
        if self.device.arch == "sm_75":
            return "needs tensor cores of sm_80 or newer"
        return self.missing or None

    def reads(self, precision: Precision) -> Reads:
        return Reads.HALVES if precision.is_weight_only else Reads.CODES

    def variants(self, op: LinearShape, precision: Precision) -> tuple[str, ...]:
        return fitting(INT4_TILES if precision.is_weight_only else INT8_TILES, op.m)

    def product(self, layer: RandomLayer, copies: int) -> Multiply:
        assert isinstance(layer.op, LinearShape)
        assert layer.weight_scale is not None
        n, k = layer.op.n, layer.op.k
        kernels = _kernels()
        offset = None if layer.bias is None else upload(self.device, layer.bias.astype(np.float32))[0]
        if layer.precision.is_weight_only:
            group = layer.precision.group_size or 0
            step = step_of(group)
            packed, scales = pack_halves(layer.weight, step), layer.weight_scale
            kernel, tiles, more = kernels.widened_int4, INT4_TILES, {"GROUP": group, "STEP": step}
        else:
            packed = layer.weight.T
            scales = np.float64(np.float32(layer.input_scale)) * layer.weight_scale.astype(np.float64)
            kernel, tiles, more = kernels.scaled_int8, INT8_TILES, {}
        weights = self.copies_of(packed, copies)
        scale = upload(self.device, scales.astype(np.float32))[0]

        def multiply(variant: str, copy: int, x: torch.Tensor) -> torch.Tensor:
            tile = {name: value for name, value in tiles[variant].items() if value}
            depth = tile.get("BLOCK_K", more.get("STEP", 1))
            m = x.shape[0]
            out = torch.empty((m, n), dtype=torch.float16, device=x.device)
            grid = (-(-m // tile["BLOCK_M"]) * -(-n // tile["BLOCK_N"]),)
            kernel[grid](
                x, weights[copy], out, scale, scale if offset is None else offset, m, n, k,
                HAS_OFFSET=offset is not None, DIVIDES=k % depth == 0, GROUP_M=GROUP_M, **tile, **more,
            )  # fmt: skip
            return out

        return multiply


def fitting(tiles: Mapping[str, Tile], m: int) -> tuple[str, ...]:
    """Tiles worth trying for so many rows: the flat ones for few, the tall ones for more than `FEW_ROWS`."""
    few = tuple(name for name, tile in tiles.items() if tile["BLOCK_M"] <= max(16, m))
    tall = tuple(name for name in few if tiles[name]["BLOCK_M"] > FEW_ROWS)
    return tall or few


def step_of(group: int) -> int:
    """k of one step: a whole group, or the power of two of it that a step may have at most; any without groups."""
    return min(group or MOST_STEP, MOST_STEP)


def pack_halves(codes: Array, step: int) -> Array:
    """Bytes (steps · step / 2, N) of codes (K, N) in [-8, 7], biased by 8; K is padded with code 0.

    Row r of a step holds its k = r in the low nibble and its k = step / 2 + r in the high one.
    """
    k, n = codes.shape
    padded = np.pad(codes.astype(np.int16), ((0, -k % step), (0, 0))) + _ZERO
    halves = padded.astype(np.uint8).reshape(-1, 2, step // 2, n)
    return np.ascontiguousarray((halves[:, 0] | halves[:, 1] << 4).reshape(-1, n))


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=1)
def _missing() -> str:
    try:
        _kernels()
    except Exception as error:  # a package that is broken or half installed fails at import in ways of its own
        return f"triton cannot be used: {type(error).__name__}: {error}".splitlines()[0]
    return ""


def _kernels() -> ModuleType:
    return importlib.import_module("kernels.backends.triton_kernels")
