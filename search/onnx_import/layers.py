"""Layers: finds the weighted ops of a graph, names them, and says why any of them stays unquantized."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from search.graph import Bias, Layer, LayerKind, Node, Unquantized
from search.onnx_import.constants import Array, ConstantPath, evaluate, producers_of, trace

NAME_LIMIT_BYTES = 512
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_KINDS = {
    "Conv": LayerKind.CONV,
    "ConvTranspose": LayerKind.CONV_TRANSPOSE,
    "Gemm": LayerKind.LINEAR,
    "MatMul": LayerKind.LINEAR,
    "Gather": LayerKind.EMBEDDING,
}
_ALREADY = "already quantized in the submitted model"
_NO_CANDIDATE = {
    "Einsum": "Einsum has no quantized kernel",
    "RNN": "recurrent ops have no quantized kernel",
    "LSTM": "recurrent ops have no quantized kernel",
    "GRU": "recurrent ops have no quantized kernel",
    "Attention": "the fused Attention op multiplies activations with activations",
    "DeformConv": "DeformConv has no quantized kernel",
    "QLinearConv": _ALREADY,
    "QLinearMatMul": _ALREADY,
    "ConvInteger": _ALREADY,
    "MatMulInteger": _ALREADY,
}


@dataclass(frozen=True)
class FoundLayers:
    layers: tuple[Layer, ...]
    unquantized: tuple[Unquantized, ...]


@dataclass(frozen=True)
class _Wiring:
    """Who makes and who reads each tensor."""

    producers: Mapping[str, Node]
    readers: Mapping[str, Sequence[Node]]
    constants: Mapping[str, Array]
    outputs: frozenset[str]

    def only_reader(self, tensor: str) -> Node | None:
        """The one node that reads the tensor, once; None when it is read elsewhere too or is a graph output."""
        found = self.readers.get(tensor, ())
        return found[0] if len(found) == 1 and tensor not in self.outputs else None

    def constant(self, tensor: str) -> Array | None:
        path = trace(tensor, self.producers, self.constants) if tensor else None
        return None if path is None else evaluate(path, self.constants)


def find_layers(
    nodes: tuple[Node, ...],
    constants: Mapping[str, Array],
    outputs: Iterable[str],
    scopes: Mapping[int, Sequence[str]] | None = None,
) -> FoundLayers:
    """The layers in node order, and the ops that do a layer's work without a constant weight.

    `scopes` gives, for a node index, the module names that the exporter recorded for it.
    """
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            if name:
                readers.setdefault(name, []).append(node)
    wiring = _Wiring(producers_of(nodes), readers, constants, frozenset(outputs))
    layers: list[Layer] = []
    unquantized: list[Unquantized] = []
    for node in nodes:
        if node.domain == "" and node.op_type in _KINDS:
            found = _layer(node, wiring)
            if isinstance(found, str):
                unquantized.append(Unquantized(_display(node), node.op_type, found))
            elif found is not None:
                layers.append(found)
        elif node.op_type in _NO_CANDIDATE:
            unquantized.append(Unquantized(_display(node), node.op_type, _NO_CANDIDATE[node.op_type]))
    tied = _tied(layers, nodes, wiring)
    return FoundLayers(tuple(_named(tied, nodes, scopes or {})), tuple(unquantized))


def clean_name(name: str) -> str:
    """A name from the file made safe to store and print: no control characters, at most 512 bytes of UTF-8."""
    text = _CONTROL.sub("", name).encode("utf-8", "replace")[:NAME_LIMIT_BYTES]
    return text.decode("utf-8", "ignore")


def _display(node: Node) -> str:
    return clean_name(node.name) or f"{node.op_type}_{node.index}"


def _layer(node: Node, wiring: _Wiring) -> Layer | str | None:
    """The layer a node is, the reason it has no constant weight, or None when it does no layer's work."""
    if node.op_type == "Gather":
        return _embedding(node, wiring)
    if len(node.inputs) < 2:
        return None
    paths = [trace(name, wiring.producers, wiring.constants) for name in node.inputs[:2]]
    position = 1
    if node.op_type == "MatMul" and paths[1] is None and paths[0] is not None:
        position = 0
    path = paths[position]
    if path is None:
        if node.op_type in ("Conv", "ConvTranspose"):
            return "its weight is computed, not stored"
        return "both operands are computed: activations times activations"
    if paths[1 - position] is not None:
        return None  # constant times constant: the runtime computes it once at load time
    weight = evaluate(path, wiring.constants)
    if weight.dtype.kind != "f":
        return f"its weight is {weight.dtype}, not float"
    return _weighted(node, position, path, weight, wiring)


def _weighted(node: Node, position: int, path: ConstantPath, weight: Array, wiring: _Wiring) -> Layer:
    kind = _KINDS[node.op_type]
    is_quantized = wiring.constants[path.root].dtype.kind in "iu"
    reason = _ALREADY if is_quantized else _reason(node, position, weight)
    output = node.outputs[0]
    bias: Bias | None = None
    channel_axis = _channel_axis(node, weight.ndim)
    channels = weight.shape[channel_axis]
    if node.op_type == "MatMul":
        if position == 1 and weight.ndim == 2:
            found = _add_behind(output, channels, wiring)
            if found is not None:
                bias, output = found
    elif len(node.inputs) > 2 and node.inputs[2]:
        value = wiring.constant(node.inputs[2])
        if value is not None and _is_per_channel(value, channels):
            bias = Bias(node.index, 2, node.inputs[2])
        else:
            reason = reason or "its bias is computed or is not one value per output channel"
    activation = _absorbed(output, wiring) if kind in (LayerKind.CONV, LayerKind.CONV_TRANSPOSE) else None
    return Layer(
        name="",
        kind=kind,
        node=node.index,
        weight=path.root,
        weight_position=position,
        weight_shape=tuple(int(size) for size in weight.shape),
        channel_axis=channel_axis,
        input=node.inputs[1 - position],
        input_position=1 - position,
        bias=bias,
        output=output,
        activation_node=None if activation is None else activation.index,
        activation_output=None if activation is None else activation.outputs[0],
        unquantized_reason=reason,
    )


def _embedding(node: Node, wiring: _Wiring) -> Layer | None:
    path = trace(node.inputs[0], wiring.producers, wiring.constants)
    if path is None:
        return None
    weight = evaluate(path, wiring.constants)
    axis = int(node.attributes.get("axis", 0))
    if weight.dtype.kind != "f" or weight.ndim != 2 or axis not in (0, -2):
        return None  # shape arithmetic and look-ups into small constants
    fixed = trace(node.inputs[1], wiring.producers, wiring.constants) is not None
    return Layer(
        name="",
        kind=LayerKind.EMBEDDING,
        node=node.index,
        weight=path.root,
        weight_position=0,
        weight_shape=tuple(int(size) for size in weight.shape),
        channel_axis=0,
        input=node.inputs[1],
        input_position=1,
        bias=None,
        output=node.outputs[0],
        unquantized_reason="its indices are constant, so the runtime gathers once at load time"
        if fixed
        else _other_than_float32(weight),
    )


def _reason(node: Node, position: int, weight: Array) -> str | None:
    if node.op_type == "ConvTranspose":
        return "no runtime here has an integer ConvTranspose"
    if node.op_type == "Conv" and weight.ndim not in (3, 4):
        return f"a convolution over {weight.ndim - 2} dimensions has no quantized kernel"
    if node.op_type == "MatMul":
        if position == 0:
            return "the constant is the left operand of MatMul"
        if weight.ndim != 2:
            return f"the constant has {weight.ndim} dimensions; a quantized MatMul takes a matrix"
    if node.op_type == "Gemm":
        odd = [
            f"{name}={node.attributes[name]:g}"
            for name, usual in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))
            if node.attributes.get(name, usual) != usual
        ]
        if odd:
            return f"Gemm with {', '.join(odd)} has no quantized kernel"
    return _other_than_float32(weight)


def _other_than_float32(weight: Array) -> str | None:
    return None if weight.dtype == np.float32 else f"it computes in {weight.dtype}; only float32 layers are quantized"


def _channel_axis(node: Node, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get("transB", 0) else 1
    return max(0, rank - 1)


def _is_per_channel(value: Array, channels: int) -> bool:
    """One value per channel, or one for all: shape (), (1,), (C,), (1, C), (1, 1, C), …"""
    return value.dtype.kind == "f" and value.size in (1, channels) and all(size == 1 for size in value.shape[:-1])


def _add_behind(output: str, channels: int, wiring: _Wiring) -> tuple[Bias, str] | None:
    add = wiring.only_reader(output)
    if add is None or add.op_type != "Add":
        return None
    position = 1 if add.inputs[0] == output else 0
    value = wiring.constant(add.inputs[position])
    if value is None or not _is_per_channel(value, channels):
        return None
    return Bias(add.index, position, add.inputs[position]), add.outputs[0]


def _absorbed(output: str, wiring: _Wiring) -> Node | None:
    """A Relu, or a Clip from 0 to a constant, that alone reads `output`."""
    node = wiring.only_reader(output)
    if node is None or node.op_type not in ("Relu", "Clip") or node.inputs[0] != output:
        return None
    if node.op_type == "Relu":
        return node
    if "min" in node.attributes or "max" in node.attributes:
        low, high = node.attributes.get("min"), node.attributes.get("max")
    else:
        bounds = [wiring.constant(name) for name in node.inputs[1:3]]
        low, high = (
            None if index >= len(bounds) or (bound := bounds[index]) is None or bound.size != 1 else float(bound.item())
            for index in (0, 1)
        )
        if len(node.inputs) > 2 and node.inputs[2] and high is None:
            return None
    return node if low == 0 and (high is None or high > 0) else None


def _named(layers: list[Layer], nodes: tuple[Node, ...], scopes: Mapping[int, Sequence[str]]) -> list[Layer]:
    by_op: Counter[str] = Counter()
    taken: set[str] = set()
    named = []
    for layer in layers:
        node = nodes[layer.node]
        base = clean_name(layer_name(layer, node, scopes.get(layer.node, ()), by_op[node.op_type]))
        by_op[node.op_type] += 1
        name, copy = base, 1
        while name in taken or not name:
            copy += 1
            suffix = f"#{copy}"
            name = base.encode()[: NAME_LIMIT_BYTES - len(suffix)].decode("utf-8", "ignore") + suffix
        taken.add(name)
        named.append(replace(layer, name=name))
    return named


def layer_name(layer: Layer, node: Node, scopes: Sequence[str], index: int) -> str:
    """A layer's name: the module path in its weight's name, the exporter's scopes or the node's path, else the node's
    own name, else op and index.

    A tied weight carries the name of one of its layers only, so there the layer's own scopes and path come first.
    """
    weight = layer.weight.removesuffix(".weight")
    named = weight if weight and weight != layer.weight and "::" not in weight else ""
    path = _module_path(node.name.split("/")[1:-1]) if node.name.startswith("/") else ""
    own = scopes[-1] if scopes else path
    usual = node.name or f"{node.op_type}_{index}"
    return (own or named or usual) if layer.tie is not None else (named or own or usual)


def _module_path(parts: Sequence[str]) -> str:
    """`l`, `l.0`, `c1` → `l.0.c1`: children of containers repeat the container's name."""
    path: list[str] = []
    for part in parts:
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)


def _tied(layers: list[Layer], nodes: tuple[Node, ...], wiring: _Wiring) -> list[Layer]:
    """Set `tie` where two layers hold the same weight, also when one has it transposed."""
    keys: list[str] = []
    digests: dict[tuple[str, tuple[int, ...]], str] = {}
    for layer in layers:
        source = nodes[layer.node].inputs[layer.weight_position]
        if (source, layer.weight_shape) not in digests:
            value = wiring.constant(source)
            assert value is not None
            digests[source, layer.weight_shape] = content_key(value)
        keys.append(digests[source, layer.weight_shape])
    shared = {key for key, count in Counter(keys).items() if count > 1}
    return [replace(layer, tie=key[:16]) if key in shared else layer for layer, key in zip(layers, keys, strict=True)]


def content_key(weight: np.ndarray[Any, Any]) -> str:
    """A hash equal for equal weights, and for a matrix and its transpose."""

    def digest(value: np.ndarray[Any, Any]) -> str:
        content = hashlib.sha256(repr((value.shape, value.dtype.str)).encode())
        content.update(np.ascontiguousarray(value).data)
        return content.hexdigest()

    weight = np.asarray(weight, dtype=np.float32)
    return min(digest(weight), digest(weight.T)) if weight.ndim == 2 else digest(weight)
