"""Pins that cannot be kept are refused by name, with what could be asked instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernels.registry import load_profile
from search.candidates.recipes import recipes_for
from search.errors import BadSubmission
from search.graph import Graph
from search.onnx_import import load_graph
from search.planning.pins import check_pins


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    weight = numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "one product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [weight],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    onnx.save(model, tmp_path / "model.onnx")
    return load_graph(tmp_path / "model.onnx")


def test_pins_that_every_target_runs_pass(graph: Graph) -> None:
    (layer,) = graph.layers
    recipes = {slug: recipes_for(graph, load_profile(slug)) for slug in ("cpu-local", "t4")}
    check_pins({layer.name: "w8a8"}, graph, recipes)
    check_pins({layer.name: "fp32"}, graph, recipes)


@pytest.mark.parametrize(
    ("tail", "precision", "code", "says"),
    [
        ("x", "w8a8", "layer_unknown", "of its 1 layers the nearest are"),
        ("", "w8a8-dynamic", "pin_unknown_precision", "which t4 does not run for it .there it can take w8a8, "),
    ],
)
def test_pins_that_cannot_be_kept_are_refused(graph: Graph, tail: str, precision: str, code: str, says: str) -> None:
    recipes = {slug: recipes_for(graph, load_profile(slug)) for slug in ("cpu-local", "t4")}
    with pytest.raises(BadSubmission, match=says) as refused:
        check_pins({graph.layers[0].name + tail: precision}, graph, recipes)
    assert refused.value.code == code
