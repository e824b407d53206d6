"""Constants: what reaches a layer's weight input from an initializer, folded in numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.graph import Graph, Layer, Node

Array = np.ndarray[Any, Any]
FOLDABLE = frozenset({"Identity", "Transpose", "Reshape", "Cast", "DequantizeLinear"})
_MOST_FILLED = 65536
_FLOAT_CASTS: dict[int, Any] = {1: np.float32, 10: np.float16, 11: np.float64, 16: np.float32}


@dataclass(frozen=True)
class ConstantPath:
    """How a tensor comes from one initializer: `root` is its name, `nodes` are applied to it in order."""

    root: str
    nodes: tuple[Node, ...]


def trace(tensor: str, producers: Mapping[str, Node], constants: Mapping[str, Array]) -> ConstantPath | None:
    """The path to `tensor` from an initializer through `FOLDABLE` nodes only; None when anything else is on it."""
    path: list[Node] = []
    seen = set()
    while tensor not in constants:
        node = producers.get(tensor)
        if node is None or node.op_type not in FOLDABLE or node.index in seen or tensor != node.outputs[0]:
            return None
        if any(name and name not in constants for name in node.inputs[1:]) or not node.inputs:
            return None
        seen.add(node.index)
        path.append(node)
        tensor = node.inputs[0]
    return ConstantPath(tensor, tuple(reversed(path)))


def evaluate(path: ConstantPath, constants: Mapping[str, Array]) -> Array:
    """The value at the end of a path; raises ValueError when a node on it cannot be computed."""
    value = constants[path.root]
    for node in path.nodes:
        extra = [constants[name] if name else None for name in node.inputs[1:]]
        value = _apply(node, value, extra)
    return value


def _apply(node: Node, value: Array, extra: list[Array | None]) -> Array:
    match node.op_type:
        case "Identity":
            return value
        case "Transpose":
            return np.transpose(value, node.attributes.get("perm"))
        case "Reshape":
            target = extra[0] if extra else node.attributes["shape"]
            wanted = [int(size) for size in np.asarray(target).reshape(-1)]
            if not node.attributes.get("allowzero", 0):
                wanted = [value.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
            return value.reshape(wanted)
        case "Cast":
            return value.astype(_FLOAT_CASTS.get(node.attributes["to"], value.dtype))
        case _:
            return dequantize(value, extra, node.attributes)


def dequantize(codes: Array, extra: list[Array | None], attributes: Mapping[str, Any]) -> Array:
    """(codes − zero point) · scale, with one scale, one per index of `axis`, or one per block along it."""
    scale = np.asarray(extra[0], dtype=np.float32)
    zero = extra[1] if len(extra) > 1 else None
    if codes.dtype == np.int32 and zero is None:
        values = codes.astype(np.float64)
    else:
        values = codes.astype(np.float32)
    offset = np.zeros((), np.float32) if zero is None else zero.astype(np.float32)
    axis = int(attributes.get("axis", 1))
    block = int(attributes.get("block_size", 0))

    def spread(array: Array) -> Array:
        if array.size == 1:
            return array.reshape(())
        if block:
            length = codes.shape[axis]
            return np.repeat(array, min(block, length), axis=axis).take(range(length), axis=axis)
        shape = [1] * codes.ndim
        shape[axis] = -1
        return array.reshape(shape)

    return np.asarray((values - spread(offset)) * spread(scale), dtype=np.float32)


def fold_filled(nodes: tuple[Node, ...], constants: dict[str, Array]) -> None:
    """Add to `constants` what exporters fill in without optimizing: shapes of constants, and numbers expanded to them.

    Every convolution without a bias that PyTorch exports so gets one: Expand(CastLike(0), Shape(weight)).
    """
    for node in nodes:
        read = [constants.get(name) for name in node.inputs]
        match node.op_type, read:
            case "Shape", [np.ndarray() as value]:
                rank = value.ndim
                start, end = node.attributes.get("start", 0), node.attributes.get("end", rank)
                constants[node.outputs[0]] = np.asarray(value.shape[slice(start, end)], dtype=np.int64)
            case "CastLike", [np.ndarray() as value, _] if value.dtype == np.float32:
                constants[node.outputs[0]] = value
            case "Expand", [np.ndarray() as value, np.ndarray() as sizes]:
                shape = np.broadcast_shapes(value.shape, tuple(int(size) for size in sizes.reshape(-1)))
                if math.prod(shape) <= _MOST_FILLED:
                    constants[node.outputs[0]] = np.broadcast_to(value, shape).copy()


def producers_of(nodes: tuple[Node, ...]) -> dict[str, Node]:
    return {name: node for node in nodes for name in node.outputs if name}


def layer_weight(graph: Graph, layer: Layer) -> Array:
    """The layer's weight as a new float32 array in the layout that reaches its node."""
    return _constant(graph, graph.nodes[layer.node].inputs[layer.weight_position])


def layer_bias(graph: Graph, layer: Layer) -> Array | None:
    """The layer's bias as float32 of shape (C,), or None when it has none."""
    if layer.bias is None:
        return None
    value = _constant(graph, graph.nodes[layer.bias.node].inputs[layer.bias.position])
    channels = layer.weight_shape[layer.channel_axis]
    return np.broadcast_to(value.reshape(-1), (channels,)).copy()


def _constant(graph: Graph, tensor: str) -> Array:
    path = trace(tensor, producers_of(graph.nodes), graph.constants)
    assert path is not None, tensor
    return np.array(evaluate(path, graph.constants), dtype=np.float32)
