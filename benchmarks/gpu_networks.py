"""Networks for the GPU benchmark as ONNX graphs, without an exporter: ResNet-50 and a BERT-base-shaped encoder."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20


class _Builder:
    """Nodes and seeded constants of one graph; methods return the name of the tensor they made."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, *shape: int, fan: int) -> str:
        return self.constant((self._rng.standard_normal(shape, np.float32) * np.sqrt(2 / fan)).astype(np.float32))

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, into: int, out: int, kernel: int, stride: int = 1) -> str:
        weight = self.weight(out, into, kernel, kernel, fan=2 * into * kernel * kernel)
        bias = self.constant(self._rng.normal(0, 0.1, out).astype(np.float32))
        pads = [kernel // 2] * 4
        return self.node("Conv", x, weight, bias, strides=[stride, stride], pads=pads, kernel_shape=[kernel, kernel])

    def linear(self, x: str, into: int, out: int) -> str:
        product = self.node("MatMul", x, self.weight(into, out, fan=2 * into))
        return self.node("Add", product, self.constant(self._rng.normal(0, 0.1, out).astype(np.float32)))

    def norm(self, x: str, width: int) -> str:
        scale, bias = (self.constant(np.full(width, value, np.float32)) for value in (1.0, 0.0))
        return self.node("LayerNormalization", x, scale, bias, axis=-1)

    def model(self, name: str, given: tuple[str, list[object]], output: str, shape: list[object]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, given[1])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self._constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def resnet50(
    blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, size: int = 224, seed: int = 0
) -> onnx.ModelProto:
    """(batch, 3, size, size) images to 1000 logits: He et al. 2016, table 1, normalization folded, random weights."""
    b = _Builder(seed)
    x = b.node("Relu", b.conv("image", 3, width, 7, 2))
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = width
    for stage, count in enumerate(blocks):
        inner = width << stage
        for index in range(count):
            stride = 2 if stage and not index else 1
            y = b.node("Relu", b.conv(x, channels, inner, 1))
            y = b.node("Relu", b.conv(y, inner, inner, 3, stride))
            y = b.conv(y, inner, 4 * inner, 1)
            kept = x if channels == 4 * inner and stride == 1 else b.conv(x, channels, 4 * inner, 1, stride)
            x, channels = b.node("Relu", b.node("Add", y, kept)), 4 * inner
    flat = b.node("Flatten", b.node("GlobalAveragePool", x))
    logits = b.linear(flat, channels, 1000)
    return b.model("resnet50", ("image", ["batch", 3, size, size]), logits, ["batch", 1000])


def encoder(depth: int = 12, width: int = 768, heads: int = 12, seed: int = 0) -> onnx.ModelProto:
    """(batch, tokens, width) embeddings through post-norm blocks of attention and a GELU MLP, as BERT-base has them."""
    b = _Builder(seed)
    x = "embeddings"
    split = b.constant(np.array([0, 0, heads, width // heads], np.int64))
    merge = b.constant(np.array([0, 0, width], np.int64))
    scale = b.constant(np.array((width // heads) ** -0.5, np.float32))
    for _ in range(depth):
        query, key, value = (b.node("Reshape", b.linear(x, width, width), split) for _ in range(3))
        query, value = (b.node("Transpose", each, perm=[0, 2, 1, 3]) for each in (query, value))
        scores = b.node("MatMul", query, b.node("Transpose", key, perm=[0, 2, 3, 1]))
        mixed = b.node("MatMul", b.node("Softmax", b.node("Mul", scores, scale), axis=-1), value)
        merged = b.node("Reshape", b.node("Transpose", mixed, perm=[0, 2, 1, 3]), merge)
        x = b.norm(b.node("Add", x, b.linear(merged, width, width)), width)
        inner = b.node("Gelu", b.linear(x, width, 4 * width))
        x = b.norm(b.node("Add", x, b.linear(inner, 4 * width, width)), width)
    return b.model("encoder", ("embeddings", ["batch", "tokens", width]), x, ["batch", "tokens", width])
