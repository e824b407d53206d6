"""Our kernels as a contender: weights packed and uploaded, every tile a variant, launched with the fused epilogue.

A linear op leaves half precision (sums times scale, plus bias); a convolution leaves the codes of its output quantizer,
by the integer-only requantization that `kernels.reference` defines. The same launches run networks
(`BoundLaunch.enqueue` on tensors of the network's own).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from kernels.backends.base import OpFailed
from kernels.backends.cuda_contender import Array, Contender, Prepared, poisoned, upload, work_of
from kernels.backends.cuda_device import CudaDevice, Geometry, Work
from kernels.cuda.epilogue import EpilogueArguments, Output, dyadic_pairs
from kernels.cuda.launch import Launch, Operands, PackedWeights, launches
from kernels.op_shape import Conv2dShape, LinearShape, OpShape
from kernels.precision import Precision
from kernels.random_layer import RandomLayer

OUTPUT_TYPES = {
    Output.S32: torch.int32, Output.F32: torch.float32, Output.F16: torch.float16, Output.BF16: torch.bfloat16,
    Output.S8: torch.int8, Output.U8: torch.uint8,
}  # fmt: skip
FLOAT_TOLERANCE = {Output.S32: 0.0, Output.S8: 0.0, Output.F32: 1e-5, Output.F16: 2e-3, Output.BF16: 1e-2}


class Epilogue(Protocol):
    """What happens to the sums of a launch."""

    def arguments(self, out: torch.Tensor, columns: int, residual: torch.Tensor | None) -> EpilogueArguments:
        """The struct for a kernel that writes rows of `columns` elements; `residual` is added where there is one."""
        ...


@dataclass(frozen=True)
class EpilogueTensors:
    """What the epilogue reads, on the device. `relu` clamps at zero: codes from 0 on, or a maximum with 0. `bits` are
    those of the codes it leaves, one to a byte. A residual can be added to floats only."""

    output: Output
    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    multiplier: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    relu: bool = False
    bits: int = 8

    def arguments(self, out: torch.Tensor, columns: int, residual: torch.Tensor | None = None) -> EpilogueArguments:
        def address(tensor: torch.Tensor | None) -> int:
            return 0 if tensor is None else tensor.data_ptr()

        return EpilogueArguments(
            out=out.data_ptr(),
            bias=address(self.bias),
            scale=address(self.scale),
            multiplier=address(self.multiplier),
            shift=address(self.shift),
            offset=address(self.offset),
            residual=address(residual),
            ld_out=columns,
            ld_residual=columns,
            clamp_low=0 if self.relu else -(1 << self.bits - 1),
            clamp_high=(1 << self.bits - 1) - 1,
            relu=int(self.relu),
        )


def epilogue_of(
    device: CudaDevice, layer: RandomLayer, output: Output, relu: bool = False, channel_scale: Array | None = None
) -> EpilogueTensors:
    """The epilogue that turns a layer's sums into its output: exact int32, float, or codes by dyadic multipliers.

    `channel_scale` replaces the layer's scales where packing left only a part of them to the epilogue.
    """
    if output is Output.S32:
        codes = layer.bias_codes
        return EpilogueTensors(output, bias=None if codes is None else upload(device, codes)[0])
    if channel_scale is not None:
        offset = None if layer.bias is None else upload(device, layer.bias.astype(np.float32))[0]
        return EpilogueTensors(output, scale=upload(device, channel_scale)[0], offset=offset, relu=relu)
    assert layer.weight_scale is not None
    scale = np.float64(np.float32(layer.input_scale)) * layer.weight_scale.astype(np.float64)
    if output is Output.S8:
        assert layer.output_scale is not None
        codes = layer.bias_codes
        pairs = dyadic_pairs([float(each) for each in scale / np.float64(np.float32(layer.output_scale))])
        multiplier, shift = (upload(device, np.asarray(each, np.int32))[0] for each in pairs)
        bias = None if codes is None else upload(device, codes)[0]
        bits = layer.precision.activation_bits
        return EpilogueTensors(output, bias=bias, multiplier=multiplier, shift=shift, relu=relu, bits=bits)
    offset = None if layer.bias is None else upload(device, layer.bias.astype(np.float32))[0]
    return EpilogueTensors(output, scale=upload(device, scale.astype(np.float32))[0], offset=offset, relu=relu)


class BoundLaunch:
    """One launch with its weights (in copies), epilogue and scratch on the device."""

    def __init__(
        self,
        device: CudaDevice,
        launch: Launch,
        weights: torch.Tensor,
        epilogue: Epilogue,
        columns: int,
        work: Work,
    ) -> None:
        self.launch = launch
        self._device = device
        self._weights = weights
        self._epilogue = epilogue
        self._columns = columns
        self._work = work
        self._geometry = Geometry(launch.grid, (launch.threads, 1, 1), launch.shared_bytes)

    @cached_property
    def _function(self) -> Any:
        return self._device.function(
            self.launch.source, self.launch.tile, self.launch.defines, self.launch.shared_bytes
        )

    @cached_property
    def _scratch(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        launch = self.launch
        return _zeros(self._device, launch.partial_bytes), _zeros(self._device, 4 * launch.arrivals)

    def enqueue(self, x: torch.Tensor, out: torch.Tensor, copy: int = 0, residual: torch.Tensor | None = None) -> None:
        """Run on packed activations `x` and write all of `out` (rows, columns); `residual` has its shape and type."""
        partial, arrivals = (0 if each is None else each.data_ptr() for each in self._scratch)
        operands = Operands(x.data_ptr(), self._weights[copy].data_ptr(), partial, arrivals)
        arguments = self.launch.arguments(operands, self._epilogue.arguments(out, self._columns, residual))
        self._device.launch(self._function, self._geometry, arguments, self._work)


def _zeros(device: CudaDevice, size_bytes: int) -> torch.Tensor | None:
    if not size_bytes:
        return None
    made = device.run_torch(
        "zeros", lambda: torch.zeros(size_bytes, dtype=torch.uint8, device=device.torch_device), Work()
    )
    assert isinstance(made, torch.Tensor)
    return made


def weight_codes(layer: RandomLayer) -> Array:
    """Codes with output channels first: (N, K) or (O, C / groups, R, S)."""
    return layer.weight.T if isinstance(layer.op, LinearShape) else layer.weight


def pack(launch: Launch, layer: RandomLayer) -> PackedWeights:
    """The layer's weights as the launch reads them."""
    assert layer.weight_scale is not None
    return launch.pack_weights(weight_codes(layer), layer.weight_scale)


def input_codes(layer: RandomLayer) -> Array:
    """Activation codes (M, K) or (N, H, W, C)."""
    return layer.input if isinstance(layer.op, LinearShape) else layer.input.transpose(0, 2, 3, 1)


def output_rows(op: OpShape) -> tuple[int, int]:
    """(rows, columns) of the output: samples, or NHWC pixels, by channels."""
    if isinstance(op, Conv2dShape):
        return op.batch * math.prod(op.out_size), op.out_channels
    assert isinstance(op, LinearShape)
    return op.m, op.n


class KernelPrepared(Prepared):
    """All launches of an op over shared data; the variants are kernel and tile."""

    def __init__(
        self,
        device: CudaDevice,
        layer: RandomLayer,
        found: list[Launch],
        output: Output,
        weight_copies: int,
        inputs: int,
    ) -> None:
        super().__init__(device, layer, tuple(each.name for each in found))
        self._output = output
        self._shape = output_rows(layer.op)
        self._out = poisoned(device, self._shape, OUTPUT_TYPES[output])
        weights: dict[str, torch.Tensor] = {}
        epilogues: dict[str, EpilogueTensors] = {}
        packed_inputs: dict[str, torch.Tensor] = {}
        self._bound: dict[str, tuple[BoundLaunch, torch.Tensor]] = {}
        for each in found:
            if each.packing not in weights:
                packed = pack(each, layer)
                weights[each.packing] = upload(device, packed.data, weight_copies)
                epilogues[each.packing] = epilogue_of(device, layer, output, channel_scale=packed.channel_scale)
                packed_inputs[each.packing] = upload(device, each.pack_input(self._rows_of_input(each)), inputs)
            bound = BoundLaunch(
                device, each, weights[each.packing], epilogues[each.packing], self._shape[1], work_of(layer)
            )
            self._bound[each.name] = bound, packed_inputs[each.packing]

    def _rows_of_input(self, launch: Launch) -> Array:
        codes = input_codes(self.layer)
        is_conv = launch.source.name.startswith("conv")
        return codes if is_conv or codes.ndim == 2 else codes.reshape(-1, codes.shape[-1])

    @property
    def tolerance(self) -> float:
        return FLOAT_TOLERANCE[self._output]

    def enqueue(self, variant: str, weight_copy: int, input_copy: int) -> torch.Tensor:
        bound, inputs = self._bound[variant]
        bound.enqueue(inputs[input_copy], self._out, weight_copy)
        return self._out

    def rows(self, output: torch.Tensor) -> Array:
        return output.cpu().numpy()


class OurKernels(Contender):
    """The kernels of this package on one device; `output` overrides what a pair leaves (raw sums), `only` is the one
    launch wanted, by its name, `avoid` names kernels with their tile never to be launched."""

    name = ""

    def __init__(
        self,
        device: CudaDevice,
        output: Output | None = None,
        only: str | None = None,
        avoid: Collection[str] = (),
    ) -> None:
        super().__init__(device)
        self._avoid = avoid
        self._output = output
        self._only = only

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        found = self._launches(op, precision)
        return None if found else f"our kernels have nothing for {op.kind} in {precision} on {self.device.arch}"

    def prepare(self, layer: RandomLayer, weight_copies: int, input_copies: int) -> Prepared:
        found = self._launches(layer.op, layer.precision)
        if not found:
            raise OpFailed(f"{layer.op.signature} in {layer.precision}: every kernel that could run it is avoided")
        if self._only is not None:
            found = [each for each in found if each.name == self._only]
        self.device.compile_ahead([(each.source, each.tile, each.defines) for each in found])
        return KernelPrepared(self.device, layer, found, self._output_of(layer.op), weight_copies, input_copies)

    def _output_of(self, op: OpShape) -> Output:
        if self._output is not None:
            return self._output
        return Output.S8 if isinstance(op, Conv2dShape) else Output.F16

    def _launches(self, op: OpShape, precision: Precision) -> list[Launch]:
        found = launches(op, precision, self.device.arch, self.device.identity.cores, self._output_of(op))
        return [each for each in found if f"{each.source.name} {each.tile}" not in self._avoid]
