"""Convolution kernels from the host's side: which one runs an op, in which tile, with which weights and arguments.

Activations are NHWC. Three kernels: `conv_s8` and `conv_w4` are implicit matrix products (`src/conv.cuh` draws them),
`conv_depthwise` takes ops with one input channel per group. A 1 × 1 convolution of stride 1 without padding is a plain
matrix product and belongs to the `gemm` kernels (`as_product`).
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.cuda.capability import Via, capability
from kernels.cuda.conv_packing import (
    CODES_PER_STEP,
    CODES_PER_WORD,
    by_taps,
    pack_depthwise,
    pack_pixels,
    pack_taps,
    step_order,
)
from kernels.cuda.epilogue import Output
from kernels.cuda.packing import pack_int4
from kernels.cuda.source import Defines, KernelSource
from kernels.errors import UnsupportedPrecision
from kernels.op_shape import Conv2dShape, LinearShape
from kernels.precision import Precision

Array = np.ndarray[Any, Any]

WARP = 32
WORD_BYTES = 4
VECTORS, WORDS, BYTES = 16, 4, 1
"""What pixels and groups start at a multiple of (macro ALIGN_X): that much is copied at once."""
MOST_PADDING = 1.25
"""Channels are padded to whole vectors as long as that makes the reduction at most this much longer."""
LEAST_STEPS = 4
"""Steps of K that a slice should have: fewer do not pay for gathering the sums."""
MOST_SLICES = 16
_DEPTHWISE: Defines = {"THREADS_C": 16, "THREADS_P": 8, "PIXELS": 4, "OUTPUT": int(Output.S8)}


def _tile(m: int, n: int, warps_m: int, warps_n: int, stages: int, align: int) -> Defines:
    return {
        "BLOCK_M": m, "BLOCK_N": n, "WARPS_M": warps_m, "WARPS_N": warps_n, "STAGES": stages, "ALIGN_X": align,
        "SPLIT_K": 0, "OUTPUT": int(Output.S8),
    }  # fmt: skip


TILES: dict[str, Defines] = {
    "128x64": _tile(128, 64, 2, 2, 3, VECTORS),
    "128x128": _tile(128, 128, 2, 4, 3, VECTORS),
    "64x64": _tile(64, 64, 2, 2, 4, VECTORS),
    "64x32": _tile(64, 32, 2, 2, 4, VECTORS),
    "128x64-words": _tile(128, 64, 4, 2, 3, WORDS),
    "64x32-words": _tile(64, 32, 2, 2, 3, WORDS),
    "64x32-bytes": _tile(64, 32, 2, 2, 3, BYTES),
}
"""Pixels x channels of one block's output, by what they copy. All write int8 codes unless `OUTPUT` is given anew."""

DEPTHWISE_TILES: dict[str, Defines] = {
    "64 channels": {**_DEPTHWISE, "ALIGN_X": WORDS},
    "64 channels-bytes": {**_DEPTHWISE, "ALIGN_X": BYTES},
}

_MMA_S8 = ("mma.m16n8k32.s8", "mma.m8n8k16.s8")
_MMA_S4 = ("mma.m16n8k64.s4", "mma.m8n8k32.s4")


def _with_step(step: str, first: str = "128x64") -> dict[str, Defines]:
    """All tiles in one STEP, the default first; with 4-bit activations the larger ones are short of registers."""
    return {name: {**TILES[name], "STEP": step} for name in dict.fromkeys([first, *TILES])}


CONV_S8 = KernelSource("conv_s8", "conv_s8.cu", "conv_s8", TILES, _MMA_S8)
CONV_W4A8 = KernelSource("conv_w4a8", "conv_w4.cu", "conv_w4", _with_step("ConvW4A8"), _MMA_S8)
CONV_W4A4 = KernelSource("conv_w4a4", "conv_w4.cu", "conv_w4", _with_step("ConvW4A4", "64x64"), _MMA_S8)
CONV_S4_NATIVE = KernelSource("conv_s4_native", "conv_w4.cu", "conv_w4", _with_step("ConvS4", "64x64"), _MMA_S4)
CONV_DEPTHWISE = KernelSource("conv_depthwise", "conv_depthwise.cu", "conv_depthwise", DEPTHWISE_TILES)
SOURCES = (CONV_S8, CONV_W4A8, CONV_W4A4, CONV_S4_NATIVE, CONV_DEPTHWISE)


class ConvArguments(ctypes.Structure):
    """`struct Conv` of `src/conv.cuh`: device addresses and numbers, field for field."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("x", "w", "partial", "arrivals")),
        *(
            (name, ctypes.c_int32)
            for name in (
                "m", "n", "height", "width", "out_height", "out_width", "kernel_height", "kernel_width",
                "stride_height", "stride_width", "pad_top", "pad_left", "dilation_height", "dilation_width",
                "ld_x", "group_bytes", "tap_bytes", "steps", "slices",
            )
        ),
    )  # fmt: skip


class DepthwiseArguments(ctypes.Structure):
    """`struct Depthwise` of `conv_depthwise.cu`."""

    _fields_ = (
        ("x", ctypes.c_uint64),
        ("w", ctypes.c_uint64),
        *(
            (name, ctypes.c_int32)
            for name in (
                "channels", "multiplier", "batch", "height", "width", "out_height", "out_width", "kernel_height",
                "kernel_width", "stride_height", "stride_width", "pad_top", "pad_left", "dilation_height",
                "dilation_width", "ld_x",
            )
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class ConvPlan:
    """One launch: the kernel and its tile, blocks, threads, shared memory, and how weights must be packed.

    `ld_x` is the bytes from pixel to pixel that the activations are stored with. `slices` blocks share one output tile
    along K; then `partial_bytes` of memory and `arrivals` counters of 4 bytes are needed, both zero before the first
    launch; every launch leaves them so.
    """

    op: Conv2dShape
    source: KernelSource
    tile: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    ld_x: int
    group_bytes: int = 0
    tap_bytes: int = 0
    steps: int = 0
    slices: int = 1
    partial_bytes: int = 0
    arrivals: int = 0

    @property
    def defines(self) -> Defines:
        """Macros beside the tile's and `OUTPUT`."""
        return {"SPLIT_K": 1} if self.slices > 1 else {}

    def arguments(self, x: int, w: int, partial: int = 0, arrivals: int = 0) -> ctypes.Structure:
        """The kernel's first argument from device addresses; the second is an `EpilogueArguments`."""
        op = self.op
        height, width = op.out_size
        place = {
            "x": x, "w": w, "height": op.height, "width": op.width, "out_height": height, "out_width": width,
            "kernel_height": op.kernel[0], "kernel_width": op.kernel[1],
            "stride_height": op.stride[0], "stride_width": op.stride[1],
            "pad_top": op.padding[0], "pad_left": op.padding[1],
            "dilation_height": op.dilation[0], "dilation_width": op.dilation[1], "ld_x": self.ld_x,
        }  # fmt: skip
        if self.source is CONV_DEPTHWISE:
            return DepthwiseArguments(
                channels=op.out_channels, multiplier=op.out_channels // op.groups, batch=op.batch, **place
            )
        return ConvArguments(
            m=op.batch * height * width, n=op.out_channels // op.groups, group_bytes=self.group_bytes,
            tap_bytes=self.tap_bytes, steps=self.steps, slices=self.slices, partial=partial, arrivals=arrivals,
            **place,
        )  # fmt: skip

    def pack_weights(self, codes: Array) -> Array:
        """Weight codes (O, C / groups, R, S) as the kernel reads them: int8, or uint32 words of 4-bit codes."""
        if self.source is CONV_DEPTHWISE:
            return pack_depthwise(codes)
        if self.source is CONV_S8:
            return pack_taps(codes, self.tap_bytes)
        if self.source is CONV_W4A8:
            return pack_int4(pack_taps(codes, self.tap_bytes)[:, step_order(self.steps)])
        return pack_int4(by_taps(codes, self.tap_bytes * 2))

    def pack_input(self, codes: Array) -> Array:
        """Activation codes (N, H, W, C) as the kernel reads them: int8 rows, or words of 4-bit codes by group."""
        pixels = codes.reshape(-1, codes.shape[-1])
        if self.source not in (CONV_W4A4, CONV_S4_NATIVE):
            stored = np.zeros((len(pixels), self.ld_x), np.int8)
            stored[:, : pixels.shape[1]] = pixels
            return stored
        return pack_pixels(pixels, self.op.groups)


def as_product(op: Conv2dShape) -> LinearShape | None:
    """The product (N·H·W, C) × (C, O) that a convolution is, if it is one: 1 × 1, stride 1, nothing around it."""
    if op.kernel == (1, 1) and op.stride == (1, 1) and not any(op.padding) and op.groups == 1:
        return LinearShape(op.batch * op.height * op.width, op.in_channels, op.out_channels, op.bias)
    return None


def fitting_tiles(op: Conv2dShape, precision: Precision, arch: str, ld_x: int | None = None) -> list[str]:
    """Tiles that can run an op, for whoever measures which is fastest: of its alignment, not far too large for it."""
    source = _source(op, precision, arch)
    if source is CONV_DEPTHWISE:
        return [_plan_depthwise(op, ld_x).tile]
    align = _reading(op, source, ld_x).align
    rows, columns = op.batch * math.prod(op.out_size), op.out_channels // op.groups
    sizes = {name: (int(t["BLOCK_M"]), int(t["BLOCK_N"])) for name, t in TILES.items() if t["ALIGN_X"] == align}
    fitting = [name for name, (m, n) in sizes.items() if m < 2 * rows and n < 2 * columns]
    return fitting or [min(sizes, key=lambda name: math.prod(sizes[name]))]


def plan_convolution(
    op: Conv2dShape, precision: Precision, arch: str, cores: int, ld_x: int | None = None, tile: str | None = None
) -> ConvPlan:
    """The launch of an op on a device of `cores` multiprocessors, in a tile of `fitting_tiles` or the likeliest one.

    `ld_x` (bytes from pixel to pixel of 8-bit activations) defaults to the channels, rounded up to 4: a picture of 3
    channels is stored as 4. Raises `UnsupportedPrecision` for a precision without a convolution kernel.
    """
    source = _source(op, precision, arch)
    if source is CONV_DEPTHWISE:
        return _plan_depthwise(op, ld_x)
    reading = _reading(op, source, ld_x)
    steps = math.ceil(op.kernel[0] * op.kernel[1] * reading.tap_bytes / x_bytes(source))
    rows, columns = op.batch * math.prod(op.out_size), op.out_channels // op.groups
    tile = tile or _likeliest_tile(rows, columns, op.groups, reading.align, cores)
    shape = source.defines(tile)
    blocks = math.ceil(rows / int(shape["BLOCK_M"])) * math.ceil(columns / int(shape["BLOCK_N"]))
    slices = _slices(blocks * op.groups, steps, cores)
    area = int(shape["BLOCK_M"]) * int(shape["BLOCK_N"])
    return ConvPlan(
        op=op,
        source=source,
        tile=tile,
        grid=(blocks, op.groups, slices),
        threads=WARP * int(shape["WARPS_M"]) * int(shape["WARPS_N"]),
        shared_bytes=shared_bytes(source, tile),
        ld_x=reading.ld_x,
        group_bytes=reading.group_bytes,
        tap_bytes=reading.tap_bytes,
        steps=steps,
        slices=slices,
        partial_bytes=4 * area * blocks * op.groups if slices > 1 else 0,
        arrivals=blocks * op.groups if slices > 1 else 0,
    )


def x_bytes(source: KernelSource) -> int:
    """Bytes of activations in a row of one step."""
    return CODES_PER_STEP // (2 if source in (CONV_W4A4, CONV_S4_NATIVE) else 1)


def piece_bytes(align: int) -> int:
    """Bytes that one thread copies at once."""
    return VECTORS if align == VECTORS else WORD_BYTES


def shared_bytes(source: KernelSource, tile: str) -> int:
    """Dynamic shared memory of a tile: the ring of stages, which finished sums pass through too."""
    shape = source.defines(tile)
    w_row = CODES_PER_STEP // (1 if source is CONV_S8 else 2)
    return int(shape["STAGES"]) * (int(shape["BLOCK_M"]) * x_bytes(source) + int(shape["BLOCK_N"]) * w_row)


def _source(op: Conv2dShape, precision: Precision, arch: str) -> KernelSource:
    via = capability(arch, precision.name)
    if precision.name in ("w8a8", "w4a8") and op.groups > 1 and op.groups == op.in_channels:
        return CONV_DEPTHWISE
    if precision.name == "w4a4" and via is Via.NATIVE:
        return CONV_S4_NATIVE
    found = {"w8a8": CONV_S8, "w4a8": CONV_W4A8, "w4a4": CONV_W4A4}.get(precision.name)
    if found is None or via is Via.UNSUPPORTED:
        raise UnsupportedPrecision(
            f"there is no convolution kernel for {precision} on {arch}", hint="there are w8a8, w4a8 and w4a4"
        )
    return found


@dataclass(frozen=True)
class _Reading:
    """How pixels are read: bytes from one to the next, of one group in it, the same padded, and their alignment."""

    ld_x: int
    group_bytes: int
    tap_bytes: int
    align: int


def _reading(op: Conv2dShape, source: KernelSource, ld_x: int | None) -> _Reading:
    """Vectors where pixels and groups start at them and padding the channels costs little, else words or bytes."""
    per_group = op.in_channels // op.groups
    if source in (CONV_W4A4, CONV_S4_NATIVE):
        group_bytes = math.ceil(per_group / CODES_PER_WORD) * WORD_BYTES
        ld_x = group_bytes * op.groups
    else:
        group_bytes = per_group
        ld_x = ld_x or _round_up(op.in_channels, WORD_BYTES)
    starts = [ld_x] if op.groups == 1 else [ld_x, group_bytes]
    align = next(unit for unit in (VECTORS, WORDS, BYTES) if all(start % unit == 0 for start in starts))
    if align == VECTORS and _round_up(group_bytes, VECTORS) > MOST_PADDING * group_bytes:
        align = WORDS
    return _Reading(ld_x, group_bytes, _round_up(group_bytes, piece_bytes(align)), align)


def _likeliest_tile(rows: int, columns: int, groups: int, align: int, cores: int) -> str:
    """The largest tile that still gives every multiprocessor a block and wastes no whole half on few channels."""
    names = [name for name, tile in TILES.items() if tile["ALIGN_X"] == align]
    names.sort(key=lambda name: -int(TILES[name]["BLOCK_M"]) * int(TILES[name]["BLOCK_N"]))
    for name in names:
        m, n = int(TILES[name]["BLOCK_M"]), int(TILES[name]["BLOCK_N"])
        if 2 * columns > n and groups * math.ceil(rows / m) * math.ceil(columns / n) >= cores:
            return name
    return names[-1]


def _slices(blocks: int, steps: int, cores: int) -> int:
    """Blocks that share one output tile, so that there is one for every multiprocessor and each has work to do."""
    return max(1, min(cores // blocks, steps // LEAST_STEPS, MOST_SLICES))


def _plan_depthwise(op: Conv2dShape, ld_x: int | None) -> ConvPlan:
    ld_x = ld_x or _round_up(op.in_channels, WORD_BYTES)
    by_words = op.out_channels == op.in_channels and ld_x % WORD_BYTES == 0
    tile = next(name for name, macros in DEPTHWISE_TILES.items() if macros["ALIGN_X"] == (WORDS if by_words else BYTES))
    shape = DEPTHWISE_TILES[tile]
    threads_c, threads_p, pixels = (int(shape[name]) for name in ("THREADS_C", "THREADS_P", "PIXELS"))
    height, width = op.out_size
    pieces = op.batch * height * math.ceil(width / pixels)
    return ConvPlan(
        op=op,
        source=CONV_DEPTHWISE,
        tile=tile,
        grid=(math.ceil(pieces / threads_p), math.ceil(op.out_channels / (4 * threads_c)), 1),
        threads=threads_c * threads_p,
        shared_bytes=0,
        ld_x=ld_x,
    )


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
