"""Matrix products of libraries: one expression over torch tensors that a table times and a network runs.

A row is only worth something if what it timed can be used, so a contender of this kind says what activations it reads,
leaves half precision like all matrix products here, and is bound into networks by the name its row has. Conversions
that it needs (tinygemm computes in bf16) are part of it, because a network pays for them too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch

from kernels.backends.cuda_contender import Array, Contender, Prepared, upload, work_of
from kernels.backends.cuda_device import CudaDevice
from kernels.cuda.launch import Reads
from kernels.op_shape import LinearShape
from kernels.precision import Precision
from kernels.random_layer import RandomLayer

Call = Callable[[str, int, int], torch.Tensor]
Multiply = Callable[[str, int, torch.Tensor], torch.Tensor]
"""(variant, copy of the weights, activations (M, K)) to halves (M, N)."""
INPUT_TYPES = {Reads.CODES: torch.int8, Reads.HALVES: torch.float16}


class TorchPrepared(Prepared):
    """A torch expression over tensors already on the device; `call(variant, weight_copy, input_copy)` is the output."""

    def __init__(
        self,
        device: CudaDevice,
        layer: RandomLayer,
        name: str,
        call: Call,
        tolerance: float,
        variants: tuple[str, ...] = ("",),
    ) -> None:
        super().__init__(device, layer, variants)
        self._name = name
        self._call = call
        self._tolerance = tolerance
        self._work = work_of(layer)

    @property
    def tolerance(self) -> float:
        return self._tolerance

    def enqueue(self, variant: str, weight_copy: int, input_copy: int) -> torch.Tensor:
        call = self._call
        name = f"{self._name} {variant}".strip()
        result = self.device.run_torch(name, lambda: call(variant, weight_copy, input_copy), self._work)
        assert isinstance(result, torch.Tensor)
        return result

    def rows(self, output: torch.Tensor) -> Array:
        if output.ndim == 4:
            output = output.permute(0, 2, 3, 1).reshape(-1, output.shape[1])
        return output.to(torch.float64).cpu().numpy()


class ProductContender(Contender):
    """A library's matrix product. `tolerance` is relative to the largest expected value."""

    tolerance: float

    @abstractmethod
    def reads(self, precision: Precision) -> Reads:
        """What activations it takes: int8 codes or halves."""

    @abstractmethod
    def product(self, layer: RandomLayer, copies: int) -> Multiply:
        """The expression over `copies` copies of the layer's weights; the layer's input is not looked at."""

    def variants(self, op: LinearShape, precision: Precision) -> tuple[str, ...]:
        return ("",)

    def prepare(self, layer: RandomLayer, weight_copies: int, input_copies: int) -> Prepared:
        assert isinstance(layer.op, LinearShape)
        kind = INPUT_TYPES[self.reads(layer.precision)]
        inputs = [each.to(kind) for each in self.copies_of(layer.input, input_copies)]
        multiply = self.product(layer, weight_copies)
        return TorchPrepared(
            self.device, layer, self.name, lambda variant, w, x: multiply(variant, w, inputs[x]), self.tolerance,
            self.variants(layer.op, layer.precision),
        )  # fmt: skip

    def copies_of(self, array: Array, copies: int) -> list[torch.Tensor]:
        """The array on the device, in allocations of its own: libraries choose kernels by alignment."""
        first = upload(self.device, array)[0]
        return [first, *(first.clone() for _ in range(copies - 1))]
