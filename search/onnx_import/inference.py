"""Inference: ONNX's checker and shape inference on a model without its weights, with what they may cost bounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import onnx
from onnx import helper

from search.onnx_import.checks import rejected
from search.onnx_import.external_data import element_count
from search.onnx_import.limits import Limits

_SMALL_ELEMENTS = 4096
# Data propagation keeps one protobuf entry (about 80 bytes) per element of a vector it follows.
_PROPAGATED_ELEMENTS = 1_000_000
_NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization"})
_Errors = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError, MemoryError)


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
        _check_normalized_axes(small)
        inferred = infer(small, strict=True, limits=limits)
    except _Errors as error:
        raise rejected(f"the model is not valid ONNX: {_first_line(error)}") from error
    _check_tensor_sizes(inferred, limits)


def infer(small: onnx.ModelProto, *, strict: bool, limits: Limits) -> onnx.ModelProto:
    """Shape inference with data propagation, as far as that is safe.

    Propagating data follows the elements of vectors, so a chain of Concat(x, x) makes it allocate without end (40 of
    them: 2^49 elements). A first pass without it finds such sizes; the second runs only when the vectors are short.
    """
    plain = _infer_once(small, strict=strict, data_prop=False)
    _check_tensor_sizes(plain, limits)
    if _propagated_elements(plain) > _PROPAGATED_ELEMENTS:
        return plain
    return _infer_once(small, strict=strict, data_prop=True)


def _infer_once(small: onnx.ModelProto, *, strict: bool, data_prop: bool) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(small, check_type=strict, strict_mode=strict, data_prop=data_prop)
    except onnx.shape_inference.InferenceError as error:
        # Some functions in ONNX's own op definitions do not pass strict inference (MeanVarianceNormalization with its
        # default axes): an error nested below another op is not the model's.
        if str(error).count("(op_type:") < 2:
            raise
        return onnx.shape_inference.infer_shapes(small, check_type=strict, data_prop=data_prop)


def _propagated_elements(inferred: onnx.ModelProto) -> int:
    """An upper bound on the elements of the longest vector that data propagation can follow.

    Of the ops that propagate data only Concat makes vectors longer; tensors of known rank 2 and more carry none.
    """
    longest: dict[str, int] = {}
    for name, dims in _known_dims(inferred).items():
        if dims is not None and len(dims) <= 1:
            longest[name] = max(1, prod(size for size in dims if size is not None))
        elif dims is not None:
            longest[name] = 0
    for node in inferred.graph.node:
        read = [longest.get(name, 1) for name in node.input if name]
        bound = sum(read) if node.op_type == "Concat" else max(read, default=1)
        for name in node.output:
            longest.setdefault(name, bound)
    return max(longest.values(), default=0)


def _known_dims(inferred: onnx.ModelProto) -> Mapping[str, list[int | None] | None]:
    """The dims of every tensor inference knows the rank of; unknown dims are None."""
    found: dict[str, list[int | None] | None] = {}
    graph = inferred.graph
    for info in _infos(graph):
        kind = info.type.tensor_type
        if kind.HasField("shape"):
            found[info.name] = [int(d.dim_value) if d.HasField("dim_value") else None for d in kind.shape.dim]
    found.update((tensor.name, [int(size) for size in tensor.dims]) for tensor in graph.initializer)
    return found


def _infos(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    return [*graph.input, *graph.value_info, *graph.output]


def _check_tensor_sizes(inferred: onnx.ModelProto, limits: Limits) -> None:
    for info in _infos(inferred.graph):
        kind = info.type.tensor_type
        dims = [int(dim.dim_value) for dim in kind.shape.dim if dim.HasField("dim_value")]
        # Python ints: the product of a hostile shape wraps to something small in 64 bits.
        count = prod(max(0, size) for size in dims)
        if count * _item_bytes(kind.elem_type) > limits.tensor_bytes:
            raise rejected(
                f"tensor {info.name[:80]!r} of shape {dims[:8]} exceeds {limits.tensor_bytes} bytes",
                hint="reduce the declared input sizes",
                code="model_too_large",
            )


def _check_normalized_axes(small: onnx.ModelProto) -> None:
    """Inference of LayerNormalization reads past the shape when `axis` is not below the rank, so ranks come first.

    They are found on a copy in which those nodes are Identities, which leave the shape of their first output alike.
    """
    suspects = [node for node in small.graph.node if node.op_type in _NORMALIZATIONS and _axis(node) >= 0]
    if not suspects:
        return
    plain = onnx.ModelProto()
    plain.CopyFrom(small)
    for node in plain.graph.node:
        if node.op_type in _NORMALIZATIONS:
            node.op_type = "Identity"
            del node.input[1:], node.output[1:], node.attribute[:]
    dims = _known_dims(onnx.shape_inference.infer_shapes(plain))
    for node in suspects:
        shape = dims.get(node.input[0])
        if shape is not None and _axis(node) >= len(shape):
            raise rejected(
                f"node {node.name[:80]!r} ({node.op_type}) normalizes axis {_axis(node)} of rank {len(shape)}"
            )


def _axis(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), -1)


def _check_without_output_shapes(small: onnx.ModelProto) -> None:
    """The checker wants a shape on every output, which runtimes do not, so it sees none.

    GroupNormalization of opset 18 was deprecated for that of 21 and still runs everywhere; the checker sees the op of
    the same arity instead.
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(small)
    del shown.graph.output[:]
    if any(18 <= entry.version < 21 for entry in shown.opset_import if not entry.domain):
        for node in shown.graph.node:
            if node.op_type == "GroupNormalization":
                node.op_type = "InstanceNormalization"
                del node.attribute[:]
    onnx.checker.check_model(shown)


def _item_bytes(element_type: int) -> int:
    try:
        return int(helper.tensor_dtype_to_np_dtype(element_type).itemsize)
    except (KeyError, TypeError, ValueError):
        return 1


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] or type(error).__name__
