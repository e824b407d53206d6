"""Audit: what a runtime really executes of a model, compared with what the file asks for and what was decided.

Runtimes fall back silently in both directions: a layer written for integers runs in float when one detail of its
pattern is off, and a float layer between quantizers is made integer by an optimizer that means well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from kernels.backends.base import LoadedModel
from kernels.backends.onnxruntime_cpu import OnnxRuntimeModel
from kernels.precision import Precision
from search.artifact.diagnosis import why_float
from search.artifact.executed import WeightedOp, match_ops, weighted_ops
from search.artifact.intent import Compute, IntendedLayer, Wiring, intended_layers, wire
from search.artifact.session import open_model
from search.errors import AuditFailed, BadSubmission
from search.graph import Graph, LayerKind

SCHEMA_VERSION = 1
_ALIASES = {"onnxruntime": "onnxruntime_cpu"}


@dataclass(frozen=True)
class Finding:
    """One thing that is not as asked. `layer` is None for what concerns no single layer.

    | code                    | meaning                                                        |
    |-------------------------|----------------------------------------------------------------|
    | `quantized_ran_float`   | integers were asked for, float products ran                    |
    | `float_ran_int8`        | float was asked for, an integer kernel ran                     |
    | `other_kernel`          | quantized, but by another arithmetic than asked for            |
    | `weight_dequantized`    | a stored integer weight or bias is widened to float every run  |
    | `integer_max_pool`      | a MaxPool reads 8-bit integers in NCHW, slower than in float   |
    | `extra_boundary`        | more tensors are quantized at run time than the file asks for  |
    | `not_as_planned`        | the file itself asks for another precision than was decided    |
    | `layer_not_found`       | a layer's op is not among the executed ones                    |
    """

    code: str
    layer: str | None
    sentence: str


@dataclass(frozen=True)
class LayerAudit:
    """One weighted op: what the file asks for, and the ops that ran (`executed`, empty when not found)."""

    layer: str
    op_type: str
    weight: str
    bits: int
    asked: str
    executed: str
    compute: str

    @property
    def is_quantized(self) -> bool:
        return self.compute in (Compute.INT8.value, Compute.WEIGHT_ONLY.value)


@dataclass(frozen=True)
class Audit:
    """The comparison, as a value: `ok` when nothing was found. `ops` counts every executed op by type."""

    runtime: str
    layers: tuple[LayerAudit, ...]
    findings: tuple[Finding, ...]
    ops: Mapping[str, int]

    @property
    def ok(self) -> bool:
        return not self.findings

    def raise_if_failed(self) -> None:
        """Raise `AuditFailed` with every finding's sentence unless `ok`."""
        if self.findings:
            raise AuditFailed(
                "; ".join(finding.sentence for finding in self.findings),
                hint="drop this assembly, or change the layers named",
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "runtime": self.runtime,
            "ok": self.ok,
            "layers": [{**asdict(layer), "is_quantized": layer.is_quantized} for layer in self.layers],
            "findings": [asdict(finding) for finding in self.findings],
            "ops": dict(sorted(self.ops.items())),
        }


def audit_model(
    model: bytes | Path,
    threads: int = 1,
    session_options: Mapping[str, str] | None = None,
    expected: Mapping[str, str] | None = None,
    graph: Graph | None = None,
    runtime: str = "onnxruntime_cpu",
) -> Audit:
    """Open `model` in `runtime` and compare.

    `expected` maps layers of `graph` to precision names; with both given, the file is also held to the decision and
    layers carry their names in the graph. None for `session_options` means those that artifacts ship with.
    """
    runtime = _ALIASES.get(runtime, runtime)
    wiring = wire(_structure(model))
    loaded = open_model(model, runtime, threads, session_options)
    try:
        optimized = loaded.optimized_model if isinstance(loaded, OnnxRuntimeModel) else None
        return _compare(wiring, loaded, optimized, runtime, session_options, expected, graph)
    finally:
        loaded.close()


def audit_file(
    path: Path, runtime: str = "onnxruntime_cpu", threads: int = 1, session_options: Mapping[str, str] | None = None
) -> Audit:
    """What runs quantized of any ONNX file, what does not and why. Raises `BadSubmission` (`model_unreadable`)."""
    if not path.is_file():
        raise BadSubmission(f"there is no file {path}", hint="check the path", code="file_missing")
    return audit_model(path, threads, session_options, runtime=runtime)


def _structure(model: bytes | Path) -> onnx.ModelProto:
    try:
        if isinstance(model, bytes):
            return onnx.load_model_from_string(model)
        return onnx.load(model, load_external_data=False)
    except Exception as error:  # protobuf's own exception classes differ between its implementations
        raise BadSubmission(
            f"the file is not an ONNX model: {error}", hint="give an .onnx file", code="model_unreadable"
        ) from error


def _compare(
    wiring: Wiring,
    loaded: LoadedModel,
    optimized: onnx.ModelProto | None,
    runtime: str,
    session_options: Mapping[str, str] | None,
    expected: Mapping[str, str] | None,
    graph: Graph | None,
) -> Audit:
    options = _options(runtime) if session_options is None else session_options
    intended = intended_layers(wiring)
    matched = match_ops(wiring, intended, weighted_ops(loaded, optimized))
    names = _graph_names(graph, intended)
    findings: list[Finding] = []
    rows = []
    for index, layer in enumerate(intended):
        name = names.get(index, layer.name)
        ran = matched[index]
        rows.append(_row(name, layer, ran))
        findings += _layer_findings(name, wiring, layer, ran, options, on_onnxruntime=optimized is not None)
    if expected is not None and graph is not None:
        findings += _decision_findings(graph, expected, {names[index]: intended[index] for index in names})
    if optimized is not None:
        explained = {finding.layer for finding in findings}
        findings += _graph_findings(wiring, optimized, intended, names, explained)
        ops = Counter(node.op_type for node in optimized.graph.node)
    else:
        ops = Counter(op.op_type for op in loaded.executed_ops())
    return Audit(runtime, tuple(rows), tuple(findings), dict(ops))


def _options(runtime: str) -> Mapping[str, str]:
    if runtime == "openvino":
        return {}
    from kernels.backends.onnxruntime_cpu import SESSION_OPTIONS

    return SESSION_OPTIONS


def _row(name: str, layer: IntendedLayer, ran: list[WeightedOp]) -> LayerAudit:
    return LayerAudit(
        layer=name,
        op_type=layer.node.op_type,
        weight=layer.weight,
        bits=layer.bits,
        asked=layer.compute.value,
        executed=", ".join(sorted({op.op_type for op in ran})),
        compute=ran[0].compute.value if ran else "unknown",
    )


def _layer_findings(
    name: str,
    wiring: Wiring,
    layer: IntendedLayer,
    ran: list[WeightedOp],
    options: Mapping[str, str],
    *,
    on_onnxruntime: bool,
) -> list[Finding]:
    if not ran:
        if layer.compute is Compute.FLOAT:
            return []  # merged or folded: nothing was lost
        return [Finding("layer_not_found", name, f"{name}: its {layer.node.op_type} is not among the executed ops")]
    compute, op = ran[0].compute, ran[0].op_type
    if compute is layer.compute:
        return []
    if layer.compute is Compute.FLOAT:
        why = "an optimizer quantized it without calibration; disable WeightBiasQuantization"
        return [Finding("float_ran_int8", name, f"{name} is float in the file and ran as {op}: {why}")]
    if compute is Compute.FLOAT:
        why = why_float(wiring, layer, options) if on_onnxruntime else "the runtime did not fuse the pattern"
        asked = f"{layer.bits}-bit {'weights' if layer.compute is Compute.WEIGHT_ONLY else 'integer products'}"
        return [Finding("quantized_ran_float", name, f"{name} asks for {asked} and ran as float {op}: {why}")]
    why = f": {why_float(wiring, layer, options)}" if on_onnxruntime else ""
    return [
        Finding(
            "other_kernel",
            name,
            f"{name} asks for {layer.compute.value} arithmetic and ran as {op} ({compute.value}){why}",
        )
    ]


def _graph_names(graph: Graph | None, intended: list[IntendedLayer]) -> dict[int, str]:
    """The graph's layer names for intended layers, by position: node names survive export, else outputs do."""
    if graph is None:
        return {}
    nodes: dict[str, str] = {}
    outputs: dict[str, str] = {}
    weights: dict[str, list[str]] = {}
    for layer in graph.layers:
        node = graph.nodes[layer.node]
        if node.name:
            nodes[node.name] = layer.name
        for tensor in (*node.outputs, layer.output):
            outputs[tensor] = layer.name
        weights.setdefault(layer.weight, []).append(layer.name)
    found: dict[int, str] = {}
    for index, written in enumerate(intended):
        name = nodes.get(written.node.name) or next((outputs[t] for t in written.node.output if t in outputs), None)
        if name is None:
            stem = written.weight.rpartition(".")[0]
            owners = weights.get(written.weight, weights.get(stem, []))
            name = owners[0] if len(owners) == 1 else None
        if name is not None and name not in found.values():
            found[index] = name
    return found


def _decision_findings(
    graph: Graph, expected: Mapping[str, str], written: Mapping[str, IntendedLayer]
) -> list[Finding]:
    findings = []
    for name, precision_name in expected.items():
        precision, layer = Precision(precision_name), graph.layer(name)
        found = written.get(name)
        if found is None:
            if not precision.is_float:
                findings.append(Finding("layer_not_found", name, f"{name}: decided {precision}, but not in the file"))
            continue
        if precision.is_float:
            wanted, bits = Compute.FLOAT, 32
        else:
            widened = precision.is_weight_only and layer.kind is not LayerKind.EMBEDDING
            wanted = Compute.WEIGHT_ONLY if widened else Compute.INT8
            bits = 4 if precision.weight_bits <= 4 else 8
        if (found.compute, found.bits) != (wanted, bits):
            findings.append(
                Finding(
                    "not_as_planned",
                    name,
                    f"{name}: decided {precision}, the file asks for {found.compute.value}, {found.bits}-bit weights",
                )
            )
    return findings


def _graph_findings(
    wiring: Wiring,
    optimized: onnx.ModelProto,
    intended: list[IntendedLayer],
    names: Mapping[int, str],
    explained: set[str | None],
) -> list[Finding]:
    """What ONNX Runtime's own graph shows besides the layers: widened constants, integer pools, extra quantizers."""
    findings = []
    types = {tensor.name: tensor.data_type for tensor in optimized.graph.initializer}
    owner = {
        tensor: names.get(index, layer.name)
        for index, layer in enumerate(intended)
        for tensor in (*layer.weight_names, *layer.bias_names)
    }
    producers = {name: node for node in optimized.graph.node for name in node.output}
    for node in optimized.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in types:
            layer = owner.get(node.input[0])
            if layer not in explained or layer is None:
                where = f"{layer}: " if layer else ""
                findings.append(
                    Finding(
                        "weight_dequantized", layer, f"{where}constant {node.input[0]!r} is widened to float every run"
                    )
                )
                explained.add(layer)
        if node.op_type == "MaxPool" and node.domain == "" and _is_integer(node.input[0], producers):
            findings.append(
                Finding(
                    "integer_max_pool",
                    None,
                    f"MaxPool {node.name or node.output[0]!r} runs on 8-bit integers in NCHW, slower than in float: "
                    "disable QDQPropagationTransformer",
                )
            )
    quantizers = [node for node in optimized.graph.node if node.op_type == "QuantizeLinear"]
    asked, ran = _asked_quantizers(wiring), sum(not _requantizes(node, producers) for node in quantizers)
    if ran > asked and not explained - {None}:
        findings.append(
            Finding("extra_boundary", None, f"{ran} tensors are quantized at run time, the file needs only {asked}")
        )
    return findings


def _is_integer(tensor: str, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether an 8-bit tensor, through layout changes, comes from a quantizer or an integer kernel."""
    node = producers.get(tensor)
    while node is not None and node.op_type in ("Transpose", "Reshape", "MaxPool"):
        node = producers.get(node.input[0])
    return node is not None and node.op_type in ("QuantizeLinear", "QLinearConv", "QLinearAdd")


def _requantizes(quantizer: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether it restores codes behind a layout change: the layout optimizer writes such pairs, values stay equal."""
    node = producers.get(quantizer.input[0])
    return node is not None and node.op_type == "Transpose" and _made_by(producers, node.input[0], "DequantizeLinear")


def _made_by(producers: Mapping[str, onnx.NodeProto], tensor: str, op_type: str) -> bool:
    node = producers.get(tensor)
    return node is not None and node.op_type == op_type


def _asked_quantizers(wiring: Wiring) -> int:
    """Quantizers the file needs at run time: all but those that integer convolutions absorb."""
    absorbed = 0
    nodes = [node for node in wiring.model.graph.node if node.op_type == "QuantizeLinear"]
    for node in nodes:
        source = wiring.producers.get(node.input[0])
        if source is not None and source.op_type in ("Relu", "Clip"):
            source = wiring.producers.get(source.input[0])
        if source is not None and source.op_type == "Conv":
            inputs = (wiring.producers.get(name) for name in source.input[:2])
            absorbed += all(made is not None and made.op_type == "DequantizeLinear" for made in inputs)
    return len(nodes) - absorbed
