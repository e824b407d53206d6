"""Reading: from a submitted file to a checked Graph."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper, numpy_helper

from search.errors import BadSubmission
from search.graph import Graph, Layer, Node, TensorInfo
from search.onnx_import.checks import check_sizes, check_structure, default_opset, rejected
from search.onnx_import.constants import Array, fold_filled
from search.onnx_import.external_data import load_external_data
from search.onnx_import.file_format import foreign_format
from search.onnx_import.inference import check_inference
from search.onnx_import.layers import clean_name, find_layers
from search.onnx_import.limits import DEFAULT_LIMITS, EXPORT_RECIPE, Limits
from search.onnx_import.ops.constant import constant_array

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_SCOPES_CHARACTERS = 10_000


def load_graph(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> Graph:
    """The graph of an ONNX file, with external data from the same folder.

    Raises `BadSubmission` with code `model_format_unsupported` (not ONNX), `model_rejected` (damaged or invalid),
    `model_too_large`, `op_unsupported` (control flow, functions, foreign domains), `external_data_missing`,
    `external_data_escapes`, `input_type_unsupported` or `nan_weights`. Standard ops that have no differentiable form
    load fine; only `Program` refuses them. Memory and time of a hostile file are bounded by the limits, not made small:
    read files of strangers in a process with a memory limit.
    """
    path = Path(path)
    if not path.is_file():
        raise BadSubmission(f"{path.name!r} is not a file", hint="give the path of an .onnx file", code="model_missing")
    size = path.stat().st_size
    if size > limits.upload_bytes:
        raise rejected(f"the file has {size} bytes, more than {limits.upload_bytes}", code="model_too_large")
    if kind := foreign_format(path):
        raise rejected(f"{path.name!r} is {kind}, not an ONNX model", code="model_format_unsupported")
    content = path.read_bytes()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise rejected(
            f"{path.name!r} is damaged, truncated or not an ONNX model", code="model_format_unsupported"
        ) from error
    if not model.HasField("graph") or not model.opset_import:
        raise rejected(f"{path.name!r} holds no ONNX graph", code="model_format_unsupported")
    sha256 = hashlib.sha256(content).hexdigest()
    del content
    check_structure(model, limits)
    external = load_external_data(model, path.parent, limits)
    if external:
        sha256 = hashlib.sha256((sha256 + external).encode()).hexdigest()
    graph = graph_from_model(model, sha256=sha256, limits=limits)
    _check_inputs(graph.inputs)
    return graph


def graph_from_model(model: onnx.ModelProto, *, sha256: str = "", limits: Limits = DEFAULT_LIMITS) -> Graph:
    """The graph of a ModelProto in memory (no external data), with the checks and errors of `load_graph`.

    Inputs may be of any type here: a `Program` runs what no dataset file can hold, such as bfloat16. `sha256` is the
    file's hash; without a file the content hash stands in for it.
    """
    check_structure(model, limits)
    check_sizes(model, limits)
    check_inference(model, limits)
    constants = _constants(model)
    nodes = tuple(_node(index, proto) for index, proto in enumerate(model.graph.node))
    for node in nodes:
        if node.op_type == "Constant" and (value := constant_array(node.attributes)) is not None:
            constants[node.outputs[0]] = value
    try:
        fold_filled(nodes, constants)
    except (TypeError, ValueError) as error:
        raise rejected(f"constants cannot be expanded: {error}") from error
    outputs = tuple(_tensor_info(info) for info in model.graph.output)
    scopes = {index: names for index, proto in enumerate(model.graph.node) if (names := _scopes(proto))}
    try:
        found = find_layers(nodes, constants, [info.name for info in outputs], scopes)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise rejected(f"a weight's constants cannot be computed: {error}") from error
    _check_finite(constants, found.layers, nodes)
    inputs = tuple(_tensor_info(info) for info in model.graph.input if info.name not in constants)
    fixed_batch = _fixed_batch(inputs)
    opset = default_opset(model)
    content_hash = _content_hash(opset, nodes, constants, inputs, outputs, found.layers)
    return Graph(
        model=model,
        sha256=sha256 or content_hash,
        content_hash=content_hash,
        opset=opset,
        inputs=inputs,
        outputs=outputs,
        nodes=nodes,
        constants=constants,
        layers=found.layers,
        unquantized=found.unquantized,
        notes=_notes(nodes, fixed_batch),
        fixed_batch=fixed_batch,
    )


def _check_inputs(inputs: Sequence[TensorInfo]) -> None:
    """Refuse inputs whose samples no dataset can hold."""
    for info in inputs:
        if info.dtype.kind not in "fiub":
            kind = "strings" if info.dtype.kind == "O" else str(info.dtype)
            raise rejected(
                f"input {clean_name(info.name)[:80]!r} holds {kind}",
                hint="export the part of the model that takes numbers: float16 to float64, integers or booleans",
                code="input_type_unsupported",
            )


def _constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Initializers as arrays; of several with one name the last counts, as in ONNX Runtime."""
    constants: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.STRING:
            continue
        constants[tensor.name] = _array(tensor)
    return constants


def _array(tensor: onnx.TensorProto) -> Array:
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (KeyError, TypeError, ValueError) as error:
        raise rejected(
            f"initializer {clean_name(tensor.name)[:80]!r} of dims {list(tensor.dims)[:8]} cannot be read: {error}"
        ) from error


def _node(index: int, proto: onnx.NodeProto) -> Node:
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        try:
            value = helper.get_attribute_value(attribute)
        except ValueError as error:
            raise rejected(f"attribute {attribute.name[:80]!r} of node {index} cannot be read: {error}") from error
        if isinstance(value, onnx.TensorProto):
            value = value if value.data_type == onnx.TensorProto.STRING else _array(value)
        elif isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            value = list(value)
        elif attribute.type == onnx.AttributeProto.STRINGS:
            value = [item.decode("utf-8", "replace") for item in value]
        attributes[attribute.name] = value
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    return Node(index, proto.name, proto.op_type, domain, tuple(proto.input), tuple(proto.output), attributes)


def _tensor_info(info: onnx.ValueInfoProto) -> TensorInfo:
    kind = info.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except (KeyError, TypeError, ValueError) as error:
        raise rejected(f"{clean_name(info.name)[:80]!r} has unknown element type {kind.elem_type}") from error
    shape: list[int | str | None] = []
    for dim in kind.shape.dim:
        if dim.HasField("dim_value"):
            shape.append(int(dim.dim_value))
        else:
            shape.append(clean_name(dim.dim_param) or None)
    return TensorInfo(info.name, dtype, tuple(shape))


def _scopes(proto: onnx.NodeProto) -> list[str]:
    """The module path that the exporter recorded for a node, outermost first, without the op's own name."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == _SCOPES_KEY), "")
    if not text or len(text) > _SCOPES_CHARACTERS:
        return []
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    if not isinstance(names, list):
        return []
    return [name for name in names[:-1] if isinstance(name, str) and name]


def _fixed_batch(inputs: tuple[TensorInfo, ...]) -> int | None:
    """The batch size the export is fixed to: the first dimension of every input that has one, when all are ints."""
    first = [info.shape[0] for info in inputs if info.shape]
    sizes = {size for size in first if isinstance(size, int)}
    if not first or len(sizes) != 1 or len(first) != sum(isinstance(size, int) for size in first):
        return None
    return sizes.pop()


def _check_finite(constants: Mapping[str, Array], layers: tuple[Layer, ...], nodes: tuple[Node, ...]) -> None:
    """NaN is an error anywhere; infinity is one in weights and biases only (attention masks hold −inf)."""
    strict = {layer.weight for layer in layers}
    strict.update(nodes[layer.bias.node].inputs[layer.bias.position] for layer in layers if layer.bias)
    broken = []
    for name, value in constants.items():
        if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
            continue
        checked = value.astype(np.float32) if value.dtype.name == "bfloat16" else value
        ok = np.isfinite(checked).all() if name in strict else not np.isnan(checked).any()
        if not ok:
            broken.append(clean_name(name)[:80])
    if broken:
        shown = ", ".join(repr(name) for name in broken[:8]) + (
            f" and {len(broken) - 8} more" if len(broken) > 8 else ""
        )
        raise BadSubmission(
            f"NaN or infinite values in {shown}",
            hint="the checkpoint is damaged or training diverged: export a healthy one",
            code="nan_weights",
        )


def _notes(nodes: tuple[Node, ...], fixed_batch: int | None) -> tuple[str, ...]:
    kinds = {node.op_type for node in nodes}
    notes = []
    if "Conv" in kinds and "BatchNormalization" not in kinds:
        notes.append("No BatchNormalization in the graph: exporters fold it into the convolutions before it.")
    if fixed_batch is not None:
        notes.append(f"The export is fixed to a batch of {fixed_batch}: it is run in chunks of {fixed_batch}.")
    if kinds & {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}:
        notes.append("The submitted model is already partly quantized; its own quantizers are kept.")
    return tuple(notes)


def _content_hash(
    opset: int,
    nodes: tuple[Node, ...],
    constants: Mapping[str, Array],
    inputs: tuple[TensorInfo, ...],
    outputs: tuple[TensorInfo, ...],
    layers: tuple[Layer, ...],
) -> str:
    """A hash of what is computed and how layers are called; blind to producer, doc strings, metadata, node names."""
    content = hashlib.sha256(f"opset {opset}".encode())

    def add_array(value: Array) -> None:
        content.update(f"{value.dtype.name}{value.shape}".encode())
        content.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)

    for info in (*inputs, *outputs):
        content.update(repr((info.name, info.dtype.name, info.shape)).encode())
    for node in nodes:
        content.update(repr((node.op_type, node.domain, node.inputs, node.outputs)).encode())
        for name, attribute in sorted(node.attributes.items()):
            content.update(name.encode())
            if isinstance(attribute, np.ndarray):
                add_array(attribute)
            else:
                content.update(repr(attribute).encode())
    for name in sorted(constants):
        content.update(name.encode("utf-8", "replace"))
        add_array(constants[name])
    content.update(repr([layer.name for layer in layers]).encode())
    return content.hexdigest()


__all__ = ["EXPORT_RECIPE", "graph_from_model", "load_graph"]
