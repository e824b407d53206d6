"""Checks: what a parsed ModelProto must satisfy before anything is computed from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod

import onnx
from onnx import AttributeProto, TensorProto, helper

from search.errors import BadSubmission
from search.onnx_import.external_data import element_count, stored_bytes, tensors_of
from search.onnx_import.limits import EXPORT_RECIPE, Limits

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_SMALL_ELEMENTS = 4096
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
        if _is_control(op) or any(attribute.type in _SUBGRAPHS for attribute in node.attribute):
            control[op] += 1
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


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its large initializers (they become graph inputs): small enough to check and to infer."""
    small = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = small.graph
    graph.name = "skeleton"
    # Declared shapes of results are dropped: exporters leave stale ones, and inference finds them anyway.
    graph.output.extend(
        helper.make_tensor_value_info(o.name, o.type.tensor_type.elem_type, None) for o in model.graph.output
    )
    for node in model.graph.node:
        if node.op_type == "Constant" and _large_constant(node):
            graph.input.append(helper.make_tensor_value_info(node.output[0], *_typed(node.attribute[0].t)))
        else:
            graph.node.append(node)
    latest = {tensor.name: tensor for tensor in model.graph.initializer}
    graph.input.extend(info for info in model.graph.input if info.name not in latest)
    for name, tensor in latest.items():
        if element_count(tensor) <= _SMALL_ELEMENTS:
            graph.initializer.append(tensor)
        graph.input.append(helper.make_tensor_value_info(name, *_typed(tensor)))
    return small


def _typed(tensor: onnx.TensorProto) -> tuple[int, list[int]]:
    return tensor.data_type, [int(size) for size in tensor.dims]


def _large_constant(node: onnx.NodeProto) -> bool:
    return (
        len(node.attribute) == 1
        and node.attribute[0].HasField("t")
        and len(node.output) == 1
        and element_count(node.attribute[0].t) > _SMALL_ELEMENTS
    )


def check_inference(model: onnx.ModelProto, limits: Limits) -> None:
    """ONNX's own checker and strict shape inference on the skeleton, then every tensor's size from the result."""
    small = skeleton(model)
    try:
        _check_without_output_shapes(small)
        inferred = _infer(small)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise rejected(f"the model is not valid ONNX: {_first_line(error)}") from error
    for info in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        kind = info.type.tensor_type
        dims = [int(dim.dim_value) for dim in kind.shape.dim if dim.HasField("dim_value")]
        count = prod(max(0, size) for size in dims)
        if count > limits.tensor_bytes // 8 and count * _item_bytes(kind.elem_type) > limits.tensor_bytes:
            raise rejected(
                f"tensor {info.name[:80]!r} of shape {dims[:8]} exceeds {limits.tensor_bytes} bytes",
                hint="reduce the declared input sizes",
                code="model_too_large",
            )


def _infer(small: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(small, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        # Some functions in ONNX's own op definitions do not pass strict inference (MeanVarianceNormalization with its
        # default axes): an error nested below another op is not the model's.
        if str(error).count("(op_type:") < 2:
            raise
        return onnx.shape_inference.infer_shapes(small, check_type=True, data_prop=True)


def _check_without_output_shapes(small: onnx.ModelProto) -> None:
    """The checker wants a shape on every output, which runtimes do not, so it sees none."""
    shown = onnx.ModelProto()
    shown.CopyFrom(small)
    del shown.graph.output[:]
    onnx.checker.check_model(shown)


def _item_bytes(element_type: int) -> int:
    try:
        return int(helper.tensor_dtype_to_np_dtype(element_type).itemsize)
    except (KeyError, TypeError, ValueError):
        return 1


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] or type(error).__name__
