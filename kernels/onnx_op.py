"""One-op ONNX models: a random layer written the way an exported model would hold it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape
from kernels.random_layer import Array, RandomLayer

OPSET = 21
IR_VERSION = 10
INPUT, OUTPUT = "input", "output"


class _Builder:
    """Nodes and initializers of one small graph; every method returns the name of the tensor it made."""

    def __init__(self, quantizes_input: bool = False) -> None:
        self.quantizes_input = quantizes_input
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Array | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def int4(self, name: str, codes: Array) -> str:
        self.constants.append(helper.make_tensor(name, TensorProto.INT4, codes.shape, codes.astype(np.int8).ravel()))
        return name

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"{op_type}_{output}", **attributes))
        return output

    def weight(self, layer: RandomLayer, axis: int) -> str:
        """The dequantized weight of a per-channel recipe; 4-bit codes are stored packed and widened by a Cast."""
        assert layer.recipe is not None
        assert layer.weight_scale is not None
        if layer.recipe.weight.bits == 4:
            codes = self.node("Cast", [self.int4("weight", layer.weight)], "weight_int8", to=TensorProto.INT8)
        else:
            codes = self.constant("weight", layer.weight)
        zeros = self.constant("weight_zero_point", np.zeros(layer.weight_scale.shape, np.int8))
        scale = self.constant("weight_scale", layer.weight_scale)
        return self.node("DequantizeLinear", [codes, scale, zeros], "weight_float", axis=axis)

    def bias(self, layer: RandomLayer) -> list[str]:
        """The bias as int32 at scale input * weight, the form the integer kernels absorb; nothing without bias."""
        if layer.bias is None:
            return []
        assert layer.weight_scale is not None
        scale = np.float32(layer.input_scale) * layer.weight_scale
        names = [
            self.constant("bias", layer.bias_codes),  # type: ignore[arg-type]
            self.constant("bias_scale", scale.astype(np.float32)),
            self.constant("bias_zero_point", np.zeros(scale.shape, np.int32)),
        ]
        return [self.node("DequantizeLinear", names, "bias_float", axis=0)]

    def input_float(self, layer: RandomLayer) -> str:
        """The dequantized input; behind a quantizer of its own where the model is fed floats."""
        scale = self.constant("input_scale", np.float32(layer.input_scale))
        zero = self.constant("input_zero_point", layer.input.dtype.type(layer.input_zero_point))
        codes = INPUT
        if self.quantizes_input:
            codes = self.node("QuantizeLinear", [INPUT, scale, zero], "input_codes")
        return self.node("DequantizeLinear", [codes, scale, zero], "input_float")

    def model(self, layer: RandomLayer, output_shape: tuple[int, ...], output_type: int) -> bytes:
        dtype = np.dtype(np.float32) if self.quantizes_input else layer.input.dtype
        element = helper.np_dtype_to_tensor_dtype(dtype)
        graph = helper.make_graph(
            self.nodes,
            "op",
            [helper.make_tensor_value_info(INPUT, element, layer.input.shape)],
            [helper.make_tensor_value_info(OUTPUT, output_type, output_shape)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        return bytes(model.SerializeToString())


def op_model(layer: RandomLayer, *, float_linear_input: bool = False) -> bytes:
    """The serialized one-op model of a layer: input `input`, output `output`.

    Statically quantized ops read codes: the quantizer before them belongs to the boundary, not to the op. Dynamic and
    weight-only ones read float32. `float_linear_input` puts the quantizer of a static linear op inside the model, for
    runtimes that recognize an integer matrix product only by it (feed `op_feed` then).
    """
    match layer.op:
        case LinearShape():
            return _linear(layer, layer.op, float_linear_input and layer.is_static)
        case Conv2dShape():
            return _conv(layer, layer.op)
        case EmbeddingShape():
            return _embedding(layer, layer.op)


def op_feed(layer: RandomLayer, *, float_linear_input: bool = False) -> dict[str, Array]:
    """The input of `op_model`: the layer's own, or the float values its codes stand for."""
    if not (float_linear_input and layer.is_static and isinstance(layer.op, LinearShape)):
        return {INPUT: layer.input}
    codes = layer.input.astype(np.float32) - np.float32(layer.input_zero_point)
    return {INPUT: codes * np.float32(layer.input_scale)}


def _linear(layer: RandomLayer, op: LinearShape, quantizes_input: bool) -> bytes:
    b = _Builder(quantizes_input)
    shape = (op.m, op.n)
    bias = [] if layer.bias is None or layer.is_static else [b.constant("bias", layer.bias)]
    if layer.recipe is None:
        b.node("Gemm", [INPUT, b.constant("weight", layer.weight), *bias], OUTPUT)
    elif layer.is_static:
        b.node("Gemm", [b.input_float(layer), b.weight(layer, axis=1), *b.bias(layer)], OUTPUT)
    elif layer.recipe.activation is not None:
        _dynamic_linear(b, layer, bias)
    else:
        assert layer.weight_scale is not None
        block = layer.recipe.weight.group_size
        codes = b.int4("weight", layer.weight) if layer.recipe.weight.bits == 4 else b.constant("weight", layer.weight)
        scale = b.constant("weight_scale", layer.weight_scale)
        grouping = {"axis": 1} if block is None else {"axis": 0, "block_size": block}
        weight = b.node("DequantizeLinear", [codes, scale], "weight_float", **grouping)
        product = b.node("MatMul", [INPUT, weight], "product" if bias else OUTPUT)
        if bias:
            b.node("Add", [product, *bias], OUTPUT)
    return b.model(layer, shape, TensorProto.FLOAT)


def _dynamic_linear(b: _Builder, layer: RandomLayer, bias: list[str]) -> None:
    """DynamicQuantizeLinear + MatMulInteger + Cast + Mul (+ Add): what fuses to DynamicQuantizeMatMul."""
    assert layer.weight_scale is not None
    quantize = ["input_codes", "input_scale", "input_zero_point"]
    b.nodes.append(helper.make_node("DynamicQuantizeLinear", [INPUT], quantize, name="quantize"))
    weight = b.constant("weight", layer.weight)
    zero = b.constant("weight_zero_point", np.zeros(layer.weight_scale.shape, np.int8))
    product = b.node("MatMulInteger", [quantize[0], weight, quantize[2], zero], "product")
    floats = b.node("Cast", [product], "product_float", to=TensorProto.FLOAT)
    scale = b.node("Mul", [quantize[1], b.constant("weight_scale", layer.weight_scale)], "scale")
    scaled = b.node("Mul", [floats, scale], "scaled" if bias else OUTPUT)
    if bias:
        b.node("Add", [scaled, *bias], OUTPUT)


def _conv(layer: RandomLayer, op: Conv2dShape) -> bytes:
    b = _Builder()
    geometry = {
        "kernel_shape": op.kernel,
        "strides": op.stride,
        "pads": op.padding,
        "dilations": op.dilation,
        "group": op.groups,
    }
    shape = (op.batch, op.out_channels, *op.out_size)
    if layer.recipe is None:
        bias = [] if layer.bias is None else [b.constant("bias", layer.bias)]
        b.node("Conv", [INPUT, b.constant("weight", layer.weight), *bias], OUTPUT, **geometry)
        return b.model(layer, shape, TensorProto.FLOAT)
    product = b.node("Conv", [b.input_float(layer), b.weight(layer, axis=0), *b.bias(layer)], "product", **geometry)
    assert layer.output_scale is not None
    scale = b.constant("output_scale", np.float32(layer.output_scale))
    zero = b.constant("output_zero_point", layer.input.dtype.type(layer.output_zero_point))
    b.node("QuantizeLinear", [product, scale, zero], OUTPUT)
    return b.model(layer, shape, helper.np_dtype_to_tensor_dtype(layer.input.dtype))


def _embedding(layer: RandomLayer, op: EmbeddingShape) -> bytes:
    """Rows are gathered as codes and scaled afterwards, so that the table is never widened as a whole."""
    b = _Builder()
    weight = b.constant("weight", layer.weight)
    if layer.weight_scale is None:
        b.node("Gather", [weight, INPUT], OUTPUT, axis=0)
    else:
        codes = b.node("Gather", [weight, INPUT], "codes", axis=0)
        floats = b.node("Cast", [codes], "codes_float", to=TensorProto.FLOAT)
        scale = b.constant("weight_scale", layer.weight_scale.reshape(-1, 1))
        b.node("Mul", [floats, b.node("Gather", [scale, INPUT], "row_scale", axis=0)], OUTPUT)
    return b.model(layer, (op.tokens, op.width), TensorProto.FLOAT)
