"""Program: hooks, resuming, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from search.errors import BadSubmission, UnsupportedOp
from search.graph import Graph
from search.onnx_import import Program, graph_from_model


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], inputs: dict, outputs: list[str]) -> Graph:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return graph_from_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


@pytest.fixture
def graph() -> Graph:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(4, 3)).astype(np.float32),
        "b": rng.normal(size=4).astype(np.float32),
        "v": rng.normal(size=(4, 2)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["z"]),
    ]
    return model_of(nodes, constants, {"x": ["n", 3]}, ["z"])


X = torch.arange(6, dtype=torch.float32).reshape(2, 3) - 2


def test_reads_replace_one_input_of_one_node(graph: Graph) -> None:
    program = Program(graph)
    zero = program.run({"x": X}, reads={(1, 1): torch.zeros(3, 4)}, keep=["m"])
    assert torch.equal(zero["m"], torch.zeros(2, 4))
    doubled = program.run({"x": X}, reads={(1, 0): lambda t: 2 * t}, keep=["m"])
    plain = program.run({"x": X}, keep=["m"])
    assert torch.allclose(doubled["m"], 2 * plain["m"])


def test_writes_are_seen_by_all_readers_also_of_inputs_and_constants(graph: Graph) -> None:
    program = Program(graph)
    plain = program.run({"x": X}, keep=["m", "r"])
    assert torch.allclose(program.run({"x": X}, writes={"x": lambda t: 3 * t}, keep=["m"])["m"], 3 * plain["m"])
    assert torch.allclose(program.run({"x": X}, writes={"w": lambda t: 3 * t}, keep=["m"])["m"], 3 * plain["m"])
    assert torch.allclose(program.run({"x": X}, writes={"wt": lambda t: 3 * t}, keep=["m"])["m"], 3 * plain["m"])
    assert torch.allclose(program.run({"x": X}, reads={(0, 0): lambda t: 3 * t}, keep=["m"])["m"], 3 * plain["m"])
    assert torch.allclose(program.run({"x": X}, writes={"r": lambda t: 0 * t})["z"], torch.zeros(2, 2))
    assert torch.allclose(program.run({"x": X}, keep=["m"])["m"], plain["m"])


def test_resuming_gives_the_same_outputs(graph: Graph) -> None:
    program = Program(graph)
    whole = program.run({"x": X}, keep=[*program.live_after(3)])
    assert program.live_after(3) == {"y"}
    assert program.live_after(0) == {"x"}
    rest = program.run({}, start=3, env={name: whole[name] for name in program.live_after(3)})
    assert torch.equal(rest["z"], whole["z"])


def test_gradients_reach_a_replaced_weight_twice(graph: Graph) -> None:
    program = Program(graph, dtype=torch.float64)
    weight = program.constant("wt").clone().requires_grad_()
    loss = (program.run({"x": X}, reads={(1, 1): weight})["z"] ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    (second,) = torch.autograd.grad((gradient**2).sum(), weight)
    assert second.abs().sum() > 0


def test_missing_input_is_named(graph: Graph) -> None:
    with pytest.raises(BadSubmission, match="x") as caught:
        Program(graph).run({})
    assert caught.value.code == "input_missing"


def test_inputs_of_the_wrong_shape_name_the_node(graph: Graph) -> None:
    with pytest.raises(BadSubmission, match="MatMul") as caught:
        Program(graph).run({"x": torch.zeros(2, 5)})
    assert caught.value.code == "model_rejected"


def test_every_op_outside_the_table_is_named() -> None:
    nodes = [helper.make_node("Det", ["x"], ["d"]), helper.make_node("NonMaxSuppression", ["b", "s"], ["k"])]
    graph = model_of(nodes[:1], {}, {"x": [2, 2]}, ["d"])
    Program(graph)
    bad = helper.make_node("RandomNormalLike", ["x"], ["y"])
    odd = helper.make_node("Bernoulli", ["x"], ["z"])
    graph = model_of([bad, odd], {}, {"x": [2, 2]}, ["y", "z"])
    with pytest.raises(UnsupportedOp, match=r"Bernoulli.*RandomNormalLike"):
        Program(graph)
