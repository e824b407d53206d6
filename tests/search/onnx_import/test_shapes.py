"""Operating shapes: dynamic dimensions bound by name, by inference, by running, and by the runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernels.operating_point import OperatingPoint
from search.errors import BadSubmission, UnsupportedOp
from search.graph import Graph
from search.onnx_import import Program, graph_from_model, operating_shapes


def graph_of(nodes: list, constants: dict, shape: list, dtype: int = TensorProto.FLOAT, opset: int = 18) -> Graph:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return graph_from_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def node(op_type: str, inputs: list[str], output: str = "y", **attributes) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], **attributes)


def linear(shape: list) -> Graph:
    return graph_of([node("MatMul", ["x", "w"])], {"w": np.ones((6, 4), np.float32)}, shape)


def signature(graph: Graph, point: OperatingPoint) -> str:
    (shape,) = operating_shapes(graph, point).op_shapes.values()
    return shape.signature


def test_batch_and_named_dimensions_are_bound() -> None:
    point = OperatingPoint(batch=3, dims=(("sequence", 5),))
    graph = linear(["n", "sequence", 6])
    assert signature(graph, point) == "linear_m15_k6_n4_b0"
    assert operating_shapes(graph, point).tensor_shapes == {"x": (3, 5, 6), "w": (6, 4), "y": (3, 5, 4)}


def test_a_named_first_dimension_wins_over_the_batch() -> None:
    assert signature(linear(["rows", 6]), OperatingPoint(batch=3, dims=(("rows", 7),))) == "linear_m7_k6_n4_b0"


def test_a_missing_dimension_is_named() -> None:
    with pytest.raises(BadSubmission, match="sequence") as caught:
        operating_shapes(linear(["n", "sequence", 6]), OperatingPoint())
    assert caught.value.code == "dimension_missing"


def test_a_fixed_batch_is_known_and_another_is_refused() -> None:
    graph = linear([4, 6])
    assert graph.fixed_batch == 4
    assert any("batch of 4" in note for note in graph.notes)
    assert signature(graph, OperatingPoint(batch=4)) == "linear_m4_k6_n4_b0"
    with pytest.raises(BadSubmission) as caught:
        operating_shapes(graph, OperatingPoint(batch=2))
    assert caught.value.code == "batch_fixed"


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({"strides": [2, 1], "pads": [1, 0, 1, 2]}, "conv2d_n2_c4_h8_w9_o6_k3x2_s2x1_p1x0x1x2_d1x1_g2_b1"),
        ({"auto_pad": "SAME_UPPER"}, "conv2d_n2_c4_h8_w9_o6_k3x2_s1x1_p1x0x1x1_d1x1_g2_b1"),
        ({"dilations": [2, 2]}, "conv2d_n2_c4_h8_w9_o6_k3x2_s1x1_p0x0x0x0_d2x2_g2_b1"),
    ],
)
def test_convolutions(attributes: dict, wanted: str) -> None:
    constants = {"w": np.ones((6, 2, 3, 2), np.float32), "b": np.ones(6, np.float32)}
    graph = graph_of([node("Conv", ["x", "w", "b"], group=2, **attributes)], constants, ["n", 4, 8, 9])
    assert signature(graph, OperatingPoint(batch=2)) == wanted


def test_a_one_dimensional_convolution_has_height_one() -> None:
    graph = graph_of([node("Conv", ["x", "w"], pads=[2, 0])], {"w": np.ones((6, 4, 3), np.float32)}, ["n", 4, 9])
    assert signature(graph, OperatingPoint()) == "conv2d_n1_c4_h1_w9_o6_k1x3_s1x1_p0x2x0x0_d1x1_g1_b0"


def test_an_embedding_counts_tokens() -> None:
    graph = graph_of([node("Gather", ["w", "x"])], {"w": np.ones((9, 4), np.float32)}, ["n", 7], TensorProto.INT64)
    assert signature(graph, OperatingPoint(batch=2)) == "embedding_t14_r9_w4"


def data_dependent() -> list[onnx.NodeProto]:
    """A size that shape inference cannot know: the count of elements above a threshold."""
    return [
        node("Greater", ["x", "zero"], "positive"),
        node("NonZero", ["positive"], "places"),
        node("Transpose", ["places"], "rows"),
        node("Cast", ["rows"], "floats", to=TensorProto.FLOAT),
        node("MatMul", ["floats", "w"]),
    ]


CONSTANTS = {"zero": np.float32(-1), "w": np.ones((2, 4), np.float32)}


def test_what_inference_leaves_open_is_found_by_running() -> None:
    graph = graph_of(data_dependent(), CONSTANTS, ["n", 5])
    assert signature(graph, OperatingPoint(batch=3)) == "linear_m15_k2_n4_b0"


def test_models_with_foreign_ops_are_run_by_the_runtime() -> None:
    nodes = data_dependent()
    nodes[0] = node("Greater", ["u", "zero"], "positive")
    nodes.insert(0, helper.make_node("Unique", ["x"], ["u0"]))
    nodes.insert(1, node("Unsqueeze", ["u0", "axes"], "u"))
    graph = graph_of(nodes, CONSTANTS | {"axes": np.array([0])}, ["n", 5])
    with pytest.raises(UnsupportedOp, match="Unique"):
        Program(graph)
    assert signature(graph, OperatingPoint(batch=3)) == "linear_m1_k2_n4_b0"
