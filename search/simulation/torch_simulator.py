"""TorchSimulator: runs a graph in torch with an assembly's quantization hooked into what nodes read and write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.assembly import Assembly, Candidate
from search.graph import Graph, Layer
from search.onnx_import import Program
from search.quantizer.fake_quantize import Transform, activation_transform, static
from search.quantizer.storage import has_int32_bias, round_int32_bias
from search.simulation.fixed_batch import joined, pieces
from search.simulation.layer_output import output_channel_axis, shaped_for_output
from search.simulation.simulator import Arrays

Read = Tensor | Callable[[Tensor], Tensor]


@dataclass
class Hooks:
    """An assembly compiled for `Program.run`: what nodes read instead, what producers write instead.

    `start` is the first node whose result can differ from full precision; everything before it may be shared.
    """

    reads: dict[tuple[int, int], Read] = field(default_factory=dict)
    writes: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    start: int = 0


def compile_hooks(graph: Graph, assembly: Assembly, device: torch.device | str = "cpu") -> Hooks:
    """The hooks that make a program compute what the assembly describes.

    A layer reads its dequantized weight and its quantized input; tensors in `output_quantized` are quantized where
    they are written. A bias replaces the layer's own, or is added at the output of a layer that has none, and is
    rounded to int32 at s_x * s_w where the runtime stores it so.
    """
    reads: dict[tuple[int, int], Read] = {}
    added: dict[str, Callable[[Tensor], Tensor]] = {}
    layers = {name: graph.layer(name) for name in assembly.candidates}
    for name, candidate in assembly.candidates.items():
        layer = layers[name]
        weight = torch.from_numpy(candidate.weight.dequantize()).to(device)
        reads[layer.node, layer.weight_position] = weight
        if (transform := input_transform(layer, candidate, assembly)) is not None:
            reads[layer.node, layer.input_position] = transform
        if candidate.bias is None:
            continue
        bias = torch.from_numpy(built_bias(graph, layer, candidate, assembly)).to(device)
        if layer.bias is not None:
            reads[layer.bias.node, layer.bias.position] = _bias_read(bias)
        else:
            added[layer.output] = _adder(bias, output_channel_axis(graph, layer))
    quantized: dict[str, Callable[[Tensor], Tensor]] = {
        tensor: static(assembly.quantizers[tensor]) for tensor in assembly.output_quantized
    }
    writes = {
        tensor: _chain(added.get(tensor), quantized.get(tensor)) for tensor in [*added, *(quantized.keys() - added)]
    }
    start = min((layer.node for layer in layers.values()), default=len(graph.nodes))
    return Hooks(reads, writes, start)


def built_bias(
    graph: Graph, layer: Layer, candidate: Candidate, assembly: Assembly
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The candidate's bias as the runtime adds it, shape (C,): float32, or what its int32 codes stand for."""
    assert candidate.bias is not None
    if not has_int32_bias(graph, layer, candidate.recipe):
        return candidate.bias
    input_scale, weight_scale = assembly.quantizers[layer.input].scale, candidate.weight.scale
    codes = round_int32_bias(candidate.bias, input_scale, weight_scale)
    return np.asarray(codes * (np.float32(input_scale) * weight_scale).astype(np.float64), dtype=np.float32)


def input_transform(layer: Layer, candidate: Candidate, assembly: Assembly) -> Transform | None:
    """What the layer's kernel does to the tensor it finds at its input, None when it reads it as it is."""
    recipe = candidate.recipe
    if recipe.activation is not None and not recipe.activation.dynamic and layer.input in assembly.output_quantized:
        return None  # its producer already wrote it quantized
    return activation_transform(recipe, assembly.quantizers.get(layer.input))


def _bias_read(bias: Tensor) -> Callable[[Tensor], Tensor]:
    """Replaces the constant that the bias's node reads, keeping its rank: (C,), (1, C), … or one value for all."""
    return lambda original: bias.reshape([1] * (original.ndim - 1) + [-1]).to(original.dtype)


def _adder(bias: Tensor, axis: int) -> Callable[[Tensor], Tensor]:
    return lambda values: values + shaped_for_output(bias, axis, values.ndim).to(values.dtype)


def _chain(*transforms: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    steps = [transform for transform in transforms if transform is not None]

    def apply(values: Tensor) -> Tensor:
        for step in steps:
            values = step(values)
        return values

    return apply


class TorchSimulator:
    """The `Simulator` over `search.onnx_import.Program`: differentiable, re-runs only what changed.

    A fixed-batch graph is run in pieces of that batch, the last one padded with its own last sample and cut again.
    `device` is where the arithmetic happens; arrays come and go on the CPU.
    """

    is_differentiable = True

    def __init__(self, graph: Graph, device: torch.device | str = "cpu") -> None:
        self.graph = graph
        self.device = torch.device(device)
        self.program = Program(graph, device=self.device)

    def run(
        self, inputs: Arrays, assembly: Assembly | None = None, keep: Iterable[str] = ()
    ) -> dict[str, np.ndarray[Any, Any]]:
        hooks = Hooks() if assembly is None else compile_hooks(self.graph, assembly, self.device)
        keep = [*keep]
        with torch.no_grad():
            return joined(
                [
                    (_arrays(self.program.run(piece, reads=hooks.reads, writes=hooks.writes, keep=keep)), count)
                    for piece, count in self.pieces(inputs)
                ],
                self.graph.fixed_batch,
            )

    def perturb(self, inputs: Arrays, assemblies: Iterable[Assembly]) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Graph outputs of each assembly in turn; one full forward, then each runs from its first changed node."""
        compiled = [compile_hooks(self.graph, assembly, self.device) for assembly in assemblies]
        cut = self.pieces(inputs)
        needed = frozenset[str]().union(*(self.program.live_after(hooks.start) for hooks in compiled))
        with torch.no_grad():
            known: list[Mapping[str, Tensor]] = [
                {**piece, **self.program.run(piece, keep=needed - piece.keys())} for piece, _ in cut
            ]
        for hooks in compiled:
            with torch.no_grad():
                found = [
                    self.program.run(piece, reads=hooks.reads, writes=hooks.writes, start=hooks.start, env=env)
                    for env, (piece, _) in zip(known, cut, strict=True)
                ]
            parts = [(_arrays(outputs), real) for outputs, (_, real) in zip(found, cut, strict=True)]
            yield joined(parts, self.graph.fixed_batch)

    def pieces(self, inputs: Arrays) -> list[tuple[dict[str, Tensor], int]]:
        """The chunk as tensors, cut to the graph's own batch, with the number of real samples in each piece."""
        return [
            ({name: torch.as_tensor(np.asarray(array), device=self.device) for name, array in piece.items()}, real)
            for piece, real in pieces(inputs, self.graph.fixed_batch)
        ]


def _arrays(found: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.cpu().numpy() for name, tensor in found.items()}
