"""What every kernel computes, in numpy, from the same arguments: the arithmetic of the fake CUDA device.

A model reads the packed operands at their addresses, multiplies them exactly, and applies the epilogue the way
`src/epilogue.cuh` orders it. It shares nothing with the kernels but the meaning of their arguments; that the kernels
themselves mean the same is what the emulator's tests show.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kernels.backends.cuda_device import Geometry
from kernels.cuda.conv_packing import step_order
from kernels.cuda.epilogue import Output
from kernels.cuda.packing import (
    LANES,
    STRIP_ROWS,
    FragmentWeights,
    padded_k,
    unpack_fragments,
    unpack_int4,
)
from kernels.cuda.random_epilogue import DTYPES, from_stored, stored
from kernels.reference import conv2d

Array = np.ndarray[Any, Any]
Named = Mapping[str, Any]
Defines = Mapping[str, int | str]
_STEP = 64


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """The memory at an address as an array that shares it."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), kind).reshape(shape)


def finish(defines: Defines, e: Any, sums: Array) -> None:
    """Write (rows, columns) integer sums through the epilogue."""
    output = Output(int(defines["OUTPUT"]))
    columns = sums.shape[1]
    acc = sums + (array_at(e.bias, (columns,), np.int32) if e.bias else 0)
    if output is Output.S32:
        _out(output, e, sums.shape)[:] = acc
    elif output.is_code and e.multiplier:
        m, shift = (array_at(address, (columns,), np.int32).astype(np.int64) for address in (e.multiplier, e.shift))
        codes = ((acc * m + (np.int64(1) << (shift - 1))) >> shift) + e.zero_point
        other = _residual(output, e, sums.shape)
        if other is not None:
            half = 1 << (e.residual_shift - 1)
            codes = codes + (((other.astype(np.int64) - e.residual_zero_point) * e.residual_multiplier + half)
                             >> e.residual_shift)  # fmt: skip
        _out(output, e, sums.shape)[:] = np.clip(codes, e.clamp_low, e.clamp_high)
    else:
        finish_float(defines, e, acc.astype(np.float32) * array_at(e.scale, (columns,), np.float32))


def finish_float(defines: Defines, e: Any, values: Array) -> None:
    """Write (rows, columns) scaled float32 values through the rest of the epilogue."""
    output = Output(int(defines["OUTPUT"]))
    rows, columns = values.shape
    out, other = _out(output, e, values.shape), _residual(output, e, values.shape)
    if output.is_code:
        if other is not None:
            codes = other.astype(np.int32) - e.residual_zero_point
            values = values + codes.astype(np.float32) * np.float32(e.residual_scale)
        out[:] = np.clip(np.rint(values).astype(np.int64) + e.zero_point, e.clamp_low, e.clamp_high)
        return
    y = values * array_at(e.row_scale, (rows, 1), np.float32) if e.row_scale else values
    y = y + array_at(e.offset, (columns,), np.float32) if e.offset else y
    y = y if other is None else y + from_stored(other)
    out[:] = stored(np.maximum(y, 0) if e.relu else y, output)


def _out(output: Output, e: Any, shape: tuple[int, ...]) -> Array:
    return array_at(e.out, (shape[0], e.ld_out), DTYPES[output])[:, : shape[1]]


def _residual(output: Output, e: Any, shape: tuple[int, ...]) -> Array | None:
    if not e.residual:
        return None
    return array_at(e.residual, (shape[0], e.ld_residual), DTYPES[output])[:, : shape[1]]


def gemm_s8(defines: Defines, geometry: Geometry, at: Named) -> None:
    m, n, k = at["m"].value, at["n"].value, at["k"].value
    a = array_at(at["a"].value, (m, at["lda"].value), np.int8)[:, :k]
    b = array_at(at["b"].value, (n, at["ldb"].value), np.int8)[:, :k]
    finish(defines, at["e"], product(a, b))


def gemm_s8_wgmma(defines: Defines, geometry: Geometry, at: Named) -> None:
    a, b = (array_at(each.address, (each.rows, each.pitch), np.int8)[:, : each.columns] for each in (at["a"], at["b"]))
    finish(defines, at["e"], product(a, b))


def gemm_w4a16(defines: Defines, geometry: Geometry, at: Named) -> None:
    m, n, k, w = at["m"].value, at["n"].value, at["k"].value, at["weights"]
    group = int(defines["SCALE_GROUP"]) or None
    strips, blocks = -(-n // STRIP_ROWS), padded_k(k) // _STEP
    groups = 1 if group is None else -(-padded_k(k) // group)
    ratios = None if group is None else array_at(w.ratios, (strips, groups, 8, 2), np.float16)
    words = array_at(w.words, (strips, blocks, LANES, 4), np.uint32)
    packed = FragmentWeights(words, ratios, None, np.ones(n, np.float32), n, k, group)
    codes = unpack_fragments(packed).astype(np.float64)
    scales = packed.scales() if group is not None else np.ones((1, n))
    spread = np.repeat(scales, group or k, axis=0)[:k]
    x = array_at(at["x"].value, (m, at["ld_x"].value // 2), np.float16)[:, :k]
    sums = (x.astype(np.float64) @ (codes.T * spread)).astype(np.float32)
    finish_float(defines, at["e"], sums * array_at(at["e"].scale, (n,), np.float32))


def int4_gemm(defines: Defines, geometry: Geometry, at: Named, *, activation_bits: int) -> None:
    m, n, k = at["m"].value, at["n"].value, at["k"].value
    words = array_at(at["weights"].words, (n, padded_k(k) // 8), np.uint32)
    if activation_bits == 8:
        a = array_at(at["a"].value, (m, at["lda"].value), np.int8)[:, :k]
    else:
        a = unpack_int4(array_at(at["a"].value, (m, at["lda"].value // 4), np.uint32), k)
    finish(defines, at["e"], product(a, unpack_int4(words, k)))


def product(a: Array, b: Array) -> Array:
    """Exact int64 (M, N) of rows times rows; float64 holds every sum of 8-bit products below 2^53 exactly."""
    return np.asarray(np.rint(a.astype(np.float64) @ b.astype(np.float64).T), dtype=np.int64)


def conv(defines: Defines, geometry: Geometry, at: Named) -> None:
    """`conv_s8` and `conv_w4`; the grid's second dimension counts the groups."""
    a, groups = at["a"], geometry.grid[1]
    step = str(defines.get("STEP", "S8"))
    words = step.endswith(("W4A4", "S4"))
    channels = groups * a.group_bytes * (2 if words else 1)
    taps = a.kernel_height * a.kernel_width
    out_channels = groups * a.n
    if step == "S8":
        rows = array_at(a.w, (out_channels, a.steps * _STEP), np.int8)
    else:
        rows = unpack_int4(array_at(a.w, (out_channels, a.steps * _STEP // 8), np.uint32), a.steps * _STEP)
        if not words:
            rows = rows[:, np.argsort(step_order(a.steps))]
    per_tap = a.tap_bytes * (2 if words else 1)
    per_group = channels // groups
    weight = rows[:, : taps * per_tap].reshape(out_channels, taps, per_tap)[:, :, :per_group]
    weight = weight.transpose(0, 2, 1).reshape(out_channels, per_group, a.kernel_height, a.kernel_width)
    batch = a.m // (a.out_height * a.out_width)
    pixels = batch * a.height * a.width
    if words:
        x = unpack_int4(array_at(a.x, (pixels * groups, a.group_bytes // 4), np.uint32), a.group_bytes * 2)
        x = x.reshape(pixels, channels)
    else:
        x = array_at(a.x, (pixels, a.ld_x), np.int8)[:, :channels]
    finish(defines, at["e"], _convolved(a, x.reshape(batch, a.height, a.width, channels), weight, groups))


def conv_depthwise(defines: Defines, geometry: Geometry, at: Named) -> None:
    a = at["a"]
    taps = a.kernel_height * a.kernel_width
    ld_w = -(-a.channels // 4) * 4
    packed = array_at(a.w, (-(-taps // 4), ld_w, 4), np.int8)
    weight = packed.transpose(1, 0, 2).reshape(ld_w, -1)[: a.channels, :taps]
    groups = a.channels // a.multiplier
    x = array_at(a.x, (a.batch, a.height, a.width, a.ld_x), np.int8)[..., :groups]
    shaped = weight.reshape(a.channels, 1, a.kernel_height, a.kernel_width)
    finish(defines, at["e"], _convolved(a, x, shaped, groups))


def _convolved(a: Any, x: Array, weight: Array, groups: int) -> Array:
    """int64 (pixels, channels) of NHWC codes; pads behind are whatever the output size asks for."""

    def behind(size: int, out: int, stride: int, dilation: int, kernel: int, before: int) -> int:
        return int((out - 1) * stride + dilation * (kernel - 1) + 1 - size - before)

    bottom = behind(a.height, a.out_height, a.stride_height, a.dilation_height, a.kernel_height, a.pad_top)
    right = behind(a.width, a.out_width, a.stride_width, a.dilation_width, a.kernel_width, a.pad_left)
    image = x.transpose(0, 3, 1, 2)
    image = image[:, :, : a.height + min(0, bottom), : a.width + min(0, right)]
    sums = conv2d(
        image.astype(np.int64),
        weight.astype(np.int64),
        stride=(a.stride_height, a.stride_width),
        padding=(a.pad_top, a.pad_left, max(0, bottom), max(0, right)),
        dilation=(a.dilation_height, a.dilation_width),
        groups=groups,
    )
    return sums.transpose(0, 2, 3, 1).reshape(-1, sums.shape[1])


def _columns(at: Named, per: int) -> tuple[Array, Array]:
    """Scale and zero point, one or one per column."""
    count = per if at["per_channel"].value else 1
    return array_at(at["scale"].value, (count,), np.float32), array_at(at["zero_point"].value, (count,), np.int32)


def quantize(defines: Defines, geometry: Geometry, at: Named) -> None:
    rows, columns = at["rows"].value, at["columns"].value
    x = array_at(at["x"].value, (rows, at["ld_x"].value), DTYPES[Output(int(defines["INPUT"]))])[:, :columns]
    codes = array_at(at["codes"].value, (rows, at["ld_codes"].value), DTYPES[Output(int(defines["OUTPUT"]))])
    scale, zero = _columns(at, columns)
    steps = np.rint(from_stored(x) / scale).astype(np.int64) + zero
    codes[:, :columns] = np.clip(steps, at["low"].value, at["high"].value)


def dequantize(defines: Defines, geometry: Geometry, at: Named) -> None:
    rows, columns = at["rows"].value, at["columns"].value
    codes = array_at(at["codes"].value, (rows, at["ld_codes"].value), DTYPES[Output(int(defines["INPUT"]))])
    y = array_at(at["y"].value, (rows, at["ld_y"].value), DTYPES[Output(int(defines["OUTPUT"]))])
    scale, zero = _columns(at, columns)
    floats = (codes[:, :columns].astype(np.int64) - zero).astype(np.float32) * scale
    y[:, :columns] = stored(floats, Output(int(defines["OUTPUT"])))


def requantize(defines: Defines, geometry: Geometry, at: Named) -> None:
    rows, columns = at["rows"].value, at["columns"].value
    x = array_at(at["x"].value, (rows, at["ld_x"].value), DTYPES[Output(int(defines["INPUT"]))])[:, :columns]
    finish(defines, at["e"], x.astype(np.int64) - at["input_zero_point"].value)


def empty(defines: Defines, geometry: Geometry, at: Named) -> None:
    """Nothing."""


MODELS = {
    "gemm_s8": gemm_s8,
    "gemm_s8_wgmma": gemm_s8_wgmma,
    "gemm_w4a16": gemm_w4a16,
    "gemm_w4a8": lambda defines, geometry, at: int4_gemm(defines, geometry, at, activation_bits=8),
    "gemm_w4a4": lambda defines, geometry, at: int4_gemm(defines, geometry, at, activation_bits=4),
    "gemm_s4_native": lambda defines, geometry, at: int4_gemm(defines, geometry, at, activation_bits=4),
    "conv_s8": conv,
    "conv_w4": conv,
    "conv_depthwise": conv_depthwise,
    "quantize": quantize,
    "dequantize": dequantize,
    "requantize": requantize,
    "empty": empty,
}
"""By entry point."""
