"""Small random graphs for tests: a CNN with every neighbour that matters to quantizers, an MLP, a token model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kernels.recipe import Recipe
from kernels.recipes import (
    EMBEDDING_W8,
    LINEAR_W4_GROUPS_INT8_INSIDE,
    conv_recipe,
    linear_dynamic_recipe,
    linear_recipe,
)
from search.graph import Graph
from search.onnx_import import graph_from_model


class Builder:
    """Collects nodes and seeded initializers; tensor names are given by the caller."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def normal(self, name: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> str:
        return self.constant(name, (shift + scale * self.random.normal(size=shape)).astype(np.float32))

    def node(self, op_type: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def conv(
        self, source: str, name: str, cin: int, cout: int, kernel: int = 3, bias: bool = True, **attributes
    ) -> str:
        fan_in = cin // attributes.get("group", 1) * kernel * kernel
        inputs = [source, self.normal(f"{name}.weight", cout, cin // attributes.get("group", 1), kernel, kernel,
                                      scale=(2 / fan_in) ** 0.5)]  # fmt: skip
        if bias:
            inputs.append(self.normal(f"{name}.bias", cout, scale=0.3))
        pad = kernel // 2
        return self.node("Conv", inputs, name, kernel_shape=[kernel, kernel], pads=[pad] * 4, **attributes)

    def graph(self, inputs: dict[str, tuple], outputs: dict[str, tuple], opset: int = 17) -> Graph:
        def infos(named: dict[str, tuple]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, *shape) in named.items()]

        proto = helper.make_graph(self.nodes, "small", infos(inputs), infos(outputs), self.constants)
        model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.checker.check_model(model)
        return graph_from_model(model)


def small_cnn(seed: int = 0, batch: int | str = "N", width: int = 8, size: int = 10) -> Graph:
    """Stem+Relu, depthwise+Clip(0, 6), 1×1 without bias+SiLU, a residual Add+Relu, global pool, Gemm head.

    `batch` an int makes a fixed-batch export.
    """
    b = Builder(seed)
    b.constant("zero", np.float32(0)), b.constant("six", np.float32(6))
    b.node("Relu", [b.conv("image", "stem", 3, width)], "stem_relu")
    b.node("Clip", [b.conv("stem_relu", "depthwise", width, width, group=width), "zero", "six"], "depthwise_clip")
    b.conv("depthwise_clip", "pointwise", width, 2 * width, kernel=1, bias=False)
    b.node("Mul", ["pointwise", b.node("Sigmoid", ["pointwise"], "gate")], "silu")
    b.node("Relu", [b.conv("silu", "block1", 2 * width, 2 * width)], "block1_relu")
    b.conv("block1_relu", "block2", 2 * width, 2 * width)
    b.node("Relu", [b.node("Add", ["block2", "silu"], "sum")], "sum_relu")
    b.node("GlobalAveragePool", ["sum_relu"], "pooled")
    b.node("Flatten", ["pooled"], "features")
    b.normal("fc.weight", 10, 2 * width, scale=0.5), b.normal("fc.bias", 10, scale=0.1)
    b.node("Gemm", ["features", "fc.weight", "fc.bias"], "logits", transB=1)
    return b.graph({"image": (TensorProto.FLOAT, batch, 3, size, size)}, {"logits": (TensorProto.FLOAT, batch, 10)})


def recurrent_cnn(seed: int = 0, width: int = 32) -> Graph:
    """Two convolutions, an RNN (which has no derivative here) over one step, a Gemm head."""
    b = Builder(seed)
    b.node("Relu", [b.conv("image", "stem", 3, width)], "stem_relu")
    b.node("Relu", [b.conv("stem_relu", "body", width, width)], "body_relu")
    b.node("Flatten", [b.node("GlobalAveragePool", ["body_relu"], "pooled")], "features")
    b.constant("first", np.array([0], np.int64))
    b.node("Unsqueeze", ["features", "first"], "sequence")
    b.normal("rnn.w", 1, 16, width, scale=0.2), b.normal("rnn.r", 1, 16, 16, scale=0.2)
    b.nodes.append(helper.make_node("RNN", ["sequence", "rnn.w", "rnn.r"], ["", "last"], name="rnn", hidden_size=16))
    b.node("Squeeze", ["last", "first"], "state")
    b.normal("fc.weight", 10, 16, scale=0.5), b.normal("fc.bias", 10, scale=0.1)
    b.node("Gemm", ["state", "fc.weight", "fc.bias"], "logits", transB=1)
    return b.graph({"image": (TensorProto.FLOAT, "N", 3, 10, 10)}, {"logits": (TensorProto.FLOAT, "N", 10)})


def small_mlp(seed: int = 0, width: int = 64) -> Graph:
    """MatMul+Add, Gelu by Erf, MatMul without bias, Relu, MatMul+Add over three-dimensional activations."""
    b = Builder(seed)
    b.node("MatMul", ["x", b.normal("up.weight", 32, width, scale=32**-0.5)], "up_product")
    b.node("Add", ["up_product", b.normal("up.bias", width, scale=0.2)], "up")
    b.constant("root2", np.float32(2**0.5)), b.constant("one", np.float32(1)), b.constant("half", np.float32(0.5))
    b.node("Erf", [b.node("Div", ["up", "root2"], "scaled")], "erf")
    b.node("Mul", [b.node("Mul", ["up", b.node("Add", ["erf", "one"], "shifted")], "twice"), "half"], "gelu")
    b.node("MatMul", ["gelu", b.normal("middle.weight", width, width, scale=width**-0.5)], "middle")
    b.node("Relu", ["middle"], "middle_relu")
    b.node("MatMul", ["middle_relu", b.normal("down.weight", width, 12, scale=width**-0.5)], "down_product")
    b.node("Add", [b.normal("down.bias", 12, scale=0.2), "down_product"], "logits")
    return b.graph({"x": (TensorProto.FLOAT, "N", 5, 32)}, {"logits": (TensorProto.FLOAT, "N", 5, 12)})


def residual_mlp(seed: int = 0, width: int = 128) -> Graph:
    """x + down(Relu(up(x))), the sum also read by Relu and head; a second product is added to what comes later."""
    b = Builder(seed)
    b.node("MatMul", ["x", b.normal("up.weight", width, width, scale=width**-0.5)], "up_product")
    b.node("Add", ["up_product", b.normal("up.bias", width, scale=0.2)], "up")
    b.node(
        "MatMul", [b.node("Relu", ["up"], "up_relu"), b.normal("down.weight", width, width, scale=width**-0.5)], "down"
    )
    b.node("Add", ["x", "down"], "sum")
    b.node("MatMul", ["sum", b.normal("side.weight", width, width, scale=width**-0.5)], "side")
    b.node("Add", ["side", b.node("Relu", ["sum"], "later")], "mixed")
    b.node("MatMul", ["mixed", b.normal("head.weight", width, 12, scale=width**-0.5)], "logits")
    return b.graph({"x": (TensorProto.FLOAT, "N", 5, width)}, {"logits": (TensorProto.FLOAT, "N", 5, 12)})


def token_model(seed: int = 0, rows: int = 40, width: int = 32) -> Graph:
    """Embedding, LayerNormalization, MatMul+Add: integer inputs."""
    b = Builder(seed)
    b.node("Gather", [b.normal("table.weight", rows, width), "tokens"], "embedded")
    b.constant("gain", np.ones(width, np.float32)), b.constant("shift", np.zeros(width, np.float32))
    b.node("LayerNormalization", ["embedded", "gain", "shift"], "normed", axis=-1)
    b.node("MatMul", ["normed", b.normal("head.weight", width, 7, scale=width**-0.5)], "product")
    b.node("Add", ["product", b.normal("head.bias", 7)], "logits")
    return b.graph({"tokens": (TensorProto.INT64, "N", 6)}, {"logits": (TensorProto.FLOAT, "N", 6, 7)})


def images(count: int, seed: int = 1, size: int = 10) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"image": random.normal(0.3, 1.0, (count, 3, size, size)).astype(np.float32)}


def rows_of_32(count: int, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 5, 32)).astype(np.float32)}


def tokens(count: int, seed: int = 1, rows: int = 40) -> dict[str, np.ndarray]:
    return {"tokens": np.random.default_rng(seed).integers(0, rows, (count, 6))}


def recipes_for(graph: Graph, conv_bits: tuple[int, ...] = (8, 4)) -> dict[tuple[str, str], Recipe]:
    """The shipped CPU recipes for every layer of a graph."""
    found: dict[tuple[str, str], Recipe] = {}
    for layer in graph.layers:
        if layer.op_kind == "conv2d":
            found |= {(layer.name, f"w{bits}a8"): conv_recipe(bits) for bits in conv_bits}
        elif layer.op_kind == "linear":
            found |= {(layer.name, f"w{bits}a8"): linear_recipe(bits) for bits in conv_bits}
            found[layer.name, "w8a8-dynamic"] = linear_dynamic_recipe()
            found[layer.name, "w4a16-g32"] = LINEAR_W4_GROUPS_INT8_INSIDE
        elif layer.op_kind == "embedding":
            found[layer.name, "w8a16"] = EMBEDDING_W8
    return found


def study_folder(folder: Path) -> Path:
    """A new folder with `small_cnn` and enough images for every split, as a stage finds it."""
    folder.mkdir()
    onnx.save(small_cnn().model, folder / "model.onnx")
    np.savez(folder / "dataset.npz", **images(390))
    return folder
