"""Sequential refit: each layer's affine correction again, on the inputs its own quantized upstream gives it.

The finished candidates were corrected on exact inputs. In an assembly the input of a layer already carries the errors
of the layers before it, mean shifts above all; refitting in topological order takes them out layer by layer. One walk
over the graph does it: node by node, all chunks at once, the exact and the quantized network side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from search.assembly import Assembly
from search.candidates.affine_fit import PairMoments
from search.candidates.correction import Corrected, correct
from search.errors import NotEnoughData
from search.graph import Graph, Layer, LayerKind
from search.onnx_import import layer_bias
from search.onnx_import.ops import OPS
from search.onnx_import.ops.table import Call
from search.quantizer.storage import has_int32_bias
from search.simulation.fixed_batch import cut_padding
from search.simulation.layer_output import LayerFunction, output_channel_axis, shaped_for_output
from search.simulation.simulator import Arrays, Simulator
from search.simulation.tensor_store import TensorStore
from search.simulation.torch_simulator import TorchSimulator, compile_hooks, input_transform

Progress = Callable[[int, int], None]

RESIDENT_BYTES = 1_000_000_000


def refit_sequentially(
    simulator: Simulator,
    assembly: Assembly,
    chunks: Sequence[Arrays],
    progress: Progress | None = None,
    *,
    resident_bytes: int = RESIDENT_BYTES,
) -> Assembly:
    """The assembly with scales and biases refitted layer by layer; integer codes and activation quantizers are kept.

    With a `TorchSimulator` this is one walk that holds the live tensors of all chunks, beyond `resident_bytes` on
    disk; any other simulator runs the assembly once per layer. Raises `NotEnoughData` (`calibration_empty`) without
    chunks. `progress(done, total)` counts layers.
    """
    if not chunks:
        raise NotEnoughData("the refit got no samples", hint="bring 128 or more samples", code="calibration_empty")
    if not any(_is_refitted(simulator.graph, name) for name in assembly.candidates):
        return assembly
    if isinstance(simulator, TorchSimulator):
        with TensorStore(resident_bytes) as store, torch.no_grad():
            return _Walk(simulator, assembly, chunks, store).run(progress)
    return _refit_by_running(simulator, assembly, chunks, progress)


def _is_refitted(graph: Graph, name: str) -> bool:
    return graph.layer(name).kind is not LayerKind.EMBEDDING


def _with_correction(graph: Graph, assembly: Assembly, name: str, moments: PairMoments) -> tuple[Assembly, Corrected]:
    """The assembly with one layer corrected; a layer that was finished without bias stays without."""
    candidate, layer = assembly.candidates[name], graph.layer(name)
    input_scale = None
    if candidate.bias is not None and has_int32_bias(graph, layer, candidate.recipe):
        input_scale = assembly.quantizers[layer.input].scale
    corrected = correct(
        candidate.weight,
        layer_bias(graph, layer),
        moments,
        input_scale,
        adds_bias=candidate.bias is not None,
    )
    refitted = replace(candidate, weight=corrected.weight, bias=corrected.bias, residual=corrected.residual)
    return replace(assembly, candidates={**assembly.candidates, name: refitted}), corrected


class _Walk:
    """Runs the exact and the quantized network node by node over all chunks; a layer is refitted when reached.

    Tensors are stored per (chunk, is_quantized, name); a quantized one is stored only where it differs in origin
    from the exact one, that is downstream of the first quantized layer.
    """

    def __init__(
        self, simulator: TorchSimulator, assembly: Assembly, chunks: Sequence[Arrays], store: TensorStore
    ) -> None:
        self._graph, self._program = simulator.graph, simulator.program
        self._device = simulator.device
        self._assembly, self._store = assembly, store
        self._hooks = compile_hooks(self._graph, assembly, self._device)
        self._layers = {self._graph.layer(name).node: name for name in assembly.candidates}
        pieces = [piece for chunk in chunks for piece in simulator.pieces(chunk)]
        self._real = [count for _, count in pieces]
        for index, (piece, _) in enumerate(pieces):
            for name, tensor in piece.items():
                store[index, False, name] = tensor
        self._last_use = {name: node.index for node in self._graph.nodes for name in node.inputs if name}

    def run(self, progress: Progress | None) -> Assembly:
        done = 0
        for node in self._graph.nodes:
            if all(self._constant(name) is not None for name in node.outputs if name):
                continue
            name = self._layers.get(node.index)
            if name is not None and _is_refitted(self._graph, name):
                self._layer(node.index, name)
                done += 1
                if progress is not None:
                    progress(done, len(self._layers))
                if done == len(self._layers):
                    break
            else:
                for index in range(len(self._real)):
                    self._step(index, node.index)
            self._forget(node.index)
        return self._assembly

    def _constant(self, name: str) -> Tensor | None:
        try:
            return self._program.constant(name)
        except KeyError:
            return None

    def _value(self, index: int, is_quantized: bool, name: str) -> Tensor | None:
        if not name:
            return None
        for key in ((index, True, name), (index, False, name)):
            if (is_quantized or not key[1]) and key in self._store:
                return self._store[key].to(self._device)
        return self._constant(name)

    def _arguments(self, index: int, is_quantized: bool, node: int) -> list[Tensor | None]:
        values = [self._value(index, is_quantized, name) for name in self._graph.nodes[node].inputs]
        for position, current in enumerate(values if is_quantized else ()):
            read = self._hooks.reads.get((node, position))
            if read is not None:
                values[position] = read if isinstance(read, Tensor) else read(_present(current))
        return values

    def _differs(self, index: int, node: int) -> bool:
        """Whether a node's quantized result can differ from its exact one."""
        proto = self._graph.nodes[node]
        return (
            any((node, position) in self._hooks.reads for position in range(len(proto.inputs)))
            or any(name in self._hooks.writes for name in proto.outputs)
            or any((index, True, name) in self._store for name in proto.inputs if name)
        )

    def _step(self, index: int, node: int) -> None:
        proto = self._graph.nodes[node]
        for is_quantized in (False, True) if self._differs(index, node) else (False,):
            call = Call(
                proto, tuple(self._arguments(index, is_quantized, node)), self._graph.opset, self._program.dtype
            )
            result = OPS[proto.op_type](call)
            for name, tensor in zip(proto.outputs, result if isinstance(result, tuple) else (result,), strict=False):
                if name and tensor is not None:
                    self._put(index, is_quantized, name, tensor)

    def _put(self, index: int, is_quantized: bool, name: str, tensor: Tensor) -> None:
        write = self._hooks.writes.get(name) if is_quantized else None
        self._store[index, is_quantized, name] = tensor if write is None else write(tensor)

    def _layer(self, node: int, name: str) -> None:
        """Refit one layer: the outputs without bias give the moments, the fit then makes them the real outputs."""
        layer, output = self._graph.layer(name), self._graph.nodes[node].outputs[0]
        axis, function = output_channel_axis(self._graph, layer), LayerFunction(self._graph, layer)
        moments = PairMoments()
        for index, real in enumerate(self._real):
            exact_input = self._arguments(index, False, node)
            read = self._arguments(index, True, node)
            pair = [
                function(_present(values[layer.input_position]), _present(values[layer.weight_position]))
                for values in (exact_input, read)
            ]
            batch = self._graph.fixed_batch or real
            exact, quantized = (cut_padding(tensor, real, batch) for tensor in pair)
            moments.add(exact, quantized, axis)
            self._store[index, False, output], self._store[index, True, output] = pair
        self._assembly, corrected = _with_correction(self._graph, self._assembly, name, moments)
        alone = compile_hooks(
            self._graph, replace(self._assembly, candidates={name: self._assembly.candidates[name]}), self._device
        )
        self._hooks.reads.update(alone.reads)
        if layer.output in alone.writes:
            self._hooks.writes[layer.output] = alone.writes[layer.output]
        self._finish_outputs(node, layer, corrected)

    def _finish_outputs(self, node: int, layer: Layer, corrected: Corrected) -> None:
        output, axis = self._graph.nodes[node].outputs[0], output_channel_axis(self._graph, layer)
        own_bias = layer.bias is not None and layer.bias.node == node
        factor = torch.from_numpy(corrected.factor).float().to(self._device)
        for index in range(len(self._real)):
            exact, quantized = _present(self._value(index, False, output)), _present(self._value(index, True, output))
            quantized = quantized * shaped_for_output(factor, axis, quantized.ndim)
            if own_bias:
                assert layer.bias is not None
                exact, quantized = (
                    tensor + shaped_for_output(_present(values[layer.bias.position]), axis, tensor.ndim)
                    for tensor, values in (
                        (exact, self._arguments(index, False, node)),
                        (quantized, self._arguments(index, True, node)),
                    )
                )
            self._put(index, False, output, exact)
            self._put(index, True, output, quantized)

    def _forget(self, node: int) -> None:
        proto = self._graph.nodes[node]
        for name in {*proto.inputs, *proto.outputs}:
            if self._last_use.get(name, -1) <= node:
                for index in range(len(self._real)):
                    self._store.drop((index, False, name))
                    self._store.drop((index, True, name))


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _refit_by_running(
    simulator: Simulator, assembly: Assembly, chunks: Sequence[Arrays], progress: Progress | None
) -> Assembly:
    """The same refit through `Simulator.run` alone: one pass over the chunks per layer."""
    graph = simulator.graph
    names = [layer.name for layer in graph.layers if layer.name in assembly.candidates]
    for done, name in enumerate((name for name in names if _is_refitted(graph, name)), start=1):
        layer, candidate = graph.layer(name), assembly.candidates[name]
        function, axis = LayerFunction(graph, layer), output_channel_axis(graph, layer)
        transform = input_transform(layer, candidate, assembly)
        weight = torch.from_numpy(candidate.weight.dequantize())
        moments = PairMoments()
        for chunk in chunks:
            exact, found = (_kept(simulator, chunk, given, layer.input) for given in (None, assembly))
            with torch.no_grad():
                read = found if transform is None else transform(found)
                moments.add(function(exact, function.exact_weight), function(read, weight), axis)
        assembly, _ = _with_correction(graph, assembly, name, moments)
        if progress is not None:
            progress(done, len(names))
    return assembly


def _kept(simulator: Simulator, chunk: Arrays, assembly: Assembly | None, tensor: str) -> Tensor:
    kept = simulator.run(chunk, assembly, keep=[tensor])
    return torch.from_numpy(np.array(kept[tensor] if tensor in kept else chunk[tensor]))
