"""Audit: what a runtime really executes of a model, compared with what the file asks for and what was decided.

Runtimes fall back silently in both directions: a layer written for integers runs in float when one detail of its
pattern is off, and a float layer between quantizers is made integer by an optimizer that means well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from kernels.backends.base import ExecutedOp
from kernels.backends.onnxruntime_cpu import SESSION_OPTIONS
from search.artifact.executed import WeightedOp, match_ops, weighted_ops
from search.artifact.findings import Finding, decision_findings, graph_findings, layer_findings
from search.artifact.intent import Compute, IntendedLayer, Wiring, intended_layers, wire
from search.artifact.session import open_model, optimized_graph
from search.errors import AuditFailed, BadSubmission
from search.graph import Graph

SCHEMA_VERSION = 1
_ALIASES = {"onnxruntime": "onnxruntime_cpu"}


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
    if runtime == "openvino":
        loaded = open_model(model, runtime, threads, session_options)
        try:
            return _compare(wiring, loaded.executed_ops(), None, runtime, {}, expected, graph)
        finally:
            loaded.close()
    if runtime not in ("onnxruntime_cpu", "fake"):
        raise BadSubmission(
            f"no runtime {runtime!r} to audit", hint="runtimes are onnxruntime and openvino", code="runtime_unknown"
        )
    options = SESSION_OPTIONS if session_options is None else session_options
    optimized = optimized_graph(model, threads, options)
    return _compare(wiring, [], optimized, runtime, options, expected, graph)


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
    executed: Sequence[ExecutedOp],
    optimized: onnx.ModelProto | None,
    runtime: str,
    options: Mapping[str, str],
    expected: Mapping[str, str] | None,
    graph: Graph | None,
) -> Audit:
    intended = intended_layers(wiring)
    matched = match_ops(wiring, intended, weighted_ops(executed, optimized))
    names = _graph_names(graph, intended)
    findings: list[Finding] = []
    rows = []
    for index, layer in enumerate(intended):
        name = names.get(index, layer.name)
        ran = matched[index]
        rows.append(_row(name, layer, ran))
        findings += layer_findings(name, wiring, layer, ran, options, on_onnxruntime=optimized is not None)
    if expected is not None and graph is not None:
        findings += decision_findings(graph, expected, {names[index]: intended[index] for index in names})
    if optimized is not None:
        explained = {finding.layer for finding in findings}
        findings += graph_findings(wiring, optimized, intended, names, explained)
        ops = Counter(node.op_type for node in optimized.graph.node)
    else:
        ops = Counter(op.op_type for op in executed)
    return Audit(runtime, tuple(rows), tuple(findings), dict(ops))


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


def _graph_names(graph: Graph | None, intended: list[IntendedLayer]) -> dict[int, str]:
    """The graph's layer names for intended layers, by position: node names survive export, else outputs do.

    Where neither does, the weight tells; layers that share one are taken in the order of the file.
    """
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
        if name is not None and name not in found.values():
            found[index] = name
    for index, written in enumerate(intended):
        if index not in found:
            stem = written.weight
            while stem and stem not in weights:
                stem = stem.rpartition(".")[0]
            name = next((owner for owner in weights.get(stem, ()) if owner not in found.values()), None)
            if name is not None:
                found[index] = name
    return found
