"""Where activations are converted between float and int8, counted by hand."""

from __future__ import annotations

from latency_graphs import cnn, profile, transformer

from search.latency.boundary import crossing_elements, find_edges

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


def test_a_graph_output_is_read_in_float() -> None:
    graph, shapes = cnn()
    import dataclasses

    import numpy as np

    from search.graph import TensorInfo

    exposed = dataclasses.replace(
        graph, outputs=(*graph.outputs, TensorInfo("inner.relu", np.dtype(np.float32), ("batch", 16, 8, 8)))
    )
    ends = [(e.producer, e.reader) for e in find_edges(exposed, shapes, profile()) if e.tensor == "inner.relu"]
    assert ends == [("inner", "plain"), ("inner", None)]
