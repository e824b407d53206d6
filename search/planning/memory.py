"""Peak memory: bytes of activations alive together at each step of a graph, as linear rows for the allocation."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from search.graph import Graph, OperatingShapes

FLOAT_BYTES = 4


@dataclass(frozen=True)
class MemoryStep:
    """What is alive while one node runs.

    `fixed_bytes` are tensors whose width no choice changes. `elements` are those of each layer's output: four bytes
    each in float, one when the layer's output is quantized. An estimate: runtimes also pad, reorder and reuse buffers.
    """

    node: str
    fixed_bytes: int
    elements: dict[str, int]


def memory_steps(graph: Graph, shapes: OperatingShapes) -> list[MemoryStep]:
    """Every step that can be the peak of some allocation: steps with no more of anything than another are dropped."""
    owner = {layer.quantized_tensor: layer.name for layer in graph.layers}
    owner |= {layer.output: layer.name for layer in graph.layers}
    last_read: dict[str, int] = {info.name: len(graph.nodes) for info in graph.outputs}
    for node in graph.nodes:
        for name in node.inputs:
            last_read[name] = max(last_read.get(name, 0), node.index)
    alive = {info.name for info in graph.inputs if info.name in last_read}
    steps: list[MemoryStep] = []
    for node in graph.nodes:
        alive |= {name for name in node.outputs if name in last_read and name not in graph.constants}
        fixed, elements = 0, dict[str, int]()
        for name in alive:
            count = prod(shapes.tensor_shapes[name]) if name in shapes.tensor_shapes else 0
            if name in owner:
                elements[owner[name]] = elements.get(owner[name], 0) + count
            else:
                fixed += FLOAT_BYTES * count
        steps.append(MemoryStep(node.name or node.op_type, fixed, elements))
        alive = {name for name in alive if last_read[name] > node.index}
    return _undominated(steps)


def _undominated(steps: list[MemoryStep]) -> list[MemoryStep]:
    layers = sorted({name for step in steps for name in step.elements})
    column = {name: index + 1 for index, name in enumerate(layers)}
    rows = np.zeros((len(steps), len(layers) + 1), dtype=np.int64)
    for index, step in enumerate(steps):
        rows[index, 0] = step.fixed_bytes
        for name, count in step.elements.items():
            rows[index, column[name]] = count
    kept: list[int] = []
    for index in np.argsort(-rows.sum(axis=1), kind="stable"):
        if not any((rows[index] <= rows[other]).all() for other in kept):
            kept.append(int(index))
    return [steps[index] for index in sorted(kept)]
