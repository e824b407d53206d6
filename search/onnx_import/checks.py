"""Checks: what a parsed ModelProto must satisfy before anything is computed from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import onnx
from onnx import AttributeProto, TensorProto

from search.errors import BadSubmission
from search.onnx_import.external_data import element_count, stored_bytes, tensors_of
from search.onnx_import.limits import EXPORT_RECIPE, Limits

_AXES = frozenset({"axis", "axes", "perm", "batch_axis", "time_axis", "batch_dims"})
_MAX_RANK = 64
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_SUBGRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_UNREAD = (
    AttributeProto.SPARSE_TENSOR,
    AttributeProto.SPARSE_TENSORS,
    AttributeProto.TYPE_PROTO,
    AttributeProto.TYPE_PROTOS,
)


def rejected(message: str, *, hint: str = EXPORT_RECIPE, code: str = "model_rejected") -> BadSubmission:
    return BadSubmission(message, hint=hint, code=code)


def default_opset(model: onnx.ModelProto) -> int:
    """The version of the default domain; raises `BadSubmission` when it is missing, doubled or unknown."""
    versions = [int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(set(versions)) != 1:
        raise rejected(f"the model imports {len(versions)} versions of the default operator set")
    known = onnx.defs.onnx_opset_version()
    if not 1 <= versions[0] <= known:
        raise rejected(f"the model uses operator set {versions[0]}; this program reads 1 to {known}")
    return versions[0]


def check_structure(model: onnx.ModelProto, limits: Limits) -> None:
    """Counts, forbidden constructs and operator names; nothing here looks at data."""
    graph = model.graph
    if not graph.node or not graph.output:
        raise rejected("the model has no nodes or no outputs")
    for count, limit, what in (
        (len(graph.node), limits.nodes, "nodes"),
        (len(graph.initializer), limits.initializers, "initializers"),
    ):
        if count > limit:
            raise rejected(f"the model has {count} {what}, more than {limit}", code="model_too_large")
    if model.functions:
        names = _listed(function.name for function in model.functions)
        raise rejected(
            f"the model defines functions ({names})",
            hint="inline them: onnx.inliner.inline_local_functions(model)",
            code="op_unsupported",
        )
    if graph.sparse_initializer:
        raise rejected("the model has sparse initializers", hint="store them dense", code="op_unsupported")
    _check_nodes(model)
    made = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    made.update(name for node in graph.node for name in node.output)
    for info in graph.output:
        if info.name not in made:
            raise rejected(f"output {info.name[:80]!r} is computed by no node")
    for info in [*graph.input, *graph.output]:
        if info.type.WhichOneof("value") != "tensor_type":
            raise rejected(
                f"{info.name[:80]!r} is no tensor: sequences, maps and optionals are not read", code="op_unsupported"
            )


def _check_nodes(model: onnx.ModelProto) -> None:
    opset = default_opset(model)
    control: Counter[str] = Counter()
    foreign: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    known: dict[str, bool] = {}
    for node in model.graph.node:
        op = node.op_type[:80]
        if node.domain not in ("", "ai.onnx"):
            foreign[f"{node.domain[:80]}::{op}"] += 1
            continue
        if op not in known:
            known[op] = onnx.defs.has(op) and _has_version(op, opset)
        if not known[op]:
            unknown[op] += 1
        if _is_control(op) or any(_holds_graph(attribute) for attribute in node.attribute):
            control[op] += 1
        _check_native_bounds(node)
        for attribute in node.attribute:
            if attribute.type in _UNREAD or attribute.ref_attr_name:
                raise rejected(
                    f"node {node.name[:80]!r} ({op}) has attribute {attribute.name[:80]!r} of an unread type"
                )
    if control:
        raise rejected(
            f"the model has control flow or sequences: {_listed(control)}",
            hint="export without data-dependent branches and loops (the traced path is enough)",
            code="op_unsupported",
        )
    if foreign:
        raise rejected(
            f"the model has operators of other domains: {_listed(foreign)}",
            hint="export with standard operators only, and submit the model before a runtime optimized it",
            code="op_unsupported",
        )
    if unknown:
        raise rejected(f"operators unknown to operator set {opset}: {_listed(unknown)}", code="op_unsupported")


def _is_control(op: str) -> bool:
    return (
        op in _CONTROL_FLOW
        or op.startswith(("Sequence", "Optional"))
        or (op.endswith("Sequence") and op != "ReverseSequence")
    )


def _check_native_bounds(node: onnx.NodeProto) -> None:
    """Refuse what crashes onnx's shape inference (1.23) instead of failing in it: both found by the structural fuzz."""
    for attribute in node.attribute:
        if attribute.name in _AXES and any(not -_MAX_RANK <= value <= _MAX_RANK for value in _ints(attribute)):
            raise rejected(f"node {node.name[:80]!r} ({node.op_type[:80]}) has {attribute.name} {_ints(attribute)[:8]}")
        if attribute.name == "num_outputs" and attribute.i != len(node.output):
            raise rejected(f"node {node.name[:80]!r} has {len(node.output)} outputs and num_outputs {attribute.i}")


def _ints(attribute: AttributeProto) -> list[int]:
    return [int(attribute.i), *(int(value) for value in attribute.ints)]


def _holds_graph(attribute: AttributeProto) -> bool:
    return attribute.type in _SUBGRAPHS or attribute.HasField("g") or bool(attribute.graphs)


def _has_version(op: str, opset: int) -> bool:
    try:
        onnx.defs.get_schema(op, opset)
    except onnx.defs.SchemaError:
        return False
    return True


def _listed(names: Iterable[str]) -> str:
    found = sorted(set(names))
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def check_sizes(model: onnx.ModelProto, limits: Limits) -> None:
    """Element counts of initializers against the limits, and their bytes against what their dims promise."""
    total = 0
    for tensor in tensors_of(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise rejected(
                f"initializer {tensor.name[:80]!r} is stored outside the model",
                hint="load the model from a folder that holds its data file",
                code="external_data_missing",
            )
        total += element_count(tensor)
        if total > limits.parameters:
            raise rejected(f"the model has more than {limits.parameters} parameters", code="model_too_large")
        if tensor.data_type == TensorProto.STRING:
            continue
        wanted = stored_bytes(tensor)
        if wanted > limits.tensor_bytes:
            raise rejected(f"initializer {tensor.name[:80]!r} takes {wanted} bytes", code="model_too_large")
        if tensor.HasField("raw_data") and len(tensor.raw_data) != wanted:
            raise rejected(
                f"initializer {tensor.name[:80]!r} of dims {list(tensor.dims)[:8]} needs {wanted} bytes, "
                f"it has {len(tensor.raw_data)}"
            )
