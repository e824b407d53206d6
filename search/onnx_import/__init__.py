"""ONNX import: reads a submitted model safely, finds its layers, and computes it differentiably in torch."""

from search.onnx_import.constants import layer_bias, layer_weight
from search.onnx_import.external_data import external_files
from search.onnx_import.limits import DEFAULT_LIMITS, Limits
from search.onnx_import.program import Program
from search.onnx_import.reading import graph_from_model, load_graph
from search.onnx_import.shapes import operating_shapes

__all__ = [
    "DEFAULT_LIMITS",
    "Limits",
    "Program",
    "external_files",
    "graph_from_model",
    "layer_bias",
    "layer_weight",
    "load_graph",
    "operating_shapes",
]
