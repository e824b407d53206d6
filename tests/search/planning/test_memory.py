"""Peak-memory rows: what is alive at each step of a hand-built graph."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kernels.operating_point import OperatingPoint
from search.graph import OperatingShapes
from search.onnx_import import load_graph, operating_shapes
from search.planning.memory import memory_steps


def residual_model() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Add", ["b", "x"], ["y"]),
    ]
    shape = ["n", 4, 5, 5]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_only_steps_that_can_be_the_peak_are_kept(tmp_path) -> None:  # type: ignore[no-untyped-def]
    onnx.save(residual_model(), tmp_path / "model.onnx")
    graph = load_graph(tmp_path / "model.onnx")
    shapes: OperatingShapes = operating_shapes(graph, OperatingPoint(batch=2))
    tensor_bytes, elements = 2 * 4 * 5 * 5 * 4, 2 * 4 * 5 * 5
    steps = memory_steps(graph, shapes)
    found = {(step.fixed_bytes, step.elements.get(graph.layers[0].name, 0)) for step in steps}
    # Conv: x and a. Exp: x, a (whose width follows the layer) and b. Add: x, b and y.
    assert found == {(2 * tensor_bytes, elements), (3 * tensor_bytes, 0)}
