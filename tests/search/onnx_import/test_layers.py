"""Layers: what is one, its names, ties, bias and activation, and the reasons of those that stay unquantized."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from search.errors import BadSubmission
from search.graph import Graph, LayerKind
from search.groups import group_layers
from search.onnx_import import Program, graph_from_model, layer_bias, layer_weight

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def graph_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: list,
    outputs: tuple[str, ...] = ("y",),
    dtype: int = TensorProto.FLOAT,
    opset: int = 18,
) -> Graph:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return graph_from_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def node(op_type: str, inputs: list[str], output: str = "y", **attributes) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], **attributes)


def test_conv_with_bias_and_relu() -> None:
    constants = {"w": floats(4, 3, 3, 3), "b": floats(4)}
    graph = graph_of([node("Conv", ["x", "w", "b"], "c"), node("Relu", ["c"])], constants, ["n", 3, 8, 8])
    (layer,) = graph.layers
    assert (layer.kind, layer.channel_axis, layer.weight_shape) == (LayerKind.CONV, 0, (4, 3, 3, 3))
    assert (layer.output, layer.activation_node, layer.quantized_tensor) == ("c", 1, "y")
    assert np.array_equal(layer_bias(graph, layer), constants["b"])
    assert np.array_equal(layer_weight(graph, layer), constants["w"])


def test_a_bias_that_the_exporter_fills_in_is_one() -> None:
    """What `torch.onnx.export(optimize=False)` writes for a convolution without a bias."""
    constants = {"w": floats(4, 3, 3, 3), "one": np.array([1]), "zero": np.float32(0)}
    filled = [
        node("Shape", ["w"], "channels", start=0, end=1),
        node("Expand", ["channels", "one"], "shape"),
        node("CastLike", ["zero", "x"], "typed"),
        node("Expand", ["typed", "shape"], "b"),
    ]
    graph = graph_of([*filled, node("Conv", ["x", "w", "b"])], constants, ["n", 3, 8, 8])
    (layer,) = graph.layers
    assert layer.unquantized_reason is None
    assert np.array_equal(layer_bias(graph, layer), np.zeros(4))
    wrong = [node("Expand", ["w", "sizes"], "e"), node("Conv", ["x", "e"])]
    with pytest.raises(BadSubmission):
        graph_of(wrong, {"w": floats(4, 3, 3, 3), "sizes": np.array([4, 2, 3, 3])}, ["n", 3, 8, 8])


@pytest.mark.parametrize(
    ("low", "high", "absorbed"),
    [(0.0, 6.0, True), (0.0, None, True), (-1.0, 6.0, False), (None, 6.0, False), (0.0, -1.0, False)],
)
@pytest.mark.parametrize("opset", [9, 18])
def test_clip_is_absorbed_from_zero_on(low: float | None, high: float | None, absorbed: bool, opset: int) -> None:
    constants = {"w": floats(4, 3, 1, 1)}
    bounds = {"min": low, "max": high}
    if opset == 9:
        clip = node("Clip", ["c"], **{name: value for name, value in bounds.items() if value is not None})
    else:
        constants |= {name: np.float32(value) for name, value in bounds.items() if value is not None}
        clip = node("Clip", ["c", *(name if value is not None else "" for name, value in bounds.items())])
    graph = graph_of([node("Conv", ["x", "w"], "c"), clip], constants, [1, 3, 4, 4], opset=opset)
    assert (graph.layers[0].activation_node == 1) is absorbed


def test_a_relu_is_not_absorbed_when_the_output_is_read_elsewhere() -> None:
    nodes = [node("Conv", ["x", "w"], "c"), node("Relu", ["c"], "r")]
    constants = {"w": floats(3, 3, 1, 1)}
    second_reader = graph_of([*nodes, node("Add", ["r", "c"])], constants, [1, 3, 4, 4])
    graph_output = graph_of(nodes, constants, [1, 3, 4, 4], outputs=("r", "c"))
    assert second_reader.layers[0].activation_node is None
    assert graph_output.layers[0].activation_node is None


@pytest.mark.parametrize("first", [True, False])
def test_an_add_behind_matmul_is_its_bias(first: bool) -> None:
    inputs = ["b", "m"] if first else ["m", "b"]
    constants = {"w": floats(6, 4), "b": floats(4)}
    graph = graph_of([node("MatMul", ["x", "w"], "m"), node("Add", inputs)], constants, ["n", 5, 6])
    (layer,) = graph.layers
    assert layer.bias is not None
    assert (layer.bias.node, layer.bias.position, layer.output) == (1, 0 if first else 1, "y")
    assert np.array_equal(layer_bias(graph, layer), constants["b"])


@pytest.mark.parametrize("shape", [(5, 4), (5, 1)])
def test_an_add_along_other_axes_is_no_bias(shape: tuple[int, ...]) -> None:
    constants = {"w": floats(6, 4), "b": floats(*shape)}
    graph = graph_of([node("MatMul", ["x", "w"], "m"), node("Add", ["m", "b"])], constants, ["n", 5, 6])
    assert (graph.layers[0].bias, graph.layers[0].output) == (None, "m")


def test_a_matmul_read_twice_has_no_bias() -> None:
    constants = {"w": floats(6, 4), "b": floats(4)}
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "b"], "a"), node("Mul", ["a", "m"])]
    assert graph_of(nodes, constants, [2, 6]).layers[0].bias is None


@pytest.mark.parametrize(("transposed", "axis"), [(0, 1), (1, 0)])
def test_gemm(transposed: int, axis: int) -> None:
    constants = {"w": floats(*((4, 6) if transposed else (6, 4))), "b": floats(4)}
    graph = graph_of([node("Gemm", ["x", "w", "b"], transB=transposed)], constants, [2, 6])
    (layer,) = graph.layers
    assert (layer.kind, layer.channel_axis, layer.unquantized_reason) == (LayerKind.LINEAR, axis, None)
    assert layer.weight_shape[axis] == 4


def test_weights_are_found_through_constant_chains() -> None:
    codes = RNG.integers(-127, 127, (4, 6)).astype(np.int8)
    scale, zero = floats(4) ** 2, np.zeros(4, np.int8)
    constants = {"q": codes, "s": scale, "z": zero, "half": floats(4, 6).astype(np.float16), "shape": np.array([6, 4])}
    nodes = [
        node("DequantizeLinear", ["q", "s", "z"], "d", axis=0),
        node("Transpose", ["d"], "dt", perm=[1, 0]),
        node("MatMul", ["x", "dt"], "a"),
        node("Cast", ["half"], "full", to=TensorProto.FLOAT),
        node("Identity", ["full"], "same"),
        node("Reshape", ["same", "shape"], "r"),
        node("MatMul", ["x", "r"], "b"),
        node("Add", ["a", "b"]),
    ]
    graph = graph_of(nodes, constants, [2, 6])
    first, second = graph.layers
    assert (first.weight, second.weight) == ("q", "half")
    assert np.allclose(layer_weight(graph, first), (codes * scale[:, None]).T, rtol=1e-6)
    assert np.array_equal(layer_weight(graph, second), constants["half"].astype(np.float32).reshape(6, 4))
    for layer in graph.layers:
        tensor = graph.nodes[layer.node].inputs[layer.weight_position]
        assert np.array_equal(Program(graph).constant(tensor).numpy(), layer_weight(graph, layer))


def test_a_mask_and_a_scale_are_no_weights() -> None:
    constants = {"mask": np.triu(np.full((5, 5), -np.inf, np.float32), 1), "scale": np.float32([0.5])}
    nodes = [
        node("MatMul", ["x", "x"], "m"),
        node("Mul", ["m", "scale"], "s"),
        node("Add", ["s", "mask"]),
    ]
    graph = graph_of(nodes, constants, [5, 5])
    assert graph.layers == ()
    assert [(u.op_type, "activations times activations" in u.reason) for u in graph.unquantized] == [("MatMul", True)]


def test_embedding_and_head_with_one_weight_are_tied() -> None:
    table = floats(10, 4)
    nodes = [node("Gather", ["table", "x"], "e"), node("MatMul", ["e", "head"])]
    graph = graph_of(nodes, {"table": table, "head": table.T.copy()}, ["n", 3], dtype=TensorProto.INT64)
    assert [layer.kind for layer in graph.layers] == [LayerKind.EMBEDDING, LayerKind.LINEAR]
    assert graph.layers[0].tie == graph.layers[1].tie is not None


def test_tied_layers_of_two_kinds_are_decided_apart_where_each_has_its_copy() -> None:
    table = floats(10, 10)
    look_up, twice = node("Gather", ["table", "x"], "e"), node("MatMul", ["e", "head"], "z")
    products = [look_up, twice, node("MatMul", ["z", "head"])]
    copied = graph_of(products, {"table": table, "head": table.T.copy()}, ["n", 3], dtype=TensorProto.INT64)
    assert [len(group.layers) for group in group_layers(copied)] == [1, 2]
    shared = [look_up, node("MatMul", ["e", "table"])]
    assert [len(group.layers) for group in group_layers(graph_of(shared, {"table": table}, ["n"], dtype=7))] == [2]


def test_different_weights_are_not_tied() -> None:
    nodes = [node("MatMul", ["x", "v"], "e"), node("MatMul", ["e", "w"])]
    assert [layer.tie for layer in graph_of(nodes, {"v": floats(4, 4), "w": floats(4, 4)}, [2, 4]).layers] == [None] * 2


@pytest.mark.parametrize(
    ("made", "constants", "shape", "reason"),
    [
        (node("Gemm", ["x", "w"], alpha=0.5), {"w": floats(6, 4)}, [2, 6], "alpha=0.5"),
        (node("Gemm", ["x", "w", "b"], beta=2.0), {"w": floats(6, 4), "b": floats(4)}, [2, 6], "beta=2"),
        (node("Gemm", ["x", "w"], transA=1), {"w": floats(6, 4)}, [6, 2], "transA=1"),
        (node("Gemm", ["x", "w", "b"]), {"w": floats(6, 4), "b": floats(2, 4)}, [2, 6], "bias"),
        (node("Conv", ["x", "w"]), {"w": floats(4, 3, 1, 1, 1)}, [1, 3, 4, 4, 4], "3 dimensions"),
        (node("ConvTranspose", ["x", "w"]), {"w": floats(3, 4, 2, 2)}, [1, 3, 4, 4], "ConvTranspose"),
        (node("MatMul", ["w", "x"]), {"w": floats(6, 4)}, [4, 2], "left operand"),
        (node("MatMul", ["x", "w"]), {"w": floats(3, 6, 4)}, [3, 2, 6], "3 dimensions"),
        (node("MatMul", ["x", "w"]), {"w": floats(6)}, [2, 6], "1 dimensions"),
        (node("Gather", ["w", "i"]), {"w": floats(6, 4), "i": np.array([1, 2])}, [1], "indices are constant"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_stay_unquantized_say_why(made, constants, shape, reason) -> None:
    graph = graph_of([made, *([node("Relu", ["x"], "z")] if "x" not in made.input else [])], constants, shape)
    (layer,) = graph.layers
    assert reason in (layer.unquantized_reason or "")


@pytest.mark.parametrize(
    ("made", "constants", "shape"),
    [
        (node("Einsum", ["x", "w"], equation="ij,jk->ik"), {"w": floats(6, 4)}, [2, 6]),
        (node("Conv", ["x", "x"]), {}, [3, 3, 1, 1]),
        (
            node("GRU", ["x", "w", "r"], hidden_size=4),
            {"w": floats(1, 12, 6), "r": floats(1, 12, 4)},
            [5, 2, 6],
        ),
    ],
)  # fmt: skip
def test_ops_without_a_candidate_are_listed(made, constants, shape) -> None:
    graph = graph_of([made], constants, shape)
    assert graph.layers == ()
    assert [(item.op_type, bool(item.reason)) for item in graph.unquantized] == [(made.op_type, True)]


def test_a_layer_behind_stored_codes_is_already_quantized() -> None:
    nodes = [node("DequantizeLinear", ["codes", "scale"], "w"), node("MatMul", ["x", "w"])]
    graph = graph_of(nodes, {"codes": np.ones((6, 4), np.int8), "scale": np.float32(0.1)}, [2, 6])
    assert [layer.unquantized_reason for layer in graph.layers] == ["already quantized in the submitted model"]


def test_names_follow_weights_scopes_paths_nodes_then_ops() -> None:
    constants = {"a.b.weight": floats(4, 4), "onnx::MatMul_7": floats(4, 4), "val_3": floats(4, 4), "v": floats(4, 4)}
    nodes = [
        node("MatMul", ["x", "a.b.weight"], "1"),
        node("MatMul", ["1", "onnx::MatMul_7"], "2"),
        node("MatMul", ["2", "val_3"], "3"),
        node("MatMul", ["3", "v"], "4"),
        node("MatMul", ["4", "v"]),
    ]
    nodes[1].name = "/l/l.0/c1/MatMul"
    nodes[2].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'h', 'h.fc', 'matmul']")
    nodes[3].name = "head/kernel"
    graph = graph_of(nodes, constants, [2, 4])
    assert [layer.name for layer in graph.layers] == ["a.b", "l.0.c1", "h.fc", "head/kernel", "MatMul_4"]


def test_equal_names_are_numbered() -> None:
    nodes = [node("MatMul", ["x", f"w{i}"], f"y{i}", name="/fc/MatMul") for i in range(3)]
    graph = graph_of(nodes, {f"w{i}": floats(4, 4) for i in range(3)}, [2, 4], outputs=("y0", "y1", "y2"))
    assert [layer.name for layer in graph.layers] == ["fc", "fc#2", "fc#3"]
    assert graph.layer("fc#2") is graph.layers[1]
