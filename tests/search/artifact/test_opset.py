"""Raising the opset: ops whose meaning changed are rewritten, what cannot be raised says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from quantized_models import Builder, read

from kernels.precision import Precision
from search.artifact.opset import opset_of, raise_opset, why_not_raisable
from search.artifact.qdq import why_not
from search.errors import BadSubmission


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString()).run(None, inputs)[0]


def changed_ops(opset: int) -> onnx.ModelProto:
    """ReduceMean with an axes attribute, Split into equal parts without sizes, GridSample with the old mode name."""
    b = Builder()
    x = b.op("ReduceMax", b.conv("x", "conv", 4, 8), axes=[1], keepdims=1)
    mean = b.op("ReduceMean", x, axes=[2, 3], keepdims=1)
    b.nodes.append(helper.make_node("Split", [x], ["left", "right"], axis=3))
    y = b.op("Mul", b.op("Sub", "left", "right"), mean)
    if opset >= 16:
        y = b.op("GridSample", y, "grid", mode="bilinear", align_corners=0)
    else:
        y = b.op("Add", y, "grid")
    inputs = {"x": (TensorProto.FLOAT, [1, 4, 6, 6]), "grid": (TensorProto.FLOAT, [1, 6, 3, 2 if opset >= 16 else 3])}
    if opset < 16:
        inputs["grid"] = (TensorProto.FLOAT, [1, 1, 6, 3])
    return b.model(y, [1, 1, 6, 3], inputs, opset)  # type: ignore[arg-type]


@pytest.mark.parametrize("opset", [13, 15, 16, 17])
def test_ops_that_changed_compute_the_same_after_raising(opset: int) -> None:
    model = changed_ops(opset)
    random = np.random.default_rng(0)
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.input}
    inputs = {name: random.uniform(-0.9, 0.9, shape).astype(np.float32) for name, shape in shapes.items()}
    before = run(model, **inputs)
    raised = raise_opset(model, 21)
    onnx.checker.check_model(raised, full_check=True)
    assert opset_of(raised) == 21
    assert raised.ir_version >= 10
    np.testing.assert_allclose(run(raised, **inputs), before, rtol=1e-6, atol=1e-6)


def test_a_model_already_there_is_left_alone() -> None:
    model = changed_ops(17)
    content = model.SerializeToString()
    assert raise_opset(model, 17) is model
    assert raise_opset(model, 13).SerializeToString() == content


def group_norm() -> onnx.ModelProto:
    """GroupNormalization as opset 18 had it, one scale per group; opset 21 has one per channel."""
    b = Builder()
    x = b.conv("x", "conv", 4, 8)
    scale, bias = b.const("scale", np.ones(2, np.float32)), b.const("bias", np.zeros(2, np.float32))
    model = b.model(x, [1, 8, 6, 6], {"x": (TensorProto.FLOAT, [1, 4, 6, 6])}, 18)
    node = helper.make_node("GroupNormalization", [x, scale, bias], ["y"], num_groups=2)
    model.graph.node.append(node)
    model.graph.output[0].name = "y"
    return model


def test_what_cannot_be_raised_is_refused_by_name_and_offers_no_4_bit_weights() -> None:
    model = group_norm()
    reason = why_not_raisable(model, 21)
    assert reason is not None
    assert "GroupNormalization" in reason
    with pytest.raises(BadSubmission) as caught:
        raise_opset(model, 21)
    assert caught.value.code == "opset_not_raisable"
    plain = Builder()
    shape = {"x": (TensorProto.FLOAT, [1, 4, 6, 6])}
    graph = read(plain.model(plain.conv("x", "conv", 4, 8), [1, 8, 6, 6], shape, 18))  # type: ignore[arg-type]
    assert why_not(graph, graph.layers[0], Precision("w4a8")) is None
    graph = replace(graph, model=model)
    assert "opset 21" in (why_not(graph, graph.layers[0], Precision("w4a8")) or "")
    assert why_not(graph, graph.layers[0], Precision("w8a8")) is None
