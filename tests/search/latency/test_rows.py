"""Which (op shape, precision) pairs a model needs."""

from __future__ import annotations

import dataclasses

import pytest
from latency_graphs import cnn, profile, transformer

from kernels.errors import NotMeasured
from kernels.latency_table import LatencyRow, LatencyTable, RowScope, RowStatus
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape
from kernels.precision import FP32, Precision
from search.latency.rows import distinct_pairs, layer_latencies_us, missing_pairs, required_rows


def test_rows_of_a_cnn() -> None:
    graph, shapes = cnn()
    rows = required_rows(graph, shapes, profile())
    same = Conv2dShape(2, 16, 8, 8, 16, (3, 3), (1, 1), (1, 1, 1, 1))
    assert [(op, str(p)) for layer, op, p in rows if layer in ("inner", "plain")] == [
        (same, name) for name in ("fp32", "w8a8", "w4a8")
    ] * 2
    assert {str(p) for layer, _, p in rows if layer == "head"} == {
        "fp32", "w8a8", "w8a8-dynamic", "w4a16-g32", "w4a8",
    }  # fmt: skip
    # five convolution shapes, two of them equal, in three precisions, and one product in five
    assert len(rows) == 5 * 3 + 5
    assert len(distinct_pairs(rows)) == 4 * 3 + 5


def test_rows_of_a_transformer() -> None:
    graph, shapes = transformer()
    here = profile()
    whole = dataclasses.replace(here.support["linear", "w4a16-g32"], whole_groups=True)
    strict = dataclasses.replace(here, support={**here.support, ("linear", "w4a16-g32"): whole})
    rows = required_rows(graph, shapes, strict)
    assert [(op, str(p)) for layer, op, p in rows if layer == "words"] == [
        (EmbeddingShape(12, 100, 64), "fp32"),
        (EmbeddingShape(12, 100, 64), "w8a16"),
    ]
    assert {op for layer, op, _ in rows if layer in ("query", "key")} == {LinearShape(12, 64, 64)}
    assert "w4a16-g32" not in {str(p) for layer, _, p in rows if layer == "wide"}, "32 does not divide 40"
    assert "w8a8" in {str(p) for layer, _, p in rows if layer == "wide"}
    assert ("wide", "w4a16-g32") in {(layer, str(p)) for layer, _, p in required_rows(graph, shapes, here)}


def test_a_layer_without_candidates_needs_no_rows() -> None:
    graph, shapes = cnn()
    layers = tuple(
        dataclasses.replace(layer, unquantized_reason="weight is computed") if layer.name == "stem" else layer
        for layer in graph.layers
    )
    rows = required_rows(dataclasses.replace(graph, layers=layers), shapes, profile())
    assert "stem" not in {layer for layer, _, _ in rows}


def test_missing_pairs_and_latencies_come_from_the_table() -> None:
    graph, shapes = cnn()
    here = profile()
    rows = required_rows(graph, shapes, here)
    op = shapes.op_shapes["head"]
    row = LatencyRow(
        op.signature, "fp32", 1, 3.5, 3.4, 3.6, 3.3, 3.9, 30, RowStatus.MEASURED, RowScope.DEPLOYABLE, "Gemm", "run"
    )
    table = LatencyTable(here.slug, here.device, here.runtime, here.runtime_version).extended([row], "run", {})
    assert set(distinct_pairs(rows)) - set(missing_pairs(rows, table, 1)) == {(op, FP32)}
    assert missing_pairs(rows, table, 2) == distinct_pairs(rows), "another thread count is another row"
    assert layer_latencies_us([("head", op, FP32)], table, 1) == {("head", "fp32"): 3.5}
    with pytest.raises(NotMeasured, match="w8a8"):
        layer_latencies_us([("head", op, Precision("w8a8"))], table, 1)
