"""Boundaries: activations that are converted because one side of an edge computes in float and the other in int8.

A static int8 layer reads codes. A layer whose recipe quantizes its output also leaves codes; every other op, and every
layer in full precision or with a dynamic or weight-only recipe, reads and leaves floats. Where the two ends of an edge
disagree, a QuantizeLinear or DequantizeLinear runs over all elements of the tensor.

A runtime may fuse such a conversion into an integer kernel, together with the elementwise ops between them: OpenVINO
runs GELU and the quantizer of the next layer inside an integer product, and has an op for it behind a float one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from kernels.hardware_profile import HardwareProfile
from kernels.recipe import Recipe
from search.graph import Graph, Layer, OperatingShapes

ELEMENTWISE = frozenset(
    "Abs Add Cast Celu Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Mul Neg Pow PRelu Relu"
    " Selu Sigmoid Softplus Softsign Sqrt Sub Swish Tanh ThresholdedRelu".split()
)
"""Ops that activation functions are exported as."""


@dataclass(frozen=True)
class Edge:
    """A tensor between two layers; an end that is None always computes in float (another op, or the outside).

    `elements` is what one conversion touches. Layers that read the same tensor of a float op share one quantizer,
    so each carries its part of the elements. `source`, where there is no producer, is the one layer whose output
    becomes the tensor by elementwise ops alone: a kernel that could take the conversion in.
    """

    tensor: str
    producer: str | None
    reader: str | None
    elements: float
    source: str | None = None


def reads_codes(recipe: Recipe | None) -> bool:
    """True for a layer that reads statically quantized activations; None stands for full precision."""
    return recipe is not None and recipe.activation is not None and not recipe.activation.dynamic


def leaves_codes(recipe: Recipe | None) -> bool:
    """True for a layer whose kernel writes quantized activations."""
    return reads_codes(recipe) and recipe is not None and recipe.output_quantized


def find_edges(graph: Graph, shapes: OperatingShapes, profile: HardwareProfile) -> tuple[Edge, ...]:
    """Every edge where a conversion can become necessary on this profile, in the order of the graph's nodes."""
    layers = [layer for layer in graph.layers if layer.unquantized_reason is None]
    can_read = {layer.name: _offers(profile, layer, reads_codes) for layer in layers}
    producers = {layer.quantized_tensor: layer.name for layer in layers if _offers(profile, layer, leaves_codes)}
    by_input = {(layer.node, layer.input_position): layer for layer in layers if can_read[layer.name]}
    outside = {output.name for output in graph.outputs}

    readers: dict[str, list[str | None]] = {}
    for node in graph.nodes:
        for position, tensor in enumerate(node.inputs):
            layer = by_input.get((node.index, position))
            if tensor and (layer is not None or tensor in producers):
                readers.setdefault(tensor, []).append(layer.name if layer else None)
    for tensor in producers:
        if tensor in outside:
            readers.setdefault(tensor, []).append(None)

    find_source = _SourceFinder(graph)
    edges: list[Edge] = []
    for tensor, ends in readers.items():
        producer = producers.get(tensor)
        elements = float(_count(shapes.tensor_shapes[tensor]))
        share = elements if producer is not None else elements / len(ends)
        source = find_source(tensor) if producer is None else None
        edges += [Edge(tensor, producer, reader, share, source if source in can_read else None) for reader in ends]
    return tuple(edges)


def crossing_elements(edges: Iterable[Edge], reading: Collection[str], leaving: Collection[str]) -> float:
    """Activation elements converted when the layers `reading` read codes and the layers `leaving` leave them."""
    return sum(edge.elements for edge in edges if (edge.producer in leaving) != (edge.reader in reading))


def unfused_elements(edges: Iterable[Edge], reading: Collection[str]) -> float:
    """Elements of edges with a source of which just one end is among the layers that read codes.

    What a conversion saves where both ends do is the same number: twice as much, less a part that each end has alone.
    """
    return sum(edge.elements for edge in edges if edge.source and (edge.source in reading) != (edge.reader in reading))


class _SourceFinder:
    """Finds the one layer whose output becomes a tensor by elementwise ops alone."""

    def __init__(self, graph: Graph) -> None:
        self._constants = graph.constants
        self._layers = {layer.output: layer.name for layer in graph.layers}
        self._producers = {name: node for node in graph.nodes for name in node.outputs}

    def __call__(self, tensor: str) -> str | None:
        """The layer's name; None where the tensor takes anything else."""
        found: set[str] = set()
        pending, seen = [tensor], {tensor}
        while pending:
            name = pending.pop()
            if name in self._layers:
                found.add(self._layers[name])
            elif name in self._producers and self._producers[name].op_type in ELEMENTWISE:
                inputs = {each for each in self._producers[name].inputs if each and each not in self._constants}
                pending += inputs - seen
                seen |= inputs
            else:
                return None
        return found.pop() if len(found) == 1 else None


def _offers(profile: HardwareProfile, layer: Layer, does: Callable[[Recipe | None], bool]) -> bool:
    return any(does(recipe) for (kind, _), recipe in profile.recipes.items() if kind == layer.op_kind)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
