"""Small hand-built models with every layer form the exporter writes, and a min-max assembly of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from kernels.precision import Precision
from kernels.recipe import Numerics, Recipe
from kernels.recipes import (
    ACTIVATION_U8,
    EMBEDDING_W8,
    LINEAR_W4_GROUPS_INT8_INSIDE,
    conv_recipe,
    linear_dynamic_recipe,
    linear_recipe,
)
from search.assembly import ActivationQuantizer, Assembly, Candidate, QuantizedWeight
from search.graph import Graph, Layer, LayerKind
from search.onnx_import import graph_from_model, layer_bias, layer_weight

Array = np.ndarray[Any, Any]


class Builder:
    """Collects nodes and random weights; every op method returns its output's name."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, *shape: int, fan_in: int) -> str:
        value = self.random.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)
        return self.const(name, value)

    def op(self, op_type: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [out], name=f"node_{out}", **attributes))
        return out

    def conv(
        self, x: str, name: str, c: int, o: int, k: int = 3, *, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> str:
        fan_in = c // groups * k * k
        inputs = [x, self.weight(f"{name}.weight", o, c // groups, k, k, fan_in=fan_in)]
        if bias:
            inputs.append(self.const(f"{name}.bias", self.random.normal(0, 0.1, o).astype(np.float32)))
        return self.op("Conv", *inputs, out=f"{name}_out", pads=[k // 2] * 4, strides=[stride] * 2, group=groups)

    def matmul(self, x: str, name: str, k: int, n: int, *, bias: bool = True) -> str:
        y = self.op("MatMul", x, self.weight(f"{name}.weight", k, n, fan_in=k), out=f"{name}_mm")
        if not bias:
            return y
        return self.op(
            "Add", self.const(f"{name}.bias", self.random.normal(0, 0.1, n).astype(np.float32)), y, out=f"{name}_out"
        )

    def gemm(self, x: str, name: str, k: int, n: int, *, transposed: bool = True, bias: bool = True) -> str:
        shape = (n, k) if transposed else (k, n)
        inputs = [x, self.weight(f"{name}.weight", *shape, fan_in=k)]
        if bias:
            inputs.append(self.const(f"{name}.bias", self.random.normal(0, 0.1, n).astype(np.float32)))
        return self.op("Gemm", *inputs, out=f"{name}_out", transB=int(transposed))

    def model(
        self,
        output: str,
        shape: list[int | str],
        inputs: Mapping[str, tuple[int, list[int | str]]],
        opset: int = 17,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def cnn(opset: int = 17, *, seed: int = 0) -> onnx.ModelProto:
    """Stem, max pool, residual block, depthwise with ReLU6, SiLU, a conv without bias, pooling, Gemm head."""
    b = Builder(seed)
    x = b.op("Relu", b.conv("image", "stem", 3, 16, 3, stride=1))
    x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("Relu", b.conv(x, "block.conv1", 16, 16))
    y = b.conv(y, "block.conv2", 16, 16)
    x = b.op("Relu", b.op("Add", y, x))
    six = [b.const("zero", np.asarray(0, np.float32)), b.const("six", np.asarray(6, np.float32))]
    x = b.op("Clip", b.conv(x, "expand", 16, 32, 1), *six)
    x = b.op("Clip", b.conv(x, "depthwise", 32, 32, groups=32), *six)
    y = b.conv(x, "project", 32, 32, 1, bias=False)
    y = b.op("Mul", y, b.op("Sigmoid", y))
    x = b.op("Relu", b.conv(y, "last", 32, 48))
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    x = b.gemm(x, "head", 48, 10)
    return b.model(x, ["batch", 10], {"image": (TensorProto.FLOAT, ["batch", 3, 16, 16])}, opset)


def tied_cnn() -> onnx.ModelProto:
    """`cnn` with the two convolutions of its block sharing one weight."""
    model = cnn()
    node = next(node for node in model.graph.node if node.name == "node_block.conv2_out")
    node.input[1] = "block.conv1.weight"
    unused = next(tensor for tensor in model.graph.initializer if tensor.name == "block.conv2.weight")
    model.graph.initializer.remove(unused)
    return model


def transformer(opset: int = 17, *, seed: int = 0, width: int = 64, tied: bool = False) -> onnx.ModelProto:
    """Token embedding, one attention block with an MLP, and an output projection; MatMul + Add everywhere."""
    b = Builder(seed)
    vocabulary = 40
    x = b.op("Gather", b.weight("embed.weight", vocabulary, width, fan_in=4), "tokens", out="embedded")

    def split(t: str) -> str:
        shape = b.const(f"{t}_heads", np.asarray([0, 0, 2, width // 2], np.int64))
        return b.op("Transpose", b.op("Reshape", t, shape), perm=[0, 2, 1, 3])

    q, k, v = (split(b.matmul(x, f"attn.{name}", width, width, bias=name != "k")) for name in "qkv")
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    scaled = b.op("Mul", scores, b.const("scale", np.asarray((width // 2) ** -0.5, np.float32)))
    mixed = b.op("Transpose", b.op("MatMul", b.op("Softmax", scaled, axis=-1), v), perm=[0, 2, 1, 3])
    mixed = b.op("Reshape", mixed, b.const("flat", np.asarray([0, 0, width], np.int64)))
    x = b.op("Add", x, b.matmul(mixed, "attn.out", width, width))
    ones = b.const("norm.weight", np.ones(width, np.float32)), b.const("norm.bias", np.zeros(width, np.float32))
    h = b.op("LayerNormalization", x, *ones, axis=-1)
    h = b.matmul(h, "mlp.up", width, 2 * width)
    root_half = b.const("root_half", np.asarray(0.5**0.5, np.float32))
    erf = b.op("Add", b.op("Erf", b.op("Mul", h, root_half)), b.const("one", np.asarray(1, np.float32)))
    h = b.op("Mul", b.op("Mul", h, erf), b.const("half", np.asarray(0.5, np.float32)))
    x = b.op("Add", x, b.matmul(h, "mlp.down", 2 * width, width))
    if tied:
        y = b.op("MatMul", x, b.op("Transpose", "embed.weight", perm=[1, 0]), out="logits")
    else:
        y = b.matmul(x, "head", width, vocabulary, bias=False)
    return b.model(y, ["batch", "time", vocabulary], {"tokens": (TensorProto.INT64, ["batch", "time"])}, opset)


def mlp(opset: int = 17, *, transposed: bool = True, width: int = 64) -> onnx.ModelProto:
    b = Builder()
    x = b.op("Relu", b.gemm("x", "fc1", width, 96, transposed=transposed))
    x = b.op("Relu", b.gemm(x, "fc2", 96, 96, transposed=transposed, bias=False))
    return b.model(b.gemm(x, "fc3", 96, 10, transposed=transposed), ["batch", 10],
                   {"x": (TensorProto.FLOAT, ["batch", width])}, opset)  # fmt: skip


def repeated(width: int = 128) -> onnx.ModelProto:
    """One weight multiplied twice, as models that repeat a block export it; no node has a name."""
    b = Builder()
    b.weight("block.weight", width, width, fan_in=width)
    x = b.op("Relu", b.op("MatMul", "x", "block.weight", out="once"), out="between")
    model = b.model(b.op("MatMul", x, "block.weight", out="y"), ["batch", width],
                    {"x": (TensorProto.FLOAT, ["batch", width])}, 17)  # fmt: skip
    for node in model.graph.node:
        node.ClearField("name")
    return model


def sample_inputs(graph: Graph, count: int = 8, seed: int = 1, time: int = 6) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    arrays = {}
    for info in graph.inputs:
        sizes = {"batch": count, "time": time}
        shape = tuple(sizes.get(d, count) if isinstance(d, str) else int(d or 1) for d in info.shape)
        if info.dtype.kind == "f":
            arrays[info.name] = random.normal(0, 1, shape).astype(np.float32)
        else:
            arrays[info.name] = random.integers(0, 40, shape).astype(info.dtype)
    return arrays


def read(model: onnx.ModelProto) -> Graph:
    return graph_from_model(model)


def recipe_for(layer: Layer, precision: str) -> Recipe:
    if layer.kind is LayerKind.CONV:
        return conv_recipe(Precision(precision).weight_bits)
    if layer.kind is LayerKind.EMBEDDING:
        return EMBEDDING_W8
    if precision == "w8a8-dynamic":
        return linear_dynamic_recipe()
    if precision == "w4a16-g32":
        return LINEAR_W4_GROUPS_INT8_INSIDE
    return linear_recipe(Precision(precision).weight_bits)


def quantize_weight(value: Array, axis: int, numerics: Numerics) -> QuantizedWeight:
    """Symmetric min-max, per channel or in groups along the other axis of a matrix."""
    top = 2 ** (numerics.bits - 1) - 1
    if numerics.group_size is not None:
        matrix = value if axis == 0 else value.T
        short = -matrix.shape[1] % numerics.group_size
        blocks = np.pad(matrix, ((0, 0), (0, short))).reshape(matrix.shape[0], -1, numerics.group_size)
        scale = (np.abs(blocks).max(axis=2) / top + 1e-12).astype(np.float32)
        codes = np.clip(np.rint(blocks / scale[:, :, None]), -top, top).astype(np.int8)
        codes = codes.reshape(matrix.shape[0], -1)[:, : matrix.shape[1]]
        if axis != 0:
            codes, scale = np.ascontiguousarray(codes.T), np.ascontiguousarray(scale.T)
        return QuantizedWeight(codes, scale, None, axis, numerics.bits, numerics.group_size)
    other = tuple(a for a in range(value.ndim) if a != axis)
    scale = (np.abs(value).max(axis=other) / top + 1e-12).astype(np.float32)
    shape = [1] * value.ndim
    shape[axis] = -1
    codes = np.clip(np.rint(value / scale.reshape(shape)), -top, top).astype(np.int8)
    return QuantizedWeight(codes, scale, None, axis, numerics.bits)


def float_tensors(graph: Graph, inputs: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    known = {value.name for value in model.graph.output}
    given = {value.name for value in model.graph.input}
    wanted = [name for name in names if name not in given]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip(wanted, session.run(wanted, dict(inputs)), strict=True)) if wanted else {}
    return {name: inputs[name] if name in given else found[name] for name in names}


def assemble(graph: Graph, precisions: Mapping[str, str], inputs: Mapping[str, Array] | None = None) -> Assembly:
    """A min-max assembly that obeys the runtime's rules: zero point 0 behind ReLU, range inside a Clip's."""
    inputs = inputs or sample_inputs(graph)
    candidates: dict[str, Candidate] = {}
    wanted: set[str] = set()
    absorbed: dict[str, Layer] = {}
    quantized_outputs: set[str] = set()
    for layer in graph.layers:
        name = precisions.get(layer.name, "fp32")
        if name == "fp32" or layer.unquantized_reason:
            continue
        recipe = recipe_for(layer, name)
        bias = layer_bias(graph, layer)
        weight = quantize_weight(layer_weight(graph, layer), layer.channel_axis, recipe.weight)
        candidates[layer.name] = Candidate(layer.name, Precision(name), recipe, weight, bias, "minmax", 0.0, 0)
        if recipe.activation is not None and not recipe.activation.dynamic:
            wanted.add(layer.input)
        if recipe.output_quantized:
            quantized_outputs.add(layer.quantized_tensor)
            if layer.activation_output:
                absorbed[layer.activation_output] = layer
    wanted |= quantized_outputs
    values = float_tensors(graph, inputs, sorted(wanted))
    quantizers = {}
    for tensor in sorted(wanted):
        low, high = min(0.0, float(values[tensor].min())), max(0.0, float(values[tensor].max()))
        low = 0.0 if tensor in absorbed else low
        scale = np.float32((high - low) / 255)
        quantizers[tensor] = ActivationQuantizer(tensor, float(scale), round(-low / float(scale)), ACTIVATION_U8)
    return Assembly(candidates, quantizers, frozenset(quantized_outputs))


def uniform(graph: Graph, conv: str = "w8a8", linear: str = "w8a8", embedding: str = "w8a16") -> dict[str, str]:
    by_kind = {LayerKind.CONV: conv, LayerKind.LINEAR: linear, LayerKind.EMBEDDING: embedding}
    return {layer.name: by_kind.get(layer.kind, "fp32") for layer in graph.layers}


def cosine(a: Array, b: Array) -> float:
    a, b = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
