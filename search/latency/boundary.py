"""Boundaries: activations that are converted because one side of an edge computes in float and the other in int8.

A static int8 layer reads codes. A layer whose recipe quantizes its output also leaves codes; every other op, and every
layer in full precision or with a dynamic or weight-only recipe, reads and leaves floats. Where the two ends of an edge
disagree, a QuantizeLinear or DequantizeLinear runs over all elements of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from kernels.hardware_profile import HardwareProfile
from kernels.recipe import Recipe
from search.graph import Graph, Layer, OperatingShapes


@dataclass(frozen=True)
class Edge:
    """A tensor between two layers; an end that is None always computes in float (another op, or the outside).

    `elements` is what one conversion touches. Layers that read the same tensor of a float op share one quantizer,
    so each carries its part of the elements.
    """

    tensor: str
    producer: str | None
    reader: str | None
    elements: float


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

    edges: list[Edge] = []
    for tensor, ends in readers.items():
        producer = producers.get(tensor)
        elements = float(_count(shapes.tensor_shapes[tensor]))
        share = elements if producer is not None else elements / len(ends)
        edges += [Edge(tensor, producer, reader, share) for reader in ends]
    return tuple(edges)


def crossing_elements(edges: Iterable[Edge], reading: Collection[str], leaving: Collection[str]) -> float:
    """Activation elements converted when the layers `reading` read codes and the layers `leaving` leave them."""
    return sum(edge.elements for edge in edges if (edge.producer in leaving) != (edge.reader in reading))


def _offers(profile: HardwareProfile, layer: Layer, does: Callable[[Recipe | None], bool]) -> bool:
    return any(does(recipe) for (kind, _), recipe in profile.recipes.items() if kind == layer.op_kind)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
