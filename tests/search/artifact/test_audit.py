"""What runtimes really execute, pattern by pattern, and that the audit catches every fallback in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq_patterns import conv, float_stem_before_integer_conv, linear
from quantized_models import (
    Builder,
    assemble,
    cnn,
    cosine,
    mlp,
    read,
    repeated,
    sample_inputs,
    tied_cnn,
    transformer,
    uniform,
)

from kernels.backends.onnxruntime_cpu import SESSION_OPTIONS
from search.artifact.audit import Audit, audit_file, audit_model
from search.artifact.diagnosis import DISABLE_KEY
from search.artifact.qdq import export_assembly
from search.artifact.session import open_model
from search.errors import AuditFailed, BadSubmission
from search.simulation.onnxruntime_simulator import OnnxRuntimeSimulator

DEFAULTS: dict[str, str] = {}
WITHOUT_MATMUL_ADD = {**SESSION_OPTIONS, DISABLE_KEY: "QDQPropagationTransformer;WeightBiasQuantization"}
COMMAS = {**SESSION_OPTIONS, DISABLE_KEY: SESSION_OPTIONS[DISABLE_KEY].replace(";", ",")}


def audited(model: onnx.ModelProto, options: dict[str, str] | None = None, runtime: str = "onnxruntime_cpu") -> Audit:
    return audit_model(model.SerializeToString(), 1, options, runtime=runtime)


GOOD = {
    "conv": (conv(), "QLinearConv"),
    "conv without bias": (conv(bias=""), "QLinearConv"),
    "conv, int4 through a Cast": (conv(weight="int4-cast"), "QLinearConv"),
    "conv, ReLU at zero point 0": (conv(activation="Relu", zero_point=0), "QLinearConv"),
    "conv, Clip that holds the range": (conv(activation="Clip", zero_point=0, scale=6 / 255), "QLinearConv"),
    "Gemm": (linear(), "QGemm"),
    "Gemm, transposed": (linear(transposed=True), "QGemm"),
    "Gemm without bias": (linear(bias=""), "QGemm"),
    "MatMul": (linear(op="MatMul", bias=""), "MatMulIntegerToFloat"),
    "MatMul + Add": (linear(op="MatMul", bias="float"), "MatMulIntegerToFloat"),
    "MatMul + Add before ReLU": (linear(op="MatMul", bias="float", activation="Relu"), "MatMulIntegerToFloat"),
    "blocked MatMul": (linear(op="MatMul", weight="int4-blocked", bias="", quantized_input=False), "MatMulNBits"),
    "blocked MatMul + Add before ReLU": (
        linear(op="MatMul", weight="int4-blocked", bias="float", quantized_input=False, activation="Relu"),
        "MatMulNBits",
    ),
    "blocks of 16": (
        linear(op="MatMul", weight="int4-blocked", bias="", quantized_input=False, block=16),
        "MatMulNBits",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_fuses(name: str) -> None:
    model, kernel = GOOD[name]
    audit = audited(model)
    assert audit.ok, audit.findings
    assert [layer.executed for layer in audit.layers] == [kernel]
    assert all(layer.is_quantized for layer in audit.layers)
    audit.raise_if_failed()


@pytest.mark.parametrize("linear", ["w8a8", "w4a8", "w8a8-dynamic", "w4a16-g32"])
def test_nameless_layers_that_share_a_weight_are_all_found(linear: str) -> None:
    graph = read(repeated())
    precisions = uniform(graph, linear=linear)
    model = export_assembly(graph, assemble(graph, precisions), "onnxruntime_cpu")
    audit = audit_model(model.SerializeToString(), 1, SESSION_OPTIONS, expected=precisions, graph=graph)
    assert audit.ok, audit.findings
    assert {layer.layer for layer in audit.layers} == set(precisions)


BLOCKED = {"op": "MatMul", "weight": "int4-blocked", "bias": "", "quantized_input": False}
FALLBACKS = {
    "no quantizer behind the conv": (conv(output=False), None, "reads its output before any quantizer"),
    "SiLU-like op before the quantizer": (conv(activation="Sigmoid"), None, "Sigmoid reads its output before"),
    "zero point behind ReLU": (conv(activation="Relu", zero_point=7), None, "zero point must be 0, not 7"),
    "range beyond the Clip": (conv(activation="Clip", zero_point=0, scale=0.05), None, "beyond the Clip at 6"),
    "scale of shape (1,) at a Clip": (
        conv(activation="Clip", zero_point=0, scale=[6 / 255]),
        None,
        "must be a scalar",
    ),
    "float bias": (conv(bias="float"), None, "its bias is float"),
    "bias scale": (conv(bias_factor=1.5), None, "input scale × weight scale"),
    "two quantizers behind the conv": (conv(twice=True), None, "other readers than one quantizer"),
    "int4 without Cast": (conv(weight="int4"), None, "without a Cast"),
    "float activations": (conv(quantized_input=False), None, "no kernel for quantized weights with float activations"),
    "Gemm with float bias": (linear(bias="float"), None, "its bias is float"),
    "Gemm without weight zero point": (linear(zero_point=False), None, "needs a zero point"),
    "Gemm before ReLU": (linear(activation="Relu"), None, "no quantizer behind it"),
    "MatMul before ReLU": (linear(op="MatMul", bias="", activation="Relu"), None, "no quantizer behind it"),
    "blocks of 8": (linear(**BLOCKED, block=8), None, "group size 8"),
    "blocked, transposed Gemm": (
        linear(weight="int4-blocked", bias="float", quantized_input=False, transposed=True),
        None,
        "stored transposed",
    ),
    "blocked behind a Transpose": (linear(**BLOCKED, transpose_node=True), None, "a node stands between"),
    "blocked with quantized activations": (
        linear(**{**BLOCKED, "quantized_input": True}),
        None,
        "without a Cast",
    ),
    "blocked, one weight for two": (linear(**BLOCKED, readers=2), None, "more than one reader"),
    "blocked before ReLU": (linear(**BLOCKED, activation="Relu"), None, "without a bias between"),
    "blocked before ReLU, fusion on": (
        linear(**{**BLOCKED, "bias": "float"}, activation="Relu"),
        WITHOUT_MATMUL_ADD,
        "MatMulAddFusion",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FALLBACKS)
def test_quantized_layers_that_run_in_float_are_caught_with_their_reason(name: str) -> None:
    model, options, reason = FALLBACKS[name]
    audit = audited(model, options)
    assert {finding.code for finding in audit.findings} == {"quantized_ran_float"}
    assert reason in audit.findings[0].sentence
    assert not any(layer.is_quantized for layer in audit.layers)
    with pytest.raises(AuditFailed, match="ran as float"):
        audit.raise_if_failed()


def test_matmul_add_fusion_changes_the_kernel_and_is_named() -> None:
    audit = audited(linear(op="MatMul", bias="float"), WITHOUT_MATMUL_ADD)
    assert audit.findings
    assert {finding.code for finding in audit.findings} <= {"quantized_ran_float", "other_kernel"}
    assert "MatMulAddFusion" in audit.findings[0].sentence


@pytest.mark.parametrize("options", [DEFAULTS, COMMAS], ids=["defaults", "commas"])
def test_a_float_layer_made_integer_is_caught(options: dict[str, str]) -> None:
    model = conv(weight="float", bias="float")
    assert audited(model).ok
    audit = audited(model, options)
    assert [finding.code for finding in audit.findings] == ["float_ran_int8"]
    assert audit.layers[0].asked == "float"
    assert audit.layers[0].executed == "QLinearConv"


def test_an_integer_max_pool_is_caught() -> None:
    model = float_stem_before_integer_conv()
    assert audited(model).ok
    assert "integer_max_pool" in {finding.code for finding in audited(model, DEFAULTS).findings}


EXPORTS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, str]]] = {
    "cnn-w8a8": (cnn, {}),
    "cnn-w4a8": (cnn, {"conv": "w4a8", "linear": "w4a8"}),
    "tied-cnn": (tied_cnn, {}),
    "transformer-w8a8": (transformer, {}),
    "transformer-w4a8": (transformer, {"linear": "w4a8"}),
    "transformer-w4a16": (transformer, {"linear": "w4a16-g32"}),
    "mlp-w8a8": (mlp, {}),
    "mlp-w4a16": (mlp, {"linear": "w4a16-g32"}),
}


@pytest.mark.parametrize("runtime", ["onnxruntime_cpu", "openvino"])
@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_every_export_runs_as_decided(name: str, runtime: str, share: float) -> None:
    build, choice = EXPORTS[name]
    graph = read(build())
    random = np.random.default_rng(5)
    decided = {layer: p if random.random() < share else "fp32" for layer, p in uniform(graph, **choice).items()}
    ties: dict[str, str] = {}
    decided = {layer.name: ties.setdefault(layer.tie or layer.name, decided[layer.name]) for layer in graph.layers}
    model = export_assembly(graph, assemble(graph, decided), runtime).SerializeToString()
    audit = audit_model(model, 1, None, decided, graph, runtime)
    assert audit.ok, audit.findings
    assert {layer.layer for layer in audit.layers} == set(decided)
    for layer in audit.layers:
        assert layer.is_quantized == (decided[layer.layer] != "fp32"), layer


def test_dynamic_layers_run_on_integers_also_when_they_share_their_input() -> None:
    graph = read(transformer())
    decided = uniform(graph, linear="w8a8-dynamic")
    audit = audited(export_assembly(graph, assemble(graph, decided), "onnxruntime_cpu"))
    assert audit.ok, audit.findings
    kernels = {layer.executed for layer in audit.layers if layer.op_type == "MatMulInteger"}
    assert kernels == {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    assert audit.ops["DynamicQuantizeLinear"] == 1


def test_a_file_that_differs_from_the_decision_is_caught_in_both_directions() -> None:
    graph = read(cnn())
    decided = {**uniform(graph), "last": "fp32"}
    model = export_assembly(graph, assemble(graph, decided), "onnxruntime_cpu").SerializeToString()
    other = {**decided, "last": "w8a8", "stem": "fp32", "head": "w4a8"}
    audit = audit_model(model, 1, None, other, graph)
    assert {(finding.code, finding.layer) for finding in audit.findings} == {
        ("not_as_planned", "last"),
        ("not_as_planned", "stem"),
        ("not_as_planned", "head"),
    }


def test_openvino_running_a_quantized_layer_in_float_is_caught() -> None:
    audit = audited(conv(weight="int4"), None, "openvino")
    assert [finding.code for finding in audit.findings] == ["quantized_ran_float"]
    assert audited(conv(weight="int4-cast"), None, "openvino").ok


@pytest.mark.parametrize("decided", [{"shortcut": "w8a8"}, {"first": "w8a8", "shortcut": "w4a8"}])
def test_a_strided_1x1_convolution_stays_integer_in_openvino(decided: dict[str, str]) -> None:
    b = Builder()
    x = b.op("Relu", b.conv("x", "first", 16, 16))
    y = b.op("Exp", b.conv(x, "shortcut", 16, 32, 1, stride=2))
    graph = read(b.model(y, ["batch", 32, 6, 6], {"x": (onnx.TensorProto.FLOAT, ["batch", 16, 12, 12])}))
    assembly = assemble(graph, decided)
    model = export_assembly(graph, assembly, "openvino").SerializeToString()
    whole = {layer.name: decided.get(layer.name, "fp32") for layer in graph.layers}
    audit = audit_model(model, 1, None, whole, graph, "openvino")
    assert audit.ok, audit.findings
    inputs = sample_inputs(graph)
    found = open_model(model, "openvino", 1).run(inputs)[y]
    assert cosine(found, OnnxRuntimeSimulator(graph).run(inputs, assembly)[y]) > 0.999


def test_any_file_can_be_audited(tmp_path: Path) -> None:
    path = tmp_path / "any.onnx"
    onnx.save(conv(output=False), path)
    audit = audit_file(path, "onnxruntime", 1)
    assert not audit.ok
    report = json.loads(json.dumps(audit.to_json()))
    assert report["layers"][0]["is_quantized"] is False
    assert report["findings"][0]["code"] == "quantized_ran_float"
    onnx.save(cnn(), path)
    plain = audit_file(path)
    assert plain.ok
    assert len(plain.layers) == 8
    assert not any(layer.is_quantized for layer in plain.layers)
    assert all(layer.executed for layer in plain.layers)


def test_a_file_with_external_data_is_audited_too(tmp_path: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(conv(bias="float"), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    audit = audit_file(path)
    assert [finding.code for finding in audit.findings] == ["quantized_ran_float"]


def test_files_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSubmission) as caught:
        audit_file(tmp_path / "none.onnx")
    assert caught.value.code == "file_missing"
    (tmp_path / "bad.onnx").write_bytes(b"no model at all")
    with pytest.raises(BadSubmission) as caught:
        audit_file(tmp_path / "bad.onnx")
    assert caught.value.code == "model_unreadable"
