"""Synthetic data: BatchNorm statistics are met, and every kind of input gets values the model accepts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from search.data.synthetic_data import mismatch, synthesize
from search.graph import Graph
from search.onnx_import import Program, graph_from_model

RNG = np.random.default_rng(0)


def graph_of(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], constants: dict[str, np.ndarray]) -> Graph:
    made = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return graph_from_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def normalised_net(batch: object = "n") -> Graph:
    """Conv → BatchNorm → Relu → Conv → BatchNorm with the running statistics of data with mean 2 and deviation 3."""
    rng = np.random.default_rng(5)
    w1, w2 = rng.normal(size=(4, 3, 3, 3)) * 0.2, rng.normal(size=(5, 4, 3, 3)) * 0.2
    seen = torch.from_numpy(rng.normal(2.0, 3.0, size=(64, 3, 8, 8)))
    a = torch.nn.functional.conv2d(seen, torch.from_numpy(w1), padding=1)
    b = torch.nn.functional.batch_norm(a, None, None, training=True)
    d = torch.nn.functional.conv2d(b.relu(), torch.from_numpy(w2), padding=1)
    running = {
        f"{kind}{tensor.shape[1]}": statistic
        for tensor in (a, d)
        for kind, statistic in (("mean", tensor.mean((0, 2, 3)).numpy()), ("var", tensor.var((0, 2, 3)).numpy()))
    }
    constants = {
        "w1": w1, "w2": w2, "one4": np.ones(4), "zero4": np.zeros(4), "one5": np.ones(5), "zero5": np.zeros(5),
        **running,
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "one4", "zero4", "mean4", "var4"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w2"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["d", "one5", "zero5", "mean5", "var5"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, "side", "side"])
    return graph_of(nodes, [x], {name: value.astype(np.float32) for name, value in constants.items()})


def distance(graph: Graph, x: np.ndarray) -> float:
    values = Program(graph).run({"x": torch.tensor(x)}, keep=["a", "d"])
    total = 0.0
    for tensor, suffix in (("a", "4"), ("d", "5")):
        mean, variance = (torch.tensor(graph.constants[kind + suffix]) for kind in ("mean", "var"))
        total += float(mismatch(values[tensor], mean, variance.sqrt()))
    return total


def test_batch_norm_statistics_are_met() -> None:
    graph = normalised_net()
    data = synthesize(graph, 48, seed=3, dims={"side": 8})
    assert data.inputs["x"].shape == (48, 3, 8, 8)
    noise = np.random.default_rng(3).normal(size=(48, 3, 8, 8)).astype(np.float32)
    assert distance(graph, data.inputs["x"]) < 0.1 * distance(graph, noise)
    assert "2 BatchNorm layers" in data.notes[0]
    np.testing.assert_array_equal(synthesize(graph, 48, seed=3, dims={"side": 8}).inputs["x"], data.inputs["x"])


def test_fixed_batches_are_whole_and_matched() -> None:
    graph = normalised_net(batch=4)
    data = synthesize(graph, 30, seed=0, dims={"side": 6})
    assert (len(data), data.fixed_batch) == (32, 4)
    noise = np.random.default_rng(0).normal(size=(32, 3, 6, 6)).astype(np.float32)
    free = normalised_net()
    assert np.abs(data.inputs["x"] - noise).max() > 0.1
    assert len(Program(free).run({"x": torch.tensor(data.inputs["x"])})["y"]) == 32


def test_mismatch_is_zero_for_the_statistics_themselves() -> None:
    values = torch.from_numpy(RNG.normal(2.0, 3.0, size=(50, 4, 3)))
    flat = values.movedim(1, 0).flatten(1)
    mean, deviation = flat.mean(1), flat.std(1, unbiased=False)
    assert float(mismatch(values, mean, deviation)) == pytest.approx(0, abs=1e-10)
    assert float(mismatch(values, mean + deviation, deviation)) == pytest.approx(1.0, rel=1e-5)


def test_token_models_get_ids_in_range_and_a_note() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["a"]),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "axis"], ["u"]),
        helper.make_node("Mul", ["a", "u"], ["y"]),
    ]
    constants = {"table": RNG.normal(size=(11, 6)).astype(np.float32), "axis": np.array([2])}
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", "length"]),
        helper.make_tensor_value_info("mask", TensorProto.INT64, ["n", "length"]),
    ]
    data = synthesize(graph_of(nodes, inputs, constants), 200, seed=0, dims={"length": 9})
    tokens = data.inputs["tokens"]
    assert (tokens.shape, tokens.dtype) == ((200, 9), np.int64)
    assert (tokens.min(), tokens.max()) == (0, 10)
    assert (data.inputs["mask"] == 1).all()
    assert "random noise" in data.notes[0]


def test_plain_float_models_get_noise_of_the_default_size() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "features"])
    graph = graph_of([helper.make_node("Relu", ["x"], ["y"])], [x], {})
    data = synthesize(graph, 20, seed=1)
    assert data.inputs["x"].shape == (20, 16)
    assert abs(float(data.inputs["x"].std()) - 1) < 0.2
