"""What ONNX Runtime makes of written patterns, with the profile's session options and without them.

These are facts of one runtime version, not promises of it: a test that fails after an upgrade says which rule of the
export, of the profile's session options or of the audit must change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernels.registry import backend_for, load_profile

DEFAULTS: Mapping[str, str] = {}
OURS = load_profile("cpu-local").session_options


class Pattern:
    """A small graph under construction with one float input `x`."""

    def __init__(self, *input_shape: int) -> None:
        self.shape = input_shape
        self.rng = np.random.default_rng(4)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def fake_quantize(self, tensor: str, zero_point: int = 128, scale: float = 0.05) -> str:
        names = [
            self.constant(f"{tensor}_scale", np.float32(scale)),
            self.constant(f"{tensor}_zero", np.uint8(zero_point)),
        ]
        codes = self.node("QuantizeLinear", [tensor, *names], f"{tensor}_codes")
        return self.node("DequantizeLinear", [codes, *names], f"{tensor}_dq")

    def float_weight(self, name: str, *shape: int) -> str:
        return self.constant(name, self.rng.standard_normal(shape).astype(np.float32))

    def int8_weight(self, name: str, *shape: int, axis: int) -> str:
        channels = shape[axis]
        codes = self.constant(name, self.rng.integers(-128, 128, shape).astype(np.int8))
        scale = self.constant(f"{name}_scale", np.full(channels, 0.01, np.float32))
        zero = self.constant(f"{name}_zero", np.zeros(channels, np.int8))
        return self.node("DequantizeLinear", [codes, scale, zero], f"{name}_dq", axis=axis)

    def int32_bias(self, name: str, channels: int, input_scale: float = 0.05) -> str:
        codes = self.constant(name, self.rng.integers(-500, 500, channels).astype(np.int32))
        scale = self.constant(f"{name}_scale", np.full(channels, np.float32(input_scale) * np.float32(0.01)))
        zero = self.constant(f"{name}_zero", np.zeros(channels, np.int32))
        return self.node("DequantizeLinear", [codes, scale, zero], f"{name}_dq", axis=0)

    def executed(self, output: str, options: Mapping[str, str]) -> list[str]:
        graph = helper.make_graph(
            self.nodes,
            "pattern",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        loaded = backend_for(load_profile("cpu-local")).load_model(model.SerializeToString(), 1, options)
        try:
            return [op.op_type for op in loaded.executed_ops()]
        finally:
            loaded.close()


def matmul_add(*shape: int) -> Pattern:
    p = Pattern(*shape)
    p.node("MatMul", [p.fake_quantize("x"), p.int8_weight("w", shape[-1], 48, axis=1)], "product")
    p.node("Add", ["product", p.constant("bias", p.rng.standard_normal(48).astype(np.float32))], "y")
    return p


@pytest.mark.parametrize("shape", [(8, 64), (2, 8, 64)])
def test_integer_matmul_with_a_float_bias_needs_our_options(shape: tuple[int, ...]) -> None:
    assert "Gemm" in matmul_add(*shape).executed("y", DEFAULTS)
    ours = matmul_add(*shape).executed("y", OURS)
    assert "MatMulIntegerToFloat" in ours
    assert "Gemm" not in ours


def test_a_gemm_with_int32_bias_is_integer_either_way() -> None:
    for options in (DEFAULTS, OURS):
        p = Pattern(8, 64)
        p.node("Gemm", [p.fake_quantize("x"), p.int8_weight("w", 64, 48, axis=1), p.int32_bias("b", 48)], "y")
        assert "QGemm" in p.executed("y", options)


def conv_between_quantizers() -> Pattern:
    """A conv that stays in float between two quantized neighbours."""
    p = Pattern(1, 16, 8, 8)
    p.node(
        "Conv", [p.fake_quantize("x"), p.float_weight("w", 16, 16, 3, 3), p.float_weight("b", 16)], "c", pads=[1] * 4
    )
    p.node("Identity", [p.fake_quantize("c")], "y")
    return p


def test_a_float_conv_between_quantizers_stays_float_only_with_our_options() -> None:
    assert "QLinearConv" in conv_between_quantizers().executed("y", DEFAULTS)
    assert "QLinearConv" not in conv_between_quantizers().executed("y", OURS)


def stem_and_pool() -> Pattern:
    """A float stem, a max-pool, and the quantizer of the next integer conv behind them."""
    p = Pattern(1, 3, 16, 16)
    p.node("Conv", ["x", p.float_weight("w1", 16, 3, 3, 3), p.float_weight("b1", 16)], "stem", pads=[1] * 4)
    p.node("Relu", ["stem"], "positive")
    p.node("MaxPool", ["positive"], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    weight = p.int8_weight("w2", 16, 16, 3, 3, axis=0)
    p.node("Conv", [p.fake_quantize("pooled", 0), weight, p.int32_bias("b2", 16)], "c", pads=[1] * 4)
    p.node("Identity", [p.fake_quantize("c")], "y")
    return p


def test_the_quantizer_stays_behind_the_pool_with_our_options() -> None:
    def before_pool(ops: list[str]) -> bool:
        return ops.index("QuantizeLinear") < ops.index("MaxPool")

    assert before_pool(stem_and_pool().executed("y", DEFAULTS))
    ours = stem_and_pool().executed("y", OURS)
    assert not before_pool(ours)
    assert "QLinearConv" in ours


def conv_relu(zero_point: int, activation: str = "Relu", scale: float = 0.05) -> list[str]:
    p = Pattern(1, 16, 8, 8)
    weight = p.int8_weight("w", 16, 16, 3, 3, axis=0)
    p.node("Conv", [p.fake_quantize("x"), weight, p.int32_bias("b", 16)], "c", pads=[1] * 4)
    inputs = ["c"]
    if activation == "Clip":
        inputs += [p.constant("low", np.float32(0)), p.constant("high", np.float32(6))]
    p.node(activation, inputs, "r")
    p.node("Identity", [p.fake_quantize("r", zero_point, scale)], "y")
    return p.executed("y", OURS)


def test_a_relu_is_absorbed_when_the_quantizer_behind_starts_at_zero() -> None:
    absorbed = conv_relu(0)
    assert "QLinearConv" in absorbed
    assert "Relu" not in absorbed
    assert "QLinearConv" not in conv_relu(10)


def test_a_clip_is_absorbed_when_the_quantized_range_lies_inside() -> None:
    assert "QLinearConv" in conv_relu(0, "Clip", scale=6 / 255)
    assert "QLinearConv" not in conv_relu(0, "Clip", scale=0.05)


def test_a_conv_without_a_quantizer_behind_it_runs_in_float() -> None:
    p = Pattern(1, 16, 8, 8)
    weight = p.int8_weight("w", 16, 16, 3, 3, axis=0)
    p.node("Conv", [p.fake_quantize("x"), weight, p.int32_bias("b", 16)], "y", pads=[1] * 4)
    assert "QLinearConv" not in p.executed("y", OURS)
