"""Hand-built graphs and a fixed profile for the latency tests; no file is read and no machine is asked."""

from __future__ import annotations

import numpy as np
import onnx

from kernels.backends.cpu_profiles import onnxruntime_profile
from kernels.device_identity import DeviceIdentity
from kernels.hardware_profile import HardwareProfile
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape
from search.graph import Bias, Graph, Layer, LayerKind, Node, OperatingShapes, TensorInfo


def profile() -> HardwareProfile:
    return onnxruntime_profile(DeviceIdentity("cpu", "test CPU", 4, 1 << 33, ("avx512_vnni",), os="Linux x86_64"))


def graph_of(nodes: list[tuple[str, list[str], list[str]]], layers: list[Layer], inputs: list[TensorInfo]) -> Graph:
    return Graph(
        model=onnx.ModelProto(),
        sha256="0" * 64,
        content_hash="0" * 64,
        opset=20,
        inputs=tuple(inputs),
        outputs=(TensorInfo(nodes[-1][2][0], np.dtype(np.float32), ("batch", 10)),),
        nodes=tuple(
            Node(index, f"node{index}", op, "", tuple(read), tuple(written), {})
            for index, (op, read, written) in enumerate(nodes)
        ),
        constants={},
        layers=tuple(layers),
    )


def _conv(name: str, node: int, read: str, shape: Conv2dShape, relu: tuple[int, str] | None = None) -> Layer:
    weight = (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel)
    return Layer(
        name, LayerKind.CONV, node, f"{name}.w", 1, weight, 0, read, 0, Bias(node, 2, f"{name}.b"), f"{name}.out",
        activation_node=relu[0] if relu else None, activation_output=relu[1] if relu else None,
    )  # fmt: skip


def linear(name: str, node: int, read: str, shape: LinearShape, bias_node: int | None = None) -> Layer:
    bias = Bias(node if bias_node is None else bias_node, 2 if bias_node is None else 1, f"{name}.b")
    return Layer(
        name, LayerKind.LINEAR, node, f"{name}.w", 1, (shape.k, shape.n), 1, read, 0, bias, f"{name}.out",
    )  # fmt: skip


def cnn() -> tuple[Graph, OperatingShapes]:
    """stem+relu -> inner+relu -> plain -> Add(stem) -> Relu -> {down+relu, side} -> Add -> pool -> head, batch 2."""
    shapes = {
        "stem": Conv2dShape(2, 3, 8, 8, 16, (3, 3), (1, 1), (1, 1, 1, 1)),
        "inner": Conv2dShape(2, 16, 8, 8, 16, (3, 3), (1, 1), (1, 1, 1, 1)),
        "plain": Conv2dShape(2, 16, 8, 8, 16, (3, 3), (1, 1), (1, 1, 1, 1)),
        "down": Conv2dShape(2, 16, 8, 8, 32, (3, 3), (2, 2), (1, 1, 1, 1)),
        "side": Conv2dShape(2, 16, 8, 8, 32, (1, 1), (2, 2)),
        "head": LinearShape(2, 32, 10),
    }
    nodes = [
        ("Conv", ["image", "stem.w", "stem.b"], ["stem.out"]),
        ("Relu", ["stem.out"], ["stem.relu"]),
        ("Conv", ["stem.relu", "inner.w", "inner.b"], ["inner.out"]),
        ("Relu", ["inner.out"], ["inner.relu"]),
        ("Conv", ["inner.relu", "plain.w", "plain.b"], ["plain.out"]),
        ("Add", ["plain.out", "stem.relu"], ["sum1"]),
        ("Relu", ["sum1"], ["block1"]),
        ("Conv", ["block1", "down.w", "down.b"], ["down.out"]),
        ("Relu", ["down.out"], ["down.relu"]),
        ("Conv", ["block1", "side.w", "side.b"], ["side.out"]),
        ("Add", ["down.relu", "side.out"], ["sum2"]),
        ("GlobalAveragePool", ["sum2"], ["pooled"]),
        ("Flatten", ["pooled"], ["flat"]),
        ("Gemm", ["flat", "head.w", "head.b"], ["head.out"]),
    ]
    layers = [
        _conv("stem", 0, "image", shapes["stem"], (1, "stem.relu")),
        _conv("inner", 2, "stem.relu", shapes["inner"], (3, "inner.relu")),
        _conv("plain", 4, "inner.relu", shapes["plain"]),
        _conv("down", 7, "block1", shapes["down"], (8, "down.relu")),
        _conv("side", 9, "block1", shapes["side"]),
        linear("head", 13, "flat", shapes["head"]),
    ]
    tensors = {
        "image": (2, 3, 8, 8), "stem.out": (2, 16, 8, 8), "stem.relu": (2, 16, 8, 8), "inner.out": (2, 16, 8, 8),
        "inner.relu": (2, 16, 8, 8), "plain.out": (2, 16, 8, 8), "sum1": (2, 16, 8, 8), "block1": (2, 16, 8, 8),
        "down.out": (2, 32, 4, 4), "down.relu": (2, 32, 4, 4), "side.out": (2, 32, 4, 4), "sum2": (2, 32, 4, 4),
        "pooled": (2, 32, 1, 1), "flat": (2, 32), "head.out": (2, 10),
    }  # fmt: skip
    image = TensorInfo("image", np.dtype(np.float32), ("batch", 3, 8, 8))
    return graph_of(nodes, layers, [image]), OperatingShapes(shapes, tensors)


def transformer() -> tuple[Graph, OperatingShapes]:
    """embedding -> LayerNorm -> {query, key} -> … -> wide (its 40 inputs are no multiple of 32), 2 x 6 tokens."""
    shapes = {
        "words": EmbeddingShape(12, 100, 64),
        "query": LinearShape(12, 64, 64),
        "key": LinearShape(12, 64, 64),
        "wide": LinearShape(12, 40, 64),
    }
    nodes = [
        ("Gather", ["words.w", "ids"], ["words.out"]),
        ("LayerNormalization", ["words.out", "gain"], ["normed"]),
        ("MatMul", ["normed", "query.w"], ["query.product"]),
        ("Add", ["query.product", "query.b"], ["query.out"]),
        ("MatMul", ["normed", "key.w"], ["key.product"]),
        ("Add", ["key.product", "key.b"], ["key.out"]),
        ("Add", ["query.out", "key.out"], ["mixed"]),
        ("Slice", ["mixed", "starts", "ends"], ["part"]),
        ("MatMul", ["part", "wide.w"], ["wide.product"]),
        ("Add", ["wide.product", "wide.b"], ["wide.out"]),
    ]
    layers = [
        Layer("words", LayerKind.EMBEDDING, 0, "words.w", 0, (100, 64), 0, "ids", 1, None, "words.out"),
        linear("query", 2, "normed", shapes["query"], bias_node=3),
        linear("key", 4, "normed", shapes["key"], bias_node=5),
        linear("wide", 8, "part", shapes["wide"], bias_node=9),
    ]
    tensors = {
        "ids": (2, 6), "words.out": (2, 6, 64), "normed": (2, 6, 64), "query.out": (2, 6, 64), "key.out": (2, 6, 64),
        "mixed": (2, 6, 64), "part": (2, 6, 40), "wide.out": (2, 6, 64),
    }  # fmt: skip
    ids = TensorInfo("ids", np.dtype(np.int64), ("batch", "sequence"))
    return graph_of(nodes, layers, [ids]), OperatingShapes(shapes, tensors)
