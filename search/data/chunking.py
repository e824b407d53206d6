"""Chunking: how many samples go through a model at once, bounded by the memory their activations take."""

from __future__ import annotations

from math import prod

from kernels.operating_point import OperatingPoint
from search.data.dataset import Dataset
from search.graph import Graph
from search.onnx_import import operating_shapes

ACTIVATION_ELEMENTS = 64_000_000
"""All activations of one chunk together: 256 MB in float32, since a scan keeps a chunk's tensors to resume from."""
MOST_SAMPLES = 64


def chunk_size(graph: Graph, data: Dataset) -> int:
    """Samples per chunk, at least 1; models of one fixed batch take exactly that many whatever this says."""
    if graph.fixed_batch is not None:
        return graph.fixed_batch
    sizes = {
        name: size
        for info in graph.inputs
        for name, size in zip(info.shape[1:], data.inputs[info.name].shape[1:], strict=True)
        if isinstance(name, str)
    }
    shapes = operating_shapes(graph, OperatingPoint(batch=1, dims=tuple(sorted(sizes.items()))))
    computed = {name for node in graph.nodes for name in node.outputs} - set(graph.constants)
    elements = sum(prod(shape) for name, shape in shapes.tensor_shapes.items() if name in computed)
    return max(1, min(MOST_SAMPLES, ACTIVATION_ELEMENTS // max(elements, 1)))
