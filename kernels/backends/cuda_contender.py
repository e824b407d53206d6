"""Contender: one implementation of an op on a GPU, ours or a library's. The fastest that is right makes the row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from kernels.backends.cuda_device import CudaDevice, Work, WrongResult
from kernels.op_shape import OpShape
from kernels.precision import Precision
from kernels.random_layer import RandomLayer
from kernels.spot_check import Sample

Array = np.ndarray[Any, Any]


class Prepared(ABC):
    """An op with its data on the device, in one or more `variants` (tiles) of one kernel.

    Weights, and where asked activations, exist in several copies, so that a graph can rotate over them. `check` looks
    at a sample of the output, which is poisoned before.
    """

    def __init__(self, device: CudaDevice, layer: RandomLayer, variants: tuple[str, ...] = ("",)) -> None:
        self.device = device
        self.layer = layer
        self.variants = variants

    @abstractmethod
    def enqueue(self, variant: str, weight_copy: int, input_copy: int) -> torch.Tensor:
        """Put one execution on the stream; the tensor it will have written."""

    @abstractmethod
    def rows(self, output: torch.Tensor) -> Array:
        """An output as numbers, (rows, channels): of a convolution the pixels in NHWC order."""

    @property
    def tolerance(self) -> float:
        """Largest accepted error relative to the largest expected value; 0 for integer results."""
        return 0.0

    def check(self, variant: str, expected: Sample) -> None:
        """Run once and compare; raises `WrongResult` with the worst difference."""
        output = self.enqueue(variant, 0, 0)
        self.device.synchronize()
        found = expected.of(self.rows(output)).astype(np.float64)
        difference = np.abs(found - expected.expected)
        limit = self.tolerance * max(float(np.abs(expected.expected).max()), 1e-30)
        if not np.isfinite(found).all() or float(difference.max()) > limit:
            wrong = float(np.mean(~(difference <= limit)))
            raise WrongResult(
                f"{self.layer.op.signature} in {self.layer.precision} by {variant or type(self).__name__}: "
                f"{100 * wrong:.1f} % of {difference.size} sampled outputs are off, by up to {difference.max():.4g} "
                f"(allowed {limit:.4g})",
                hint="its time is not recorded; please report the op shape and the GPU",
            )


class Contender(ABC):
    """An implementation. `name` stands in tables; `precisions` of `why_not` are sentences for the refused."""

    name: str

    def __init__(self, device: CudaDevice) -> None:
        self.device = device

    @property
    def missing(self) -> str:
        """What has to be installed before it runs at all here, as a sentence; empty where nothing has."""
        return ""

    @abstractmethod
    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        """Why this implementation cannot run the pair; None when it can."""

    @abstractmethod
    def prepare(self, layer: RandomLayer, weight_copies: int, input_copies: int) -> Prepared:
        """The op's data packed and uploaded; raises `OutOfDeviceMemory` when it does not fit."""


def upload(device: CudaDevice, array: Array, copies: int = 1) -> torch.Tensor:
    """`copies` copies of an array on the device, stacked along a new first axis."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return device.run_torch(  # type: ignore[no-any-return]
        "upload", lambda: tensor.to(device.torch_device).expand(copies, *tensor.shape).contiguous(), Work()
    )


def poisoned(device: CudaDevice, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An output buffer full of values no kernel here writes by chance: 0x5A bytes, NaN in float formats."""

    def fill() -> torch.Tensor:
        if dtype.is_floating_point:
            return torch.full(shape, float("nan"), dtype=dtype, device=device.torch_device)
        made = torch.empty(shape, dtype=dtype, device=device.torch_device)
        made.view(torch.uint8).fill_(0x5A)
        return made

    return device.run_torch("poison", fill, Work())  # type: ignore[no-any-return]


def work_of(layer: RandomLayer) -> Work:
    """What the op has to do at least, for roofs and for the fake clock."""
    op, precision = layer.op, layer.precision
    moved = op.weight_count * precision.weight_bits + (op.input_elements + op.output_elements) * 16
    return Work(float(op.macs), moved / 8, max(precision.weight_bits, min(16, precision.activation_bits)))
