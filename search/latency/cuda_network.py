"""CUDA network: an assembly run on a GPU by the kernels its latency table names, torch for the rest, as one CUDA graph.

This is what a predicted latency of the `cuda` runtime is checked against. Float tensors are half precision, pictures
channels-last; a quantized layer reads int8 codes (made once per tensor, whoever reads them) and a convolution leaves
them. Codes are turned back to halves only where an op that is no layer reads them, so the conversions that run are
those an exported model would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from kernels.backends.base import ExecutedOp, LoadedModel
from kernels.backends.cuda_bind import BoundOp, bind, pack_nibbles, pitch_of
from kernels.backends.cuda_boundaries import Dequantize, Quantize
from kernels.backends.cuda_device import CudaDevice, DeviceClock, Work
from kernels.backends.cuda_device import Graph as CudaGraph
from kernels.cuda.launch import Reads
from kernels.latency_table import LatencyTable
from kernels.op_shape import Conv2dShape, EmbeddingShape, OpShape
from kernels.precision import Precision
from kernels.random_layer import RandomLayer
from search.assembly import Assembly, Candidate
from search.candidates.assemble import assemble
from search.candidates.candidate_set import CandidateSet
from search.graph import Graph, Layer, OperatingShapes
from search.onnx_import import Program

Choose = Callable[[OpShape, Precision], Sequence[str]]
Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Codes:
    """A quantized tensor: (rows, pitch) int8 of which `columns` count, its scale, and the shape its floats have."""

    data: torch.Tensor
    columns: int
    scale: float
    shape: tuple[int, ...]


class CudaNetwork(LoadedModel):
    """One assembly at one operating point. `choose` gives kernel names for a pair, best first (a table's `tried`).

    `run` replays the graph on the given inputs; the first call captures it. Fewer samples than the operating point's
    batch are repeated to fill it. The device's clock counts the replay alone, not the copies to and from the host.
    """

    def __init__(
        self,
        graph: Graph,
        assembly: Assembly,
        shapes: OperatingShapes,
        device: CudaDevice,
        clock: DeviceClock,
        choose: Choose,
    ) -> None:
        self._graph, self._assembly, self._shapes = graph, assembly, shapes
        self._device, self._clock = device, clock
        self._program = Program(graph, torch.float16, device.torch_device)
        self._program.use_channels_last()
        self._layers: dict[int, tuple[Layer, BoundOp]] = {}
        self._absorbed: set[int] = set()
        self._sums: dict[int, tuple[str, str]] = {}
        self._quantizers: dict[tuple[str, int], Quantize] = {}
        self._dequantizers: dict[str, Dequantize] = {}
        for name, candidate in assembly.candidates.items():
            self._bind(graph.layer(name), candidate, choose)
        self._take_in_sums()
        self._executed: list[ExecutedOp] = []
        self._inputs: dict[str, torch.Tensor] = {}
        self._outputs: dict[str, torch.Tensor] = {}
        self._captured: CudaGraph | None = None

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        count = min(len(array) for array in inputs.values())
        inputs = {name: self._filled(name, array) for name, array in inputs.items()}
        if self._captured is None:
            self._inputs = {name: self._input(array) for name, array in inputs.items()}
            self._enqueue()
            self._device.synchronize()
            self._captured = self._device.capture(self._enqueue)
        else:
            for name, array in inputs.items():
                self._inputs[name].copy_(self._input(array))
        self._device.synchronize()
        self._clock.advance_us(self._captured.replay_us())
        return {name: tensor.float().cpu().numpy()[:count] for name, tensor in self._outputs.items()}

    def _filled(self, name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        batch = self._shapes.tensor_shapes[name][0]
        return array if len(array) == batch else np.resize(array, (batch, *array.shape[1:]))

    def executed_ops(self) -> list[ExecutedOp]:
        """What is in the graph, in order: kernels with the layer's name, conversions, and torch's op types."""
        return list(self._executed)

    def close(self) -> None:
        self._captured = None
        self._inputs, self._outputs = {}, {}

    def _bind(self, layer: Layer, candidate: Candidate, choose: Choose) -> None:
        numbers = layer_numbers(self._graph, layer, candidate, self._assembly, self._shapes.op_shapes[layer.name])
        # A Clip from zero is one, too: its upper end is where the codes of its quantizer end.
        absorbed = layer.activation_node if layer.activation_output in self._assembly.output_quantized else None
        bound = bind(
            self._device,
            numbers,
            choose(self._shapes.op_shapes[layer.name], candidate.precision),
            relu=absorbed is not None,
        )
        self._layers[layer.node] = layer, bound
        if absorbed is not None:
            self._absorbed.add(absorbed)
        if layer.bias is not None and layer.bias.node != layer.node:
            self._absorbed.add(layer.bias.node)

    def _take_in_sums(self) -> None:
        """Residual additions that kernels do in their epilogue: layer by node to (the other summand, the sum).

        The Add must be the only one to read the layer's output, of equal shapes, and the other summand must be there
        when the layer runs.
        """
        nodes, shapes = self._graph.nodes, self._shapes.tensor_shapes
        made_by = {name: node.index for node in nodes for name in node.outputs}
        readers: dict[str, list[int]] = {}
        for node in nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node.index)
        for info in self._graph.outputs:
            readers.setdefault(info.name, []).append(len(nodes))
        for index, (layer, bound) in self._layers.items():
            found = readers.get(layer.output, [])
            if not bound.adds_residual or len(found) != 1 or found[0] >= len(nodes):
                continue
            add = nodes[found[0]]
            if add.op_type != "Add" or add.index in self._absorbed or len(set(add.inputs)) != 2:
                continue
            other = next(name for name in add.inputs if name != layer.output)
            is_there = other not in self._graph.constants and made_by.get(other, -1) < index
            if is_there and shapes.get(other) == shapes.get(layer.output) == shapes.get(add.outputs[0]):
                self._sums[index] = other, add.outputs[0]
                self._absorbed.add(add.index)

    def _input(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(array)).to(self._device.torch_device)
        if not tensor.is_floating_point():
            return tensor
        half = tensor.to(torch.float16)
        return half.contiguous(memory_format=torch.channels_last) if half.ndim == 4 else half

    def _enqueue(self) -> None:
        """Everything once, on the device's stream."""
        self._executed = []
        values: dict[str, torch.Tensor] = dict(self._inputs)
        codes: dict[str, Codes] = {}
        for node in self._graph.nodes:
            if node.index in self._layers:
                self._run_layer(*self._layers[node.index], values, codes)
            elif node.index not in self._absorbed and not self._program.is_folded(node.index):
                arguments = [self._float(name, values, codes) if name else None for name in node.inputs]
                compute = partial(self._program.compute, node.index, arguments)
                results = self._device.run_torch(node.op_type, compute, Work())
                self._note(node.op_type, node.name)
                values.update({n: t for n, t in zip(node.outputs, results, strict=False) if n and t is not None})
        self._outputs = {info.name: self._float(info.name, values, codes) for info in self._graph.outputs}

    def _run_layer(
        self, layer: Layer, bound: BoundOp, values: dict[str, torch.Tensor], codes: dict[str, Codes]
    ) -> None:
        op = self._shapes.op_shapes[layer.name]
        x = self._activations(layer, bound, op, values, codes)
        other, written = self._sums.get(layer.node, (None, layer.output))
        residual = None if other is None else self._float(other, values, codes).contiguous()
        out = bound.run(x, residual)
        self._note(bound.kernel if other is None else f"{bound.kernel} + residual", layer.name)
        tensor = layer.quantized_tensor if bound.leaves_codes else written
        shape = self._shapes.tensor_shapes[tensor]
        if bound.leaves_codes:
            scale = self._assembly.quantizers[tensor].scale
            codes[tensor] = Codes(out, op.out_channels if isinstance(op, Conv2dShape) else out.shape[1], scale, shape)
        else:
            values[tensor] = out.view(shape)

    def _activations(
        self, layer: Layer, bound: BoundOp, op: OpShape, values: dict[str, torch.Tensor], codes: dict[str, Codes]
    ) -> torch.Tensor:
        if bound.reads is Reads.HALVES:
            return self._float(layer.input, values, codes).reshape(-1, self._columns(op)).contiguous()
        bits = self._assembly.quantizers[layer.input].numerics.bits
        if layer.input not in codes:
            codes[layer.input] = self._quantized(layer.input, bits, self._columns(op), values)
        found = codes[layer.input]
        if bound.reads is Reads.NIBBLES:
            self._note("pack_nibbles", layer.name)
            as_conv = bound.kernel.startswith("conv") and isinstance(op, Conv2dShape)
            groups = op.groups if isinstance(op, Conv2dShape) else 1
            return pack_nibbles(self._device, found.data, found.columns, groups, 8 if as_conv else 64)
        return found.data

    def _columns(self, op: OpShape) -> int:
        return op.in_channels if isinstance(op, Conv2dShape) else int(getattr(op, "k", 0))

    def _quantized(self, tensor: str, bits: int, columns: int, values: Mapping[str, torch.Tensor]) -> Codes:
        x = values[tensor]
        is_picture = x.ndim == 4
        rows = (x.permute(0, 2, 3, 1) if is_picture else x).reshape(-1, columns).contiguous()
        scale = self._assembly.quantizers[tensor].scale
        if (tensor, bits) not in self._quantizers:
            self._quantizers[tensor, bits] = Quantize(self._device, scale, bits)
        pitch = pitch_of(columns) if is_picture else columns
        made = torch.empty((rows.shape[0], pitch), dtype=torch.int8, device=self._device.torch_device)
        self._quantizers[tensor, bits].enqueue(rows, made)
        self._note("quantize", tensor)
        return Codes(made, columns, scale, tuple(x.shape))

    def _float(self, name: str, values: dict[str, torch.Tensor], codes: Mapping[str, Codes]) -> torch.Tensor:
        """The tensor as halves; codes are widened at most once."""
        if name in values:
            return values[name]
        if name not in codes:
            return self._program.constant(name)
        held = codes[name]
        if name not in self._dequantizers:
            self._dequantizers[name] = Dequantize(self._device, held.scale)
        y = torch.empty((held.data.shape[0], held.columns), dtype=torch.float16, device=self._device.torch_device)
        self._dequantizers[name].enqueue(held.data, y)
        self._note("dequantize", name)
        if len(held.shape) == 4:
            batch, channels, height, width = held.shape
            values[name] = y.view(batch, height, width, channels).permute(0, 3, 1, 2)
        else:
            values[name] = y.view(held.shape)
        return values[name]

    def _note(self, kernel: str, name: str) -> None:
        self._executed.append(ExecutedOp(name=name, op_type=kernel))


def layer_numbers(graph: Graph, layer: Layer, candidate: Candidate, assembly: Assembly, op: OpShape) -> RandomLayer:
    """A layer's finished candidate in the form kernels are bound from; the activations themselves are left empty."""
    weight = candidate.weight
    is_conv = isinstance(op, Conv2dShape)
    turned = not is_conv and weight.channel_axis == 0  # kernels take (K, N)
    codes = weight.codes.T if turned else weight.codes
    scale = weight.scale.T if turned and weight.scale.ndim == 2 else weight.scale
    if scale.ndim == 0:
        scale = np.full(codes.shape[0 if is_conv else 1], scale, np.float32)
    static = candidate.recipe.activation is not None and not candidate.recipe.activation.dynamic
    out = assembly.quantizers[layer.quantized_tensor].scale if candidate.recipe.output_quantized else None
    if is_conv and codes.ndim == 3:  # one-dimensional convolutions have height 1
        codes = codes[:, :, None]
    has_bias = candidate.bias is not None
    return RandomLayer(
        op=op if isinstance(op, EmbeddingShape) else replace(op, bias=has_bias),
        precision=candidate.precision,
        recipe=candidate.recipe,
        input=np.zeros(0, np.int8),
        weight=np.ascontiguousarray(codes),
        weight_scale=np.ascontiguousarray(scale, np.float32),
        bias=candidate.bias,
        input_scale=assembly.quantizers[layer.input].scale if static else 1.0,
        output_scale=out,
    )


def network_maker(
    graph: Graph, shapes: OperatingShapes, device: CudaDevice, clock: DeviceClock, table: LatencyTable, threads: int = 1
) -> Callable[[Assembly], CudaNetwork]:
    """Turns an assembly into a network of the very kernels that the table's rows were timed with."""

    def choose(op: OpShape, precision: Precision) -> list[str]:
        tried = table.lookup(op, precision, threads).tried
        return sorted(tried, key=lambda name: tried[name])

    return lambda assembly: CudaNetwork(graph, assembly, shapes, device, clock, choose)


def network_builder(
    graph: Graph,
    candidates: CandidateSet,
    shapes: OperatingShapes,
    device: CudaDevice,
    clock: DeviceClock,
    table: LatencyTable,
    threads: int = 1,
) -> Callable[[Mapping[str, str]], LoadedModel]:
    """Turns precisions per layer into a network."""
    make = network_maker(graph, shapes, device, clock, table, threads)
    return lambda precisions: make(assemble(graph, precisions, candidates))
