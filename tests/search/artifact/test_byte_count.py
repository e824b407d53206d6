"""Counted bytes against real ones, for every form and for mixtures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from quantized_models import assemble, cnn, mlp, read, repeated, tied_cnn, transformer, uniform

from search.artifact.byte_count import ByteCounter, counted_bytes, fixed_size_bytes, layer_size_bytes
from search.artifact.qdq import export_assembly
from search.assembly import Assembly


def mixtures(names: list[str], choices: list[str], count: int) -> list[dict[str, str]]:
    random = np.random.default_rng(3)
    return [dict(zip(names, random.choice(choices, len(names)), strict=True)) for _ in range(count)]


@pytest.mark.parametrize(
    "build, choices",
    [
        (cnn, ["w8a8", "w4a8"]),
        (transformer, ["w8a8", "w4a8"]),
        (transformer, ["fp32", "w8a8-dynamic", "w4a16-g32"]),
        (mlp, ["w8a8", "w4a8", "w8a8-dynamic", "w4a16-g32", "fp32"]),
    ],
)
def test_counted_bytes_are_the_file_within_one_percent(build, choices) -> None:  # type: ignore[no-untyped-def]
    graph = read(build())
    counter = ByteCounter(graph)
    names = [layer.name for layer in graph.layers if layer.kind.value != "embedding"]
    for precisions in mixtures(names, choices, 8):
        assembly = assemble(graph, precisions)
        counted = counter.count(assembly)
        real = len(export_assembly(graph, assembly, "onnxruntime_cpu").SerializeToString())
        assert counted.total == counted.fixed + sum(counted.layers.values())
        assert counted.total == pytest.approx(real, rel=0.01)


def test_full_precision_is_counted_to_the_byte() -> None:
    graph = read(cnn())
    empty = Assembly({}, {})
    assert counted_bytes(graph, empty).total == export_assembly(graph, empty, "onnxruntime_cpu").ByteSize()


def test_parts_are_what_the_counter_adds_up() -> None:
    graph = read(transformer())
    assembly = assemble(graph, uniform(graph))
    counted = counted_bytes(graph, assembly)
    layer = graph.layer("mlp.up")
    assert counted.fixed == fixed_size_bytes(graph)
    assert counted.layers["mlp.up"] == layer_size_bytes(graph, layer, assembly.candidates["mlp.up"].recipe)
    assert layer_size_bytes(graph, layer, None) > 4 * layer.weight_count


@pytest.mark.parametrize("linear", ["w8a8", "w8a8-dynamic", "w4a16-g32"])
def test_an_embedding_tied_to_the_head_is_counted_as_written(linear: str) -> None:
    graph = read(transformer(tied=True))
    assembly = assemble(graph, uniform(graph, linear=linear))
    real = export_assembly(graph, assembly, "onnxruntime_cpu").ByteSize()
    assert counted_bytes(graph, assembly).total == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("linear", ["w8a8", "w4a8", "w8a8-dynamic", "w4a16-g32"])
def test_a_matrix_multiplied_twice_is_counted_as_written(linear: str) -> None:
    graph = read(repeated())
    assembly = _refitted(assemble(graph, uniform(graph, linear=linear)), "block#2")
    real = export_assembly(graph, assembly, "onnxruntime_cpu").ByteSize()
    assert counted_bytes(graph, assembly).total == pytest.approx(real, rel=0.01)


def test_tied_layers_pay_for_their_codes_once() -> None:
    graph = read(tied_cnn())
    assembly = _refitted(assemble(graph, uniform(graph)), "block.conv1#2")
    real = export_assembly(graph, assembly, "onnxruntime_cpu").ByteSize()
    assert counted_bytes(graph, assembly).total == pytest.approx(real, rel=0.01)


def test_tied_layers_that_came_to_different_codes_pay_for_each() -> None:
    graph = read(tied_cnn())
    assembly = assemble(graph, uniform(graph, conv="w4a8"))
    name = "block.conv1#2"
    old = assembly.candidates[name]
    other = replace(old, weight=replace(old.weight, codes=-1 - old.weight.codes))
    apart = replace(assembly, candidates={**assembly.candidates, name: other})
    real = export_assembly(graph, apart, "onnxruntime_cpu").ByteSize()
    assert counted_bytes(graph, apart).total == pytest.approx(real, rel=0.01)
    assert real > 1.05 * export_assembly(graph, assembly, "onnxruntime_cpu").ByteSize()


def _refitted(assembly: Assembly, layer: str) -> Assembly:
    """Codes stay what they are, as after the affine refit of a layer on its own outputs."""
    old = assembly.candidates[layer]
    new = replace(old, weight=replace(old.weight, scale=old.weight.scale * np.float32(1.1)))
    return replace(assembly, candidates={**assembly.candidates, layer: new})
