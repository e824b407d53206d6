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
from kernels.cuda.epilogue import Output
from kernels.cuda.packing import pack_int4
from kernels.cuda.source import Defines, KernelSource
from kernels.errors import UnsupportedPrecision
from kernels.op_shape import Conv2dShape, LinearShape
from kernels.precision import Precision

Array = np.ndarray[Any, Any]

WARP = 32
CODES_PER_STEP = 64
CODES_PER_WORD = 8
WORD_BYTES = 4
WIDE, NARROW = 16, 4
"""Bytes of a copied piece (macro PIECE): whole vectors, or words where channels and pixels are no multiple of 16."""
MOST_PADDING = 1.25
"""Channels are padded to whole vectors as long as that makes the reduction at most this much longer."""
LEAST_STEPS = 4
"""Steps of K that a slice should have: fewer do not pay for gathering the sums."""
MOST_SLICES = 16
DEPTHWISE: Defines = {"THREADS_C": 16, "THREADS_P": 8, "PIXELS": 4, "OUTPUT": int(Output.S8)}


def _tile(m: int, n: int, warps_m: int, warps_n: int, stages: int, piece: int) -> Defines:
    return {
        "BLOCK_M": m, "BLOCK_N": n, "WARPS_M": warps_m, "WARPS_N": warps_n, "STAGES": stages, "PIECE": piece,
        "OUTPUT": int(Output.S8),
    }  # fmt: skip


TILES: dict[str, Defines] = {
    "128x64": _tile(128, 64, 2, 2, 3, WIDE),
    "128x128": _tile(128, 128, 2, 4, 3, WIDE),
    "64x64": _tile(64, 64, 2, 2, 4, WIDE),
    "64x32": _tile(64, 32, 2, 2, 4, WIDE),
    "128x64-narrow": _tile(128, 64, 4, 2, 3, NARROW),
    "64x32-narrow": _tile(64, 32, 2, 2, 3, NARROW),
}
"""Tile configurations by name; the narrow ones copy words. All write int8 codes unless `OUTPUT` is given anew."""

_MMA_S8 = ("mma.m16n8k32.s8", "mma.m8n8k16.s8")
_MMA_S4 = ("mma.m16n8k64.s4", "mma.m8n8k32.s4")


def _with_step(step: str) -> dict[str, Defines]:
    return {name: {**tile, "STEP": step} for name, tile in TILES.items()}


CONV_S8 = KernelSource("conv_s8", "conv_s8.cu", "conv_s8", TILES, _MMA_S8)
CONV_W4A8 = KernelSource("conv_w4a8", "conv_w4.cu", "conv_w4", _with_step("StepW4A8"), _MMA_S8)
CONV_W4A4 = KernelSource("conv_w4a4", "conv_w4.cu", "conv_w4", _with_step("StepW4A4"), _MMA_S8)
CONV_S4_NATIVE = KernelSource("conv_s4_native", "conv_w4.cu", "conv_w4", _with_step("StepS4"), _MMA_S4)
CONV_DEPTHWISE = KernelSource("conv_depthwise", "conv_depthwise.cu", "conv_depthwise", {"64c": DEPTHWISE})
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
        per_tap = self.tap_bytes if self.source is CONV_W4A8 else self.tap_bytes * 2
        return pack_int4(_by_taps(codes, per_tap))

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


def plan_convolution(op: Conv2dShape, precision: Precision, arch: str, cores: int, ld_x: int | None = None) -> ConvPlan:
    """The launch of an op on a device of `cores` multiprocessors.

    `ld_x` (bytes from pixel to pixel of 8-bit activations) defaults to the channels, rounded up to 4: a picture of 3
    channels is stored as 4. Raises `UnsupportedPrecision` for a precision without a convolution kernel.
    """
    source = _source(op, precision, arch)
    if source is CONV_DEPTHWISE:
        return _plan_depthwise(op, ld_x or _round_up(op.in_channels, WORD_BYTES))
    per_group = op.in_channels // op.groups
    if source in (CONV_W4A4, CONV_S4_NATIVE):
        group_bytes = math.ceil(per_group / CODES_PER_WORD) * WORD_BYTES
        ld_x = group_bytes * op.groups
        x_bytes = CODES_PER_STEP // 2
    else:
        group_bytes, x_bytes = per_group, CODES_PER_STEP
        ld_x = ld_x or _round_up(op.in_channels, WORD_BYTES)
    piece = _piece_bytes(op, group_bytes, ld_x)
    tap_bytes = _round_up(group_bytes, piece)
    steps = math.ceil(op.kernel[0] * op.kernel[1] * tap_bytes / x_bytes)
    rows, columns = op.batch * math.prod(op.out_size), op.out_channels // op.groups
    tile = _choose_tile(rows, columns, op.groups, piece, cores)
    shape = source.defines(tile)
    blocks = math.ceil(rows / int(shape["BLOCK_M"])) * math.ceil(columns / int(shape["BLOCK_N"]))
    slices = _slices(blocks * op.groups, steps, cores)
    threads = WARP * int(shape["WARPS_M"]) * int(shape["WARPS_N"])
    area = int(shape["BLOCK_M"]) * int(shape["BLOCK_N"])
    return ConvPlan(
        op=op,
        source=source,
        tile=tile,
        grid=(blocks, op.groups, slices),
        threads=threads,
        shared_bytes=shared_bytes(source, tile),
        ld_x=ld_x,
        group_bytes=group_bytes,
        tap_bytes=tap_bytes,
        steps=steps,
        slices=slices,
        partial_bytes=4 * area * blocks * op.groups if slices > 1 else 0,
        arrivals=blocks * op.groups if slices > 1 else 0,
    )


def shared_bytes(source: KernelSource, tile: str) -> int:
    """Dynamic shared memory of a tile: the ring of stages, which finished sums pass through too."""
    shape = source.defines(tile)
    x_row = CODES_PER_STEP // (2 if source in (CONV_W4A4, CONV_S4_NATIVE) else 1)
    w_row = CODES_PER_STEP // (1 if source is CONV_S8 else 2)
    return int(shape["STAGES"]) * (int(shape["BLOCK_M"]) * x_row + int(shape["BLOCK_N"]) * w_row)


def pack_taps(codes: Array, tap_bytes: int) -> Array:
    """int8 (O, whole steps of 64) from codes (O, C, R, S): tap after tap, channels padded to `tap_bytes`."""
    rows = _by_taps(codes, tap_bytes)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % CODES_PER_STEP)))


def pack_depthwise(codes: Array) -> Array:
    """int8 (ceil(R·S / 4), O padded to 4, 4) from codes (O, 1, R, S): four taps of a channel side by side."""
    out_channels = codes.shape[0]
    taps = codes.reshape(out_channels, -1).astype(np.int8)
    padded = np.pad(taps, ((0, -out_channels % 4), (0, -taps.shape[1] % 4)))
    return np.ascontiguousarray(padded.reshape(len(padded), -1, 4).transpose(1, 0, 2))


def pack_pixels(codes: Array, groups: int) -> Array:
    """uint32 words (pixels, groups · ceil(C / groups / 8)) of signed 4-bit codes (pixels, C)."""
    pixels, channels = codes.shape
    per_group = channels // groups
    words = pack_int4(codes.reshape(pixels * groups, per_group))[:, : math.ceil(per_group / CODES_PER_WORD)]
    return np.ascontiguousarray(words.reshape(pixels, -1))


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


def _piece_bytes(op: Conv2dShape, group_bytes: int, ld_x: int) -> int:
    """Vectors where pixels and groups start at whole ones and the padding of the channels stays small; else words."""
    aligned = ld_x % WIDE == 0 and (op.groups == 1 or group_bytes % WIDE == 0)
    return WIDE if aligned and _round_up(group_bytes, WIDE) <= MOST_PADDING * group_bytes else NARROW


def _choose_tile(rows: int, columns: int, groups: int, piece: int, cores: int) -> str:
    """The largest tile that still gives every multiprocessor a block and wastes no whole half on few channels."""
    names = [name for name, tile in TILES.items() if tile["PIECE"] == piece]
    names.sort(key=lambda name: -int(TILES[name]["BLOCK_M"]) * int(TILES[name]["BLOCK_N"]))
    for name in names:
        m, n = int(TILES[name]["BLOCK_M"]), int(TILES[name]["BLOCK_N"])
        if 2 * columns > n and groups * math.ceil(rows / m) * math.ceil(columns / n) >= cores:
            return name
    return names[-1]


def _slices(blocks: int, steps: int, cores: int) -> int:
    """Blocks that share one output tile, so that there is one for every multiprocessor and each has work to do."""
    return max(1, min(cores // blocks, steps // LEAST_STEPS, MOST_SLICES))


def _plan_depthwise(op: Conv2dShape, ld_x: int) -> ConvPlan:
    shape = DEPTHWISE
    threads_c, threads_p, pixels = (int(shape[name]) for name in ("THREADS_C", "THREADS_P", "PIXELS"))
    height, width = op.out_size
    pieces = op.batch * height * math.ceil(width / pixels)
    return ConvPlan(
        op=op,
        source=CONV_DEPTHWISE,
        tile=CONV_DEPTHWISE.default_tile,
        grid=(math.ceil(pieces / threads_p), math.ceil(op.out_channels / (4 * threads_c)), 1),
        threads=threads_c * threads_p,
        shared_bytes=0,
        ld_x=ld_x,
    )


def _by_taps(codes: Array, per_tap: int) -> Array:
    """int8 (O, R·S·per_tap) from (O, C, R, S), channels fastest and padded by code 0."""
    out_channels, channels, height, width = codes.shape
    taps = codes.transpose(0, 2, 3, 1).reshape(out_channels, height * width, channels)
    padded = np.pad(taps, ((0, 0), (0, 0), (0, per_tap - channels)))
    return padded.reshape(out_channels, -1).astype(np.int8)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
