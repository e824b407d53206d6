"""Intent: how each weighted op of an ONNX file asks to be run, read from its quantize/dequantize pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import onnx
from onnx import TensorProto

# Constants reach a weighted op through these; the data is their first input.
_WEIGHT_PATH = frozenset({"DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity", "QuantizeLinear"})
_FLOAT_OPS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
_INTEGER_OPS = {
    "MatMulInteger": 1, "ConvInteger": 1, "QLinearMatMul": 3, "QLinearConv": 3, "QGemm": 3,
    "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1,
}  # fmt: skip
_WEIGHT_ONLY_OPS = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
INT4_TYPES = frozenset({TensorProto.INT4, TensorProto.UINT4})
INT8_TYPES = frozenset({TensorProto.INT8, TensorProto.UINT8})
_FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})


class Compute(str, Enum):
    """The arithmetic of a weighted op. Worked example, a 3×3 convolution:

    | value         | products                              | example op     |
    |---------------|---------------------------------------|----------------|
    | `float`       | float × float                         | Conv           |
    | `int8`        | int8 × int8, summed in int32          | QLinearConv    |
    | `weight_only` | codes widened (or rows rounded) inside | MatMulNBits    |
    """

    FLOAT = "float"
    INT8 = "int8"
    WEIGHT_ONLY = "weight_only"


@dataclass(frozen=True)
class Wiring:
    """Who makes and reads each tensor of a file's main graph."""

    model: onnx.ModelProto
    producers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto]]
    initializers: Mapping[str, onnx.TensorProto]
    outputs: frozenset[str]

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        found = self.readers.get(tensor, [])
        return found[0] if len(found) == 1 and tensor not in self.outputs else None


@dataclass(frozen=True)
class IntendedLayer:
    """One weighted op as written. `name` is for people; the other names are what a runtime may keep of it.

    `weight_type` is the stored element type (`int8`, `int4`, `float`). `weight_names` are all tensors between the
    initializer and the op.
    """

    name: str
    node: onnx.NodeProto
    compute: Compute
    weight: str
    weight_type: str
    weight_names: tuple[str, ...]
    bias_names: tuple[str, ...]

    @property
    def bits(self) -> int:
        return {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}.get(self.weight_type, 32)


def wire(model: onnx.ModelProto) -> Wiring:
    graph = model.graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            if name:
                readers.setdefault(name, []).append(node)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    initializers[node.output[0]] = attribute.t
    producers = {name: node for node in graph.node for name in node.output if node.op_type != "Constant"}
    return Wiring(model, producers, readers, initializers, frozenset(value.name for value in graph.output))


def intended_layers(wiring: Wiring) -> list[IntendedLayer]:
    """Every op of the main graph with a constant weight, in file order."""
    return [layer for node in wiring.model.graph.node if (layer := _intended(wiring, node)) is not None]


def constant_path(wiring: Wiring, tensor: str) -> list[str] | None:
    """Tensor names from `tensor` back to the initializer it comes from; None when it is computed."""
    path = [tensor]
    while path[-1] not in wiring.initializers:
        node = wiring.producers.get(path[-1])
        if node is None or node.op_type not in _WEIGHT_PATH or len(path) > len(wiring.producers):
            return None
        path.append(node.input[0])
    return path


def activation_reader(wiring: Wiring, layer: IntendedLayer) -> str:
    """The tensor a layer reads besides its weight."""
    inputs = layer.node.input
    return str(inputs[1] if layer.node.op_type == "Gather" or inputs[0] in layer.weight_names else inputs[0])


def _intended(wiring: Wiring, node: onnx.NodeProto) -> IntendedLayer | None:
    op = node.op_type
    for table, compute in ((_INTEGER_OPS, Compute.INT8), (_WEIGHT_ONLY_OPS, Compute.WEIGHT_ONLY)):
        if op in table and len(node.input) > table[op]:
            path = constant_path(wiring, node.input[table[op]])
            return None if path is None else _layer(wiring, node, compute, path)
    if op not in _FLOAT_OPS or len(node.input) <= _FLOAT_OPS[op]:
        return None
    path = constant_path(wiring, node.input[_FLOAT_OPS[op]])
    source = node.input[0]
    if path is None and op == "MatMul":
        path, source = constant_path(wiring, node.input[0]), node.input[1]
    if path is None or constant_path(wiring, source if op != "Gather" else node.input[1]) is not None:
        return None
    stored = wiring.initializers[path[-1]]
    if op == "Gather":
        return _gather(wiring, node, path, stored)
    through_dq = any(_is_dq(wiring, name) for name in path)
    if not through_dq:
        return _layer(wiring, node, Compute.FLOAT, path) if stored.data_type in _FLOAT_TYPES else None
    producer = wiring.producers.get(source)
    if producer is not None and _only_strides(producer):
        producer = wiring.producers.get(producer.input[0])
    static = producer is not None and producer.op_type == "DequantizeLinear"
    return _layer(wiring, node, Compute.INT8 if static else Compute.WEIGHT_ONLY, path)


def _gather(wiring: Wiring, node: onnx.NodeProto, path: list[str], stored: onnx.TensorProto) -> IntendedLayer | None:
    """Look-ups into float or 4/8-bit tables of rows; other types are shape arithmetic, width 1 is rows' scales."""
    if len(stored.dims) != 2 or stored.dims[1] == 1 or stored.data_type not in _FLOAT_TYPES | INT8_TYPES | INT4_TYPES:
        return None
    integer = stored.data_type not in _FLOAT_TYPES and not any(_is_dq(wiring, name) for name in path)
    dequantized = stored.data_type not in _FLOAT_TYPES and not integer
    compute = Compute.INT8 if integer else Compute.WEIGHT_ONLY if dequantized else Compute.FLOAT
    return _layer(wiring, node, compute, path)


def _only_strides(node: onnx.NodeProto) -> bool:
    """A MaxPool over single values: it drops rows and columns and changes no value."""
    kernel: list[int] = next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), [])
    return node.op_type == "MaxPool" and all(size == 1 for size in kernel)


def _is_dq(wiring: Wiring, tensor: str) -> bool:
    node = wiring.producers.get(tensor)
    return node is not None and node.op_type == "DequantizeLinear"


def _layer(wiring: Wiring, node: onnx.NodeProto, compute: Compute, path: list[str]) -> IntendedLayer:
    stored = wiring.initializers[path[-1]]
    kind = TensorProto.DataType.Name(stored.data_type).lower()
    return IntendedLayer(
        name=node.name or node.output[0],
        node=node,
        compute=compute,
        weight=path[-1],
        weight_type=kind,
        weight_names=tuple(path),
        bias_names=tuple(_bias_names(wiring, node)),
    )


def _bias_names(wiring: Wiring, node: onnx.NodeProto) -> Iterator[str]:
    if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2 and node.input[2]:
        yield from constant_path(wiring, node.input[2]) or ()
        return
    add = wiring.only_reader(node.output[0])
    if add is not None and add.op_type == "Add":
        for name in add.input:
            if name != node.output[0]:
                yield from constant_path(wiring, name) or ()
