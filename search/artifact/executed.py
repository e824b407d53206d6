"""Executed ops: what a runtime really runs of a model's weighted layers, found again by the names it keeps.

ONNX Runtime names after its optimizations: weights keep theirs (`_T` is appended by MatMulNBits), Gemm and MatMul
keep the node name, NHWC convolutions append `_token_n`, NCHWc ones take their output's name with `_nchwc`, fused
ones the bias. OpenVINO lists the nodes merged into an op and appends `/WithoutBiases`, `/Dequantization…` or
`_original`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx

from kernels.backends.base import ExecutedOp
from search.artifact.intent import INT8_TYPES, Compute, IntendedLayer, Wiring

_INTEGER = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger",
     "ConvInteger"}
)  # fmt: skip
_FLOAT = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "TransposeMatMul",
     "NhwcFusedConv"}
)  # fmt: skip
_OPENVINO_WEIGHTED = frozenset({"Convolution", "FullyConnected", "MatMul", "Deconvolution", "Gather"})
_WEIGHT_ONLY = frozenset({"MatMulNBits", "GatherBlockQuantized"})
WEIGHTED_TYPES = _INTEGER | _FLOAT | _WEIGHT_ONLY | _OPENVINO_WEIGHTED
"""Op types of either runtime that may carry weights."""
_SUFFIX = re.compile(
    r"(_token_\d+|_nchwc|_T|/duplicated.*|/WithoutBiases.*|/Dequantization.*|_original|/MatMulAddFusion.*)+$"
)
_HOPS = 4


@dataclass(frozen=True)
class WeightedOp:
    """One executed op with its arithmetic; `names` are all names it can be recognized by."""

    op_type: str
    compute: Compute
    names: frozenset[str]
    node_names: frozenset[str]


def weighted_ops(executed: Iterable[ExecutedOp], optimized: onnx.ModelProto | None) -> list[WeightedOp]:
    """The weighted ops among those executed: of ONNX Runtime's `optimized` graph, or as OpenVINO reports them."""
    return _openvino_ops(executed) if optimized is None else _onnxruntime_ops(optimized)


def _onnxruntime_ops(optimized: onnx.ModelProto) -> list[WeightedOp]:
    types = {tensor.name: tensor.data_type for tensor in optimized.graph.initializer}
    made = {name: node for node in optimized.graph.node for name in node.output}
    found = []
    for node in optimized.graph.node:
        if node.op_type in _INTEGER:
            compute = Compute.INT8
        elif node.op_type in _WEIGHT_ONLY:
            compute = Compute.WEIGHT_ONLY
        elif node.op_type in _FLOAT:
            compute = Compute.FLOAT
        elif node.op_type == "Gather" and node.input[0] in types:
            compute = Compute.INT8 if types[node.input[0]] in INT8_TYPES else Compute.FLOAT
        elif node.op_type == "Gather" and node.input[0] in made and made[node.input[0]].op_type == "DequantizeLinear":
            compute = Compute.FLOAT
        else:
            continue
        constants = [name for name in node.input if name in types]
        # A dequantized constant is recognized by the codes behind it.
        for name in node.input:
            if name in made and made[name].op_type == "DequantizeLinear":
                constants += [name, *(source for source in made[name].input[:1] if source in types)]
        found.append(_weighted(node.op_type, compute, [node.name], [*constants, *node.output]))
    return found


def _openvino_ops(executed: Iterable[ExecutedOp]) -> list[WeightedOp]:
    found = []
    for op in executed:
        if op.op_type not in _OPENVINO_WEIGHTED:
            continue
        if op.compute.endswith("-weights"):
            compute = Compute.WEIGHT_ONLY
        else:
            compute = Compute.INT8 if op.compute in ("i8", "u8") else Compute.FLOAT
        found.append(_weighted(op.op_type, compute, [op.name, *op.origins], [*op.weights, *op.outputs]))
    return found


def _weighted(op_type: str, compute: Compute, nodes: Iterable[str], tensors: Iterable[str]) -> WeightedOp:
    node_names = {_plain(name) for name in nodes if name} | {name for name in nodes if name}
    names = {_plain(name) for name in tensors if name} | {name for name in tensors if name}
    return WeightedOp(op_type, compute, frozenset(names | node_names), frozenset(node_names))


def _plain(name: str) -> str:
    return _SUFFIX.sub("", name)


def match_ops(
    wiring: Wiring, layers: Iterable[IntendedLayer], ops: Iterable[WeightedOp]
) -> Mapping[int, list[WeightedOp]]:
    """Executed ops of each intended layer, by the layer's position; most telling names first, each op used once."""
    layers, left = list(layers), list(ops)
    matched: dict[int, list[WeightedOp]] = {index: [] for index in range(len(layers))}
    # Node names are unique, weights may be tied, and what follows an op may have been merged into it.
    rounds: tuple[Callable[[IntendedLayer, WeightedOp], bool], ...] = (
        lambda layer, op: bool(layer.node.name) and layer.node.name in op.node_names,
        lambda layer, op: not op.names.isdisjoint(layer.weight_names),
        lambda layer, op: not op.names.isdisjoint(layer.bias_names),
        lambda layer, op: not op.names.isdisjoint(_following(wiring, layer)),
    )
    for belongs in rounds:
        for index, layer in enumerate(layers):
            if matched[index]:
                continue
            for op in left:
                if _same_kind(layer, op) and belongs(layer, op):
                    matched[index].append(op)
                    left.remove(op)
                    break
    return matched


def _same_kind(layer: IntendedLayer, op: WeightedOp) -> bool:
    def kind(op_type: str) -> str:
        return "gather" if "Gather" in op_type else "conv" if "onv" in op_type else "linear"

    if op.op_type == "FullyConnected" or op.op_type == "MatMul":
        return kind(layer.node.op_type) != "gather"
    return kind(layer.node.op_type) == kind(op.op_type)


def _following(wiring: Wiring, layer: IntendedLayer) -> set[str]:
    """Outputs of the layer and of the nodes behind it that a runtime may merge into it, and those nodes' names."""
    names = set(layer.node.output)
    tensor = layer.node.output[0]
    for _ in range(_HOPS):
        reader = wiring.only_reader(tensor)
        if reader is None:
            break
        tensor = reader.output[0]
        names |= {tensor, reader.name}
    names.discard("")
    return names
