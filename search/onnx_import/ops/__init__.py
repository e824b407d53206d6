"""The op table by family; importing this package fills `search.onnx_import.ops.table.OPS`."""

from search.onnx_import.ops import (
    activations,
    arithmetic,
    attention,
    constant,
    convolution,
    indexing,
    logic,
    matrix,
    normalization,
    pooling,
    quantization,
    reduction,
    resizing,
    shaping,
)
from search.onnx_import.ops.table import OPS

__all__ = [
    "OPS",
    "activations",
    "arithmetic",
    "attention",
    "constant",
    "convolution",
    "indexing",
    "logic",
    "matrix",
    "normalization",
    "pooling",
    "quantization",
    "reduction",
    "resizing",
    "shaping",
]
