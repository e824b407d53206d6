"""Opponents: what torch and its libraries offer for the same op, in the same table and used where they are faster.

| contender                     | runs               | through                                             |
|-------------------------------|--------------------|-----------------------------------------------------|
| `torch fp16`, `torch bf16`    | linear, conv2d     | cuBLAS; cuDNN on channels-last tensors, autotuned   |
| `torch._int_mm`               | linear w8a8        | cuBLASLt int8, then scale and bias in two more ops  |
| `torch._scaled_mm`            | linear fp8         | cuBLASLt e4m3                                       |
| `torch._weight_int4pack_mm`   | linear w4a16-g…    | tinygemm in bf16, between two conversions           |
| `marlin`                      | linear w4a16-g128  | `cuda_marlin`: where that package is installed      |
| `triton`                      | linear w8a8, w4a16 | `cuda_triton`: its own kernels, fused, some tiles   |

Every one is checked on samples of the output before it is timed; one that is wrong or missing in this torch is left out
with its reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from kernels.backends.cuda_contender import Contender, Prepared, upload
from kernels.backends.cuda_device import CudaDevice
from kernels.backends.cuda_marlin import Marlin
from kernels.backends.cuda_product import Call, Multiply, ProductContender, TorchPrepared
from kernels.backends.cuda_triton import Triton
from kernels.cuda.launch import Reads
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape, OpShape
from kernels.precision import FP32, Precision
from kernels.random_layer import RandomLayer

FLOAT_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
HALF = "fp16"
"""What runs a layer that is not quantized: the strongest baseline, and how GPUs are served."""
FLOAT_TOLERANCE = {"fp16": 5e-3, "bf16": 4e-2}
_FP8_ARCHS = ("sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_110a", "sm_120a")
_INT_MM_MIN_ROWS = 17
_TINYGEMM_GROUPS = (32, 64, 128, 256)
_TINYGEMM_TILES = 8


class TorchFloat(Contender):
    """Full precision and its halves: the baseline that quantized kernels must beat."""

    def __init__(self, device: CudaDevice, precision: str) -> None:
        super().__init__(device)
        self.name = f"torch {precision}"
        self._precision = precision
        self._dtype = FLOAT_TYPES[precision]

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        if precision.name != self._precision and not (precision == FP32 and self._precision == HALF):
            return f"computes in {self._precision}"
        return "no embedding kernel" if isinstance(op, EmbeddingShape) else None

    def prepare(self, layer: RandomLayer, weight_copies: int, input_copies: int) -> Prepared:
        op = layer.op
        weight = layer.weight.T if isinstance(op, LinearShape) else layer.weight
        weights = self._typed(upload(self.device, weight, weight_copies))
        inputs = self._typed(upload(self.device, layer.input, input_copies))
        bias = None if layer.bias is None else upload(self.device, layer.bias)[0].to(self._dtype)
        if isinstance(op, Conv2dShape):
            call = _conv_call(op, weights, inputs, bias)
        else:

            def call(variant: str, w: int, x: int) -> torch.Tensor:
                return functional.linear(inputs[x], weights[w], bias)

        return TorchPrepared(self.device, layer, self.name, call, FLOAT_TOLERANCE[self._precision])

    def _typed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype)


def _conv_call(op: Conv2dShape, weights: torch.Tensor, inputs: torch.Tensor, bias: torch.Tensor | None) -> Call:
    """A channels-last convolution; padding that differs between sides is added by an op of its own."""
    last = torch.channels_last
    ws = [weight.contiguous(memory_format=last) for weight in weights]
    xs = [x.contiguous(memory_format=last) for x in inputs]
    top, left, bottom, right = op.padding
    even = (top, left) == (bottom, right)

    def call(variant: str, w: int, x: int) -> torch.Tensor:
        image = xs[x] if even else functional.pad(xs[x], (left, right, top, bottom))
        padding = (top, left) if even else (0, 0)
        return functional.conv2d(image, ws[w], bias, op.stride, padding, op.dilation, op.groups)

    return call


class IntMm(ProductContender):
    """cuBLASLt int8 with int32 sums; torch has no fused scale for it, so half precision comes from two more ops."""

    name = "torch._int_mm"
    tolerance = 2e-3

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        if not isinstance(op, LinearShape) or precision.name != "w8a8":
            return "multiplies int8 matrices only"
        if op.m < _INT_MM_MIN_ROWS or op.k % 8 or op.n % 8:
            return f"needs more than {_INT_MM_MIN_ROWS - 1} rows, and K and N divisible by 8"
        return None

    def reads(self, precision: Precision) -> Reads:
        return Reads.CODES

    def product(self, layer: RandomLayer, copies: int) -> Multiply:
        assert layer.weight_scale is not None
        weights = self.copies_of(layer.weight.T, copies)
        scale = upload(self.device, (np.float32(layer.input_scale) * layer.weight_scale).astype(np.float32))[0]
        bias = None if layer.bias is None else upload(self.device, layer.bias.astype(np.float32))[0]

        def multiply(variant: str, copy: int, x: torch.Tensor) -> torch.Tensor:
            sums = torch._int_mm(x, weights[copy].t())
            scaled = sums * scale if bias is None else torch.addcmul(bias, sums, scale)
            return scaled.to(torch.float16)

        return multiply


class ScaledMm(Contender):
    """cuBLASLt fp8 (e4m3) with one scale per tensor; fp8 in, half precision out."""

    name = "torch._scaled_mm"

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        if not isinstance(op, LinearShape) or precision.name != "fp8":
            return "multiplies fp8 matrices only"
        if self.device.arch not in _FP8_ARCHS:
            return f"{self.device.arch} has no fp8"
        return None if op.k % 16 == 0 and op.n % 16 == 0 else "needs K and N divisible by 16"

    def prepare(self, layer: RandomLayer, weight_copies: int, input_copies: int) -> Prepared:
        fp8 = torch.float8_e4m3fn
        weight_scale, input_scale = (float(np.abs(part).max()) / 448 for part in (layer.weight, layer.input))
        weights = (upload(self.device, layer.weight.T, weight_copies) / weight_scale).to(fp8)
        inputs = (upload(self.device, layer.input, input_copies) / input_scale).to(fp8)
        scales = [
            upload(self.device, np.full((), value, np.float32)).reshape(()) for value in (input_scale, weight_scale)
        ]
        bias = None if layer.bias is None else upload(self.device, layer.bias)[0].to(torch.float16)

        def call(variant: str, w: int, x: int) -> torch.Tensor:
            return torch._scaled_mm(
                inputs[x], weights[w].t(), scale_a=scales[0], scale_b=scales[1], bias=bias, out_dtype=torch.float16
            )

        return TorchPrepared(self.device, layer, self.name, call, 0.1)


class Int4Pack(ProductContender):
    """tinygemm, torch's own weight-only 4-bit product: bf16 activations, unsigned codes, a zero and a scale a group."""

    name = "torch._weight_int4pack_mm"
    tolerance = 4e-2

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        group = precision.group_size
        if not isinstance(op, LinearShape) or not precision.is_weight_only or precision.weight_bits != 4:
            return "multiplies float by 4-bit matrices only"
        if self.device.arch == "sm_75":
            return "needs bf16"
        if group not in _TINYGEMM_GROUPS or op.k % group or op.k % (16 * _TINYGEMM_TILES) or op.n % 8:
            return f"needs groups of {_TINYGEMM_GROUPS} that divide K, K divisible by 128 and N by 8"
        return None

    def reads(self, precision: Precision) -> Reads:
        return Reads.HALVES

    def product(self, layer: RandomLayer, copies: int) -> Multiply:
        assert layer.weight_scale is not None
        group = layer.precision.group_size
        assert group is not None
        codes = (layer.weight.T.astype(np.int64) + 8).astype(np.uint8)
        pairs = upload(self.device, codes[:, ::2] << 4 | codes[:, 1::2])[0]
        pack: Any = torch._convert_weight_to_int4pack
        packed = pack(pairs, _TINYGEMM_TILES)
        weights = [packed, *(packed.clone() for _ in range(copies - 1))]
        scales = np.stack([layer.weight_scale, np.zeros_like(layer.weight_scale)], axis=-1)
        scales_and_zeros = upload(self.device, scales)[0].to(torch.bfloat16)
        bias = None if layer.bias is None else upload(self.device, layer.bias.astype(np.float32))[0].to(torch.bfloat16)

        def multiply(variant: str, copy: int, x: torch.Tensor) -> torch.Tensor:
            taken = x.to(torch.bfloat16)
            product: torch.Tensor = torch._weight_int4pack_mm(taken, weights[copy], group, scales_and_zeros)
            return (product if bias is None else product + bias).to(torch.float16)

        return multiply


def products(device: CudaDevice) -> list[ProductContender]:
    """Matrix products that networks can use, too."""
    return [IntMm(device), Int4Pack(device), Marlin(device), Triton(device)]


def opponents(device: CudaDevice) -> list[Contender]:
    """All of them; what a device or torch cannot run is found out when it is prepared and checked."""
    floats: list[Contender] = [TorchFloat(device, precision) for precision in FLOAT_TYPES]
    return [*floats, ScaledMm(device), *products(device)]
