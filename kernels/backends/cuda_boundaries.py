"""Boundaries on a GPU: tensors that change between half precision and codes, and what an empty launch costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from kernels.backends.base import TimedOp
from kernels.backends.cuda_contender import poisoned, upload
from kernels.backends.cuda_device import CudaDevice, DeviceClock, Geometry, Work
from kernels.backends.cuda_timing import repeated
from kernels.cuda.epilogue import Output
from kernels.cuda.int8 import DEQUANTIZE, EMPTY, QUANTIZE
from kernels.cuda.signature import signature_of

RUN = 4
"""Neighbouring columns that a thread converts at once (`WIDTH` of quantize.cu)."""
ELEMENTS = (1 << 12, 1 << 16, 1 << 20, 1 << 23)
"""Sizes of the conversions in a table: from one token of an encoder to a picture of many channels."""
COLUMNS = 256
EMPTY_REPEATS, REPEATS = 512, 32


class Quantize:
    """Half-precision rows to int8 codes of one scale, symmetric."""

    def __init__(self, device: CudaDevice, scale: float, bits: int = 8) -> None:
        self._device = device
        self._scale = upload(device, np.full(1, scale, np.float32))[0]
        self._zero = upload(device, np.zeros(1, np.int32))[0]
        self._limit = 1 << (bits - 1)
        self._function = device.function(QUANTIZE, "default", {"INPUT": int(Output.F16)}, 0)

    def enqueue(self, x: torch.Tensor, codes: torch.Tensor) -> None:
        """`x` (rows, columns) half, contiguous; `codes` (rows, pitch) int8, of which `columns` are written."""
        rows, columns = x.shape
        values = {
            "x": x.data_ptr(), "codes": codes.data_ptr(), "scale": self._scale.data_ptr(),
            "zero_point": self._zero.data_ptr(), "rows": rows, "columns": columns, "ld_x": columns,
            "ld_codes": codes.shape[1], "per_channel": 0, "low": -self._limit, "high": self._limit - 1,
        }  # fmt: skip
        arguments = signature_of(QUANTIZE).arguments(values)
        self._device.launch(self._function, _geometry(rows, columns), arguments, _moved(rows * columns))


class Dequantize:
    """int8 codes of one symmetric scale back to half precision."""

    def __init__(self, device: CudaDevice, scale: float) -> None:
        self._device = device
        self._scale = upload(device, np.full(1, scale, np.float32))[0]
        self._zero = upload(device, np.zeros(1, np.int32))[0]
        self._function = device.function(DEQUANTIZE, "default", {"OUTPUT": int(Output.F16)}, 0)

    def enqueue(self, codes: torch.Tensor, y: torch.Tensor) -> None:
        """`codes` (rows, pitch) int8 into `y` (rows, columns) half, contiguous."""
        rows, columns = y.shape
        values = {
            "codes": codes.data_ptr(), "y": y.data_ptr(), "scale": self._scale.data_ptr(),
            "zero_point": self._zero.data_ptr(), "rows": rows, "columns": columns, "ld_codes": codes.shape[1],
            "ld_y": columns, "per_channel": 0,
        }  # fmt: skip
        arguments = signature_of(DEQUANTIZE).arguments(values)
        self._device.launch(self._function, _geometry(rows, columns), arguments, _moved(rows * columns))


def _geometry(rows: int, columns: int) -> Geometry:
    macros = QUANTIZE.defines()
    threads, items = int(macros["BLOCK_THREADS"]), int(macros["ITEMS"])
    return Geometry((math.ceil(rows * math.ceil(columns / RUN) / (threads * items)), 1, 1), (threads, 1, 1))


def _moved(elements: int) -> Work:
    return Work(moved_bytes=3.0 * elements)


def overhead_arms(device: CudaDevice, clock: DeviceClock) -> Mapping[tuple[str, str], Callable[[], TimedOp]]:
    """Arms of an empty launch and of conversions of several sizes, by (signature, precision name)."""
    arms: dict[tuple[str, str], Callable[[], TimedOp]] = {("empty", "fp16"): lambda: _empty(device, clock)}
    for elements in ELEMENTS:
        arms[f"quantize_e{elements}", "w8a8"] = _conversion(device, clock, elements, "quantize")
        arms[f"dequantize_e{elements}", "w8a8"] = _conversion(device, clock, elements, "dequantize")
    return arms


def _empty(device: CudaDevice, clock: DeviceClock) -> TimedOp:
    function = device.function(EMPTY, "default", {}, 0)
    geometry = Geometry((1, 1, 1), (32, 1, 1))
    return repeated(device, clock, lambda: device.launch(function, geometry, [], Work()), "empty", EMPTY_REPEATS)


def _conversion(device: CudaDevice, clock: DeviceClock, elements: int, kind: str) -> Callable[[], TimedOp]:
    def build() -> TimedOp:
        shape = (elements // COLUMNS, COLUMNS)
        generator = np.random.default_rng(elements)
        if kind == "quantize":
            x = upload(device, generator.standard_normal(shape).astype(np.float16))[0]
            codes = poisoned(device, shape, torch.int8)
            quantizer = Quantize(device, 0.03)
            return repeated(device, clock, lambda: quantizer.enqueue(x, codes), kind, REPEATS)
        taken = upload(device, generator.integers(-128, 128, shape).astype(np.int8))[0]
        y = poisoned(device, shape, torch.float16)
        dequantizer = Dequantize(device, 0.03)
        return repeated(device, clock, lambda: dequantizer.enqueue(taken, y), kind, REPEATS)

    return build
