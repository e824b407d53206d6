"""The exported file: what it computes, that names survive, that it is small, repeatable and refuses bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from quantized_models import assemble, cnn, cosine, mlp, read, sample_inputs, tied_cnn, transformer, uniform

from kernels.precision import Precision
from search.artifact.qdq import export_assembly, export_simulation, why_not
from search.assembly import Assembly
from search.errors import BadSubmission

SHIPPED = {
    "optimization.disable_specified_optimizers": ("QDQPropagationTransformer;WeightBiasQuantization;MatMulAddFusion"),
    "session.qdq_matmulnbits_accuracy_level": "4",
}
CASES = {
    "cnn-w8a8": (cnn, {}),
    "cnn-w4a8": (cnn, {"conv": "w4a8", "linear": "w4a8"}),
    "transformer-w8a8": (transformer, {}),
    "transformer-w4a8": (transformer, {"linear": "w4a8"}),
    "transformer-dynamic": (transformer, {"linear": "w8a8-dynamic"}),
    "transformer-w4a16": (transformer, {"linear": "w4a16-g32"}),
    "mlp-w8a8": (mlp, {}),
    "mlp-w4a16": (mlp, {"linear": "w4a16-g32"}),
    "mlp-dynamic": (mlp, {"linear": "w8a8-dynamic"}),
}


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray], *, optimized: bool) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    if optimized:
        for key, value in SHIPPED.items():
            options.add_session_config_entry(key, value)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


@pytest.mark.parametrize("case", CASES)
def test_the_optimized_artifact_computes_what_the_simulation_says(case: str) -> None:
    build, precisions = CASES[case]
    graph = read(build())
    assembly = assemble(graph, uniform(graph, **precisions))
    inputs = sample_inputs(graph, seed=7)
    exported = export_assembly(graph, assembly, "onnxruntime_cpu")
    onnx.checker.check_model(exported, full_check=True)
    deployed = run(exported, inputs, optimized=True)
    simulated = run(export_simulation(graph, assembly), inputs, optimized=False)
    reference = run(graph.model, inputs, optimized=False)
    assert cosine(deployed, simulated) > 0.999
    assert 0.95 < cosine(deployed, reference) < 1
    assert not np.array_equal(deployed, reference)


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 20, 21])
@pytest.mark.parametrize("build", [cnn, mlp])
def test_four_bit_weights_export_from_every_opset(opset: int, build) -> None:  # type: ignore[no-untyped-def]
    graph = read(build(opset))
    exported = export_assembly(graph, assemble(graph, uniform(graph, "w4a8", "w4a8")), "onnxruntime_cpu")
    onnx.checker.check_model(exported, full_check=True)
    assert exported.opset_import[0].version == 21
    assert graph.model.opset_import[0].version == opset
    inputs = sample_inputs(graph)
    assert cosine(run(exported, inputs, optimized=True), run(graph.model, inputs, optimized=False)) > 0.95


def test_equal_input_gives_equal_bytes() -> None:
    exports = []
    for _ in range(2):
        graph = read(cnn())
        assembly = assemble(graph, uniform(graph, "w4a8", "w8a8"))
        exports.append(export_assembly(graph, assembly, "onnxruntime_cpu").SerializeToString(deterministic=True))
    assert exports[0] == exports[1]


def test_names_survive_and_replaced_weights_are_gone() -> None:
    graph = read(cnn())
    before = graph.model.SerializeToString()
    assembly = assemble(graph, {**uniform(graph), "last": "fp32"})
    exported = export_assembly(graph, assembly, "onnxruntime_cpu")
    assert graph.model.SerializeToString() == before
    names = {node.name for node in exported.graph.node}
    assert {node.name for node in graph.model.graph.node} <= names
    initializers = {tensor.name: tensor for tensor in exported.graph.initializer}
    assert "last.weight" in initializers
    assert "stem.weight" not in initializers
    assert [value.name for value in exported.graph.output] == [value.name for value in graph.model.graph.output]
    assert not exported.producer_name


def test_an_empty_assembly_leaves_the_outputs_bit_identical() -> None:
    graph = read(transformer())
    exported = export_assembly(graph, Assembly({}, {}), "onnxruntime_cpu")
    inputs = sample_inputs(graph)
    assert np.array_equal(run(exported, inputs, optimized=False), run(graph.model, inputs, optimized=False))
    assert exported.opset_import[0].version == 17


def test_a_producer_quantized_tensor_feeds_all_readers_and_another_only_the_quantized_ones() -> None:
    graph = read(cnn())
    assembly = assemble(graph, {"stem": "w8a8", "block.conv1": "w8a8"})
    exported = export_assembly(graph, assembly, "onnxruntime_cpu")
    producer = {name: node for node in exported.graph.node for name in node.output}
    stem = graph.layer("stem").quantized_tensor
    assert producer[stem].op_type == "DequantizeLinear"
    pooled = graph.layer("block.conv1").input
    assert producer[pooled].op_type == "MaxPool"
    readers = {node.op_type: list(node.input) for node in exported.graph.node if pooled in node.input}
    assert set(readers) == {"QuantizeLinear", "Add"}


def test_a_dead_channel_does_not_overflow_its_integer_bias() -> None:
    graph = read(cnn())
    assembly = assemble(graph, uniform(graph))
    candidate = assembly.candidates["last"]
    codes, scale = candidate.weight.codes.copy(), candidate.weight.scale.copy()
    codes[3], scale[3] = 0, 1e-12
    assert candidate.bias is not None
    bias = candidate.bias.copy()
    bias[3] = 2.0
    broken = replace(candidate, weight=replace(candidate.weight, codes=codes, scale=scale), bias=bias)
    assembly = replace(assembly, candidates={**assembly.candidates, "last": broken})
    exported = export_assembly(graph, assembly, "onnxruntime_cpu")
    tensor = next(t for t in exported.graph.initializer if t.name == "last.bias.int32")
    assert 2**29 < onnx.numpy_helper.to_array(tensor)[3] <= 2**30
    kept = onnx.helper.make_tensor_value_info(graph.layer("last").output, onnx.TensorProto.FLOAT, None)
    exported.graph.output.append(kept)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(exported.SerializeToString(), options)
    values = session.run([kept.name], sample_inputs(graph))[0]
    assert np.allclose(values[:, 3], 2.0, atol=1e-4)


def test_tied_weights_are_stored_once() -> None:
    graph = read(tied_cnn())
    exported = export_assembly(graph, assemble(graph, uniform(graph)), "onnxruntime_cpu")
    stored = [t.name for t in exported.graph.initializer if tuple(t.dims) == (16, 16, 3, 3)]
    assert len(stored) == 1


@pytest.mark.parametrize(
    "change, code",
    [
        (lambda a: replace(a, quantizers={}), "assembly_incomplete"),
        (lambda a: replace(a, candidates={"no such layer": a.candidates["stem"]}), "assembly_incomplete"),
    ],
)
def test_an_incomplete_assembly_is_refused(change, code: str) -> None:  # type: ignore[no-untyped-def]
    graph = read(cnn())
    assembly = change(assemble(graph, uniform(graph)))
    with pytest.raises(BadSubmission) as caught:
        export_assembly(graph, assembly, "onnxruntime_cpu")
    assert caught.value.code == code


def test_an_unknown_runtime_is_refused() -> None:
    graph = read(mlp())
    with pytest.raises(BadSubmission) as caught:
        export_assembly(graph, Assembly({}, {}), "abacus")
    assert caught.value.code == "runtime_unknown"


def test_why_not_names_the_reason() -> None:
    graph = read(cnn())
    assert why_not(graph, graph.layer("stem"), Precision("w4a8")) is None
    assert "linear" in (why_not(graph, graph.layer("stem"), Precision("w8a8-dynamic")) or "")
