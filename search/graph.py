"""Graph: a parsed ONNX model with its layers, the tensors they read and write, and what stays unquantized and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import onnx

from kernels.op_shape import OpShape


class LayerKind(str, Enum):
    """The weighted ops. `linear` is Gemm or MatMul with a constant; `embedding` is Gather from a constant."""

    CONV = "conv"
    CONV_TRANSPOSE = "conv_transpose"
    LINEAR = "linear"
    EMBEDDING = "embedding"


@dataclass(frozen=True)
class Node:
    """One ONNX node; `attributes` are Python values (ints, floats, str, lists, numpy arrays)."""

    index: int
    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class TensorInfo:
    """A graph input or output: `shape` holds ints, names of dynamic dimensions, or None when unknown."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Bias:
    """Where a layer's bias enters: input `position` of node `node` reads constant `tensor` (shape (C,) broadcastable).

    For Conv and Gemm the node is the layer's own; for MatMul it is the Add behind it.
    """

    node: int
    position: int
    tensor: str


@dataclass(frozen=True)
class Layer:
    """One weighted op of the graph.

    `weight` is the root initializer; `weight_shape` and `channel_axis` (the output-channel axis) describe the value
    that reaches input `weight_position` of node `node`, after any Transpose/Reshape/Cast/Identity between them.
    `output` is the tensor behind the bias. `activation_node` is a Relu or Clip that is the only reader of `output`
    and that runtimes absorb; then `activation_output` is its output. `tie` names the layers that share one
    initializer (same content, possibly transposed) and must share a candidate. `unquantized_reason` is set when no
    precision can be offered on any runtime.
    """

    name: str
    kind: LayerKind
    node: int
    weight: str
    weight_position: int
    weight_shape: tuple[int, ...]
    channel_axis: int
    input: str
    input_position: int
    bias: Bias | None
    output: str
    activation_node: int | None = None
    activation_output: str | None = None
    tie: str | None = None
    unquantized_reason: str | None = None

    @property
    def weight_count(self) -> int:
        return int(np.prod(self.weight_shape, dtype=np.int64))

    @property
    def op_kind(self) -> str:
        """The op kind of `kernels.op_shape` that this layer is timed as; conv_transpose has none and says itself."""
        return {LayerKind.CONV: "conv2d", LayerKind.LINEAR: "linear", LayerKind.EMBEDDING: "embedding"}.get(
            self.kind, self.kind.value
        )

    @property
    def quantized_tensor(self) -> str:
        """The tensor an output quantizer sits on: behind the absorbed activation, else the layer's own output."""
        return self.activation_output or self.output


@dataclass(frozen=True)
class Unquantized:
    """An op that does work but has no candidate, and why; listed in every report."""

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Graph:
    """A model as the search sees it.

    `nodes` are in topological order; node indices in layers refer to it. `constants` maps initializer (and
    Constant-node) names to arrays. `model` is the submitted ModelProto with external data loaded: read it, copy it,
    never change it. `sha256` names the submitted file; `content_hash` ignores names of producer, doc strings and
    metadata. `notes` are sentences for the report (BatchNorm folded, fixed batch, …).
    """

    model: onnx.ModelProto
    sha256: str
    content_hash: str
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray[Any, Any]]
    layers: tuple[Layer, ...]
    unquantized: tuple[Unquantized, ...] = ()
    notes: tuple[str, ...] = ()
    fixed_batch: int | None = None
    _by_name: dict[str, Layer] = field(default_factory=dict, compare=False, repr=False)

    def layer(self, name: str) -> Layer:
        if not self._by_name:
            self._by_name.update({layer.name: layer for layer in self.layers})
        return self._by_name[name]


@dataclass(frozen=True)
class OperatingShapes:
    """Shapes at one operating point: op shape per layer, every tensor's shape, and each tensor's element count."""

    op_shapes: Mapping[str, OpShape]
    tensor_shapes: Mapping[str, tuple[int, ...]]
