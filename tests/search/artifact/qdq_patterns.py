"""Hand-written quantized ops, right ones and ones with a single detail off, to see what a runtime makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT_SCALE, WEIGHT_SCALE = np.float32(0.02), np.float32(0.01)
CHANNELS, WIDTH = 32, 64


class Pattern:
    """A model under construction: one input `x`, one output `y`, everything between written node by node."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def int4(self, name: str, shape: tuple[int, ...]) -> str:
        codes = self.random.integers(-8, 8, shape).reshape(-1).tolist()
        self.constants.append(helper.make_tensor(name, TensorProto.INT4, shape, codes))
        return name

    def int8(self, name: str, shape: tuple[int, ...]) -> str:
        return self.const(name, self.random.integers(-127, 128, shape), np.int8)

    def op(self, op_type: str, *inputs: str, out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, list(inputs), [out], name=f"node_{out}", **attributes))
        return out

    def pair(self, x: str, scale: Any, zero_point: int, name: str) -> str:
        """Quantize and dequantize `x` as uint8."""
        parameters = [self.const(f"{name}_s", scale), self.const(f"{name}_z", zero_point, np.uint8)]
        return self.op(
            "DequantizeLinear",
            self.op("QuantizeLinear", x, *parameters, out=f"{name}_q"),
            *parameters,
            out=f"{name}_dq",
        )

    def model(self, last: str, x: list[int], y: list[int]) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [last], ["y"], name="last"))
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model)
        return model


def conv(
    *,
    weight: str = "int8",
    bias: str = "int32",
    bias_factor: float = 1.0,
    activation: str = "",
    output: bool = True,
    zero_point: int = 120,
    scale: Any = 0.05,
    twice: bool = False,
    quantized_input: bool = True,
) -> onnx.ModelProto:
    """x → Q/DQ → Conv → activation → Q/DQ → HardSigmoid.

    `twice` quantizes the output a second time for another reader.
    """
    p = Pattern()
    shape = (CHANNELS, CHANNELS, 3, 3)
    x = p.pair("x", INPUT_SCALE, 128, "x") if quantized_input else "x"
    scales = p.const("ws", np.full(CHANNELS, WEIGHT_SCALE))
    if weight == "float":
        w = p.const("w", p.random.normal(0, 0.1, shape))
    elif weight == "int4":
        w = p.op("DequantizeLinear", p.int4("w", shape), scales, out="wd", axis=0)
    elif weight == "int4-cast":
        w = p.op("Cast", p.int4("w", shape), out="w8", to=TensorProto.INT8)
        w = p.op("DequantizeLinear", w, scales, out="wd", axis=0)
    else:
        w = p.op("DequantizeLinear", p.int8("w", shape), scales, out="wd", axis=0)
    inputs = [x, w]
    if bias == "int32":
        product = np.full(CHANNELS, INPUT_SCALE * WEIGHT_SCALE * np.float32(bias_factor))
        codes = p.const("b", p.random.integers(-900, 900, CHANNELS), np.int32)
        inputs.append(p.op("DequantizeLinear", codes, p.const("bs", product), out="bd", axis=0))
    elif bias == "float":
        inputs.append(p.const("b", p.random.normal(0, 1, CHANNELS)))
    y = p.op("Conv", *inputs, out="conv", pads=[1, 1, 1, 1])
    if activation == "Relu":
        y = p.op("Relu", y, out="act")
    elif activation == "Clip":
        y = p.op("Clip", y, p.const("low", 0.0), p.const("high", 6.0), out="act")
    elif activation:
        y = p.op(activation, y, out="act")
    raw = y
    if output:
        y = p.pair(raw, scale, zero_point, "out")
    if twice:
        y = p.op("Add", y, p.pair(raw, scale, zero_point, "out2"), out="both")
    y = p.op("HardSigmoid", y, out="end")
    return p.model(y, [1, CHANNELS, 12, 12], [1, CHANNELS, 12, 12])


def linear(
    *,
    op: str = "Gemm",
    weight: str = "int8",
    bias: str = "int32",
    zero_point: bool = True,
    quantized_input: bool = True,
    activation: str = "",
    block: int = 32,
    transposed: bool = False,
    transpose_node: bool = False,
    readers: int = 1,
) -> onnx.ModelProto:
    """x → (Q/DQ) → Gemm or MatMul (+ Add) → activation → HardSigmoid, `readers` times in a row."""
    p = Pattern()
    x = "x"
    stored = (WIDTH, WIDTH)
    axis = 0 if transposed else 1
    if weight == "int4-blocked":
        shape = (WIDTH, WIDTH // block) if transposed or transpose_node else (WIDTH // block, WIDTH)
        codes, scales = p.int4("w", stored), p.const("ws", np.full(shape, WEIGHT_SCALE))
        attributes = {"axis": 1 if transposed or transpose_node else 0, "block_size": block}
        parameters = [codes, scales]
    else:
        parameters = [p.int8("w", stored), p.const("ws", np.full(WIDTH, WEIGHT_SCALE))]
        attributes = {"axis": axis}
        if zero_point:
            parameters.append(p.const("wz", np.zeros(WIDTH), np.int8))
    for index in range(readers):
        if quantized_input:
            x = p.pair(x, INPUT_SCALE, 128, f"x{index}")
        w = p.op("DequantizeLinear", *parameters, out=f"wd{index}", **attributes)
        if transpose_node:
            w = p.op("Transpose", w, out=f"wt{index}", perm=[1, 0])
        inputs = [x, w]
        add = None
        if bias == "int32":
            product = p.const(f"bs{index}", np.full(WIDTH, INPUT_SCALE * WEIGHT_SCALE))
            codes = p.const(f"b{index}", p.random.integers(-900, 900, WIDTH), np.int32)
            add = p.op("DequantizeLinear", codes, product, out=f"bd{index}", axis=0)
        elif bias == "float":
            add = p.const(f"b{index}", p.random.normal(0, 1, WIDTH))
        if op == "Gemm":
            x = p.op("Gemm", *inputs, *([add] if add else []), out=f"fc{index}", transB=int(transposed))
        else:
            x = p.op("MatMul", *inputs, out=f"fc{index}")
            x = p.op("Add", x, add, out=f"sum{index}") if add else x
        if activation:
            x = p.op(activation, x, out=f"act{index}")
    return p.model(p.op("HardSigmoid", x, out="end"), [8, WIDTH], [8, WIDTH])


def float_stem_before_integer_conv() -> onnx.ModelProto:
    """A float Conv and MaxPool in front of a quantized Conv."""
    p = Pattern()
    shape = (CHANNELS, CHANNELS, 3, 3)
    y = p.op("Conv", "x", p.const("stem", p.random.normal(0, 0.1, shape)), out="stem_out", pads=[1, 1, 1, 1])
    y = p.op("MaxPool", y, out="pooled", kernel_shape=[2, 2], strides=[2, 2])
    w = p.op("DequantizeLinear", p.int8("w", shape), p.const("ws", np.full(CHANNELS, WEIGHT_SCALE)), out="wd", axis=0)
    y = p.op("Conv", p.pair(y, INPUT_SCALE, 128, "x"), w, out="conv", pads=[1, 1, 1, 1])
    return p.model(p.pair(y, 0.05, 120, "out"), [1, CHANNELS, 12, 12], [1, CHANNELS, 6, 6])
