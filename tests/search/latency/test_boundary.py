"""Where activations are converted between float and int8, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from latency_graphs import cnn, graph_of, linear, profile, transformer

from kernels.op_shape import LinearShape
from search.graph import OperatingShapes, TensorInfo
from search.latency.boundary import Edge, crossing_elements, find_edges, unfused_elements

LARGE, SMALL, IMAGE = 2 * 16 * 8 * 8, 2 * 32 * 4 * 4, 2 * 3 * 8 * 8
CONVS = frozenset({"stem", "inner", "plain", "down", "side"})


def test_edges_of_a_cnn() -> None:
    graph, shapes = cnn()
    edges = {(e.tensor, e.producer, e.reader): e.elements for e in find_edges(graph, shapes, profile())}
    assert edges == {
        ("image", None, "stem"): IMAGE,
        ("stem.relu", "stem", "inner"): LARGE,
        ("stem.relu", "stem", None): LARGE,
        ("inner.relu", "inner", "plain"): LARGE,
        ("plain.out", "plain", None): LARGE,
        ("block1", None, "down"): LARGE / 2,
        ("block1", None, "side"): LARGE / 2,
        ("down.relu", "down", None): SMALL,
        ("side.out", "side", None): SMALL,
        ("flat", None, "head"): 2 * 32,
    }


def test_crossings_of_a_cnn() -> None:
    graph, shapes = cnn()
    edges = find_edges(graph, shapes, profile())

    def crossing(*layers: str) -> float:
        return crossing_elements(edges, set(layers), set(layers) & CONVS)

    assert crossing() == 0
    # quantize the stem's output for it, dequantize its own for the next convolution
    assert crossing("inner") == 2 * LARGE
    # between the two nothing is converted
    assert crossing("inner", "plain") == 2 * LARGE
    assert crossing("inner", "plain", "stem") == IMAGE + 2 * LARGE
    # both readers of the block's output share one quantizer
    assert crossing("down", "side") == LARGE + 2 * SMALL
    # a product reads codes but leaves floats
    assert crossing("head") == 64


def test_only_static_readers_count_in_a_transformer() -> None:
    graph, shapes = transformer()
    edges = find_edges(graph, shapes, profile())
    assert {(e.tensor, e.producer, e.reader) for e in edges} == {
        ("normed", None, "query"),
        ("normed", None, "key"),
        ("part", None, "wide"),
    }
    assert crossing_elements(edges, {"query", "key"}, set()) == 2 * 6 * 64


def feed_forward(between: list[tuple[str, list[str], list[str]]]) -> tuple[Edge, ...]:
    """Edges of wide -> the given nodes from `wide.out` to `hidden` -> narrow, beside a residual stream `x`."""
    shapes = {"wide": LinearShape(12, 64, 96), "narrow": LinearShape(12, 96, 64)}
    nodes = [
        ("Gemm", ["x", "wide.w", "wide.b"], ["wide.out"]),
        *between,
        ("Gemm", ["hidden", "narrow.w", "narrow.b"], ["narrow.out"]),
        ("Add", ["narrow.out", "x"], ["y"]),
    ]
    layers = [linear("wide", 0, "x", shapes["wide"]), linear("narrow", 1 + len(between), "hidden", shapes["narrow"])]
    built = graph_of(nodes, layers, [TensorInfo("x", np.dtype(np.float32), ("batch", 64))])
    built = replace(built, constants={"half": np.float32(0.5), "root": np.float32(2**0.5)})
    return find_edges(built, OperatingShapes(shapes, {"x": (12, 64), "hidden": (12, 96)}), profile())


def test_elementwise_ops_lead_back_to_one_layer() -> None:
    gelu = [
        ("Div", ["wide.out", "root"], ["scaled"]),
        ("Erf", ["scaled"], ["erf"]),
        ("Mul", ["wide.out", "erf"], ["both"]),
        ("Mul", ["both", "half"], ["hidden"]),
    ]
    assert feed_forward(gelu) == (Edge("x", None, "wide", 12 * 64), Edge("hidden", None, "narrow", 12 * 96, "wide"))
    gated = [("Sigmoid", ["x"], ["gate"]), ("Mul", ["wide.out", "gate"], ["hidden"])]
    assert feed_forward(gated)[1].source is None, "what the input brings has no kernel to be taken into"
    assert feed_forward([("Softmax", ["wide.out"], ["hidden"])])[1].source is None


def test_elements_are_unfused_where_one_end_computes_in_float() -> None:
    edges = feed_forward([("Gelu", ["wide.out"], ["hidden"])])
    assert unfused_elements(edges, {"wide", "narrow"}) == unfused_elements(edges, set()) == 0
    assert unfused_elements(edges, {"wide"}) == unfused_elements(edges, {"narrow"}) == 12 * 96
    assert crossing_elements(edges, {"wide", "narrow"}, set()) == 12 * (64 + 96), "counted whether fused or not"


def test_a_graph_output_is_read_in_float() -> None:
    graph, shapes = cnn()
    exposed = replace(
        graph, outputs=(*graph.outputs, TensorInfo("inner.relu", np.dtype(np.float32), ("batch", 16, 8, 8)))
    )
    ends = [(e.producer, e.reader) for e in find_edges(exposed, shapes, profile()) if e.tensor == "inner.relu"]
    assert ends == [("inner", "plain"), ("inner", None)]
