"""Operating shapes: every tensor's shape, and every layer's op shape, at one operating point."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import onnxruntime
import torch

from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape, OpShape
from kernels.operating_point import OperatingPoint
from search.errors import BadSubmission, UnsupportedOp
from search.graph import Graph, Layer, LayerKind, OperatingShapes, TensorInfo
from search.onnx_import.checks import rejected
from search.onnx_import.constants import Array
from search.onnx_import.inference import infer, skeleton
from search.onnx_import.limits import DEFAULT_LIMITS
from search.onnx_import.ops.convolution import same_pads
from search.onnx_import.program import Program, Write

Shape = tuple[int, ...]


def operating_shapes(graph: Graph, point: OperatingPoint) -> OperatingShapes:
    """Shapes with the batch and the named dynamic dimensions of `point`.

    `op_shapes` has every layer whose work `kernels.op_shape` can say: all without an `unquantized_reason`, and
    plain ones with one. Shape inference answers where it can; what it leaves open is found by one run on zeros.
    Raises `BadSubmission`: `dimension_missing` when the point does not give a dynamic dimension, `batch_fixed` when
    the export is fixed to another batch.
    """
    if graph.fixed_batch is not None and point.batch != graph.fixed_batch:
        raise BadSubmission(
            f"the model is exported for a batch of {graph.fixed_batch}; the operating point asks for {point.batch}",
            hint=f"use batch {graph.fixed_batch}, or export with a dynamic batch dimension",
            code="batch_fixed",
        )
    inputs = {info.name: input_shape(info, point) for info in graph.inputs}
    shapes = _inferred(graph, inputs)
    wanted = {name for node in graph.nodes for name in node.outputs if name}
    if wanted - shapes.keys():
        shapes |= _by_running(graph, inputs, wanted)
    for name, array in graph.constants.items():
        shapes[name] = tuple(int(size) for size in array.shape)
    ops = {layer.name: shape for layer in graph.layers if (shape := _op_shape(graph, layer, shapes)) is not None}
    return OperatingShapes(op_shapes=ops, tensor_shapes=shapes)


def input_shape(info: TensorInfo, point: OperatingPoint) -> Shape:
    """A graph input's shape at the point: named dimensions by name, an open first dimension is the batch."""
    named = dict(point.dims)
    shape, missing = [], []
    for axis, size in enumerate(info.shape):
        if isinstance(size, int):
            shape.append(size)
        elif size is not None and size in named:
            shape.append(named[size])
        elif axis == 0:
            shape.append(point.batch)
        else:
            missing.append(size or f"axis {axis}")
            shape.append(1)
    if missing:
        raise BadSubmission(
            f"input {info.name!r} has dynamic dimension(s) {', '.join(missing)} that the operating point does not give",
            hint=f"give a value for each, e.g. {missing[0]}=128",
            code="dimension_missing",
        )
    return tuple(shape)


def _inferred(graph: Graph, inputs: dict[str, Shape]) -> dict[str, Shape]:
    model = skeleton(graph.model)
    for info in model.graph.input:
        if info.name in inputs:
            dims = info.type.tensor_type.shape.dim
            for dim, size in zip(dims, inputs[info.name], strict=True):
                dim.dim_value = size
    try:
        inferred = infer(model, strict=False, limits=DEFAULT_LIMITS)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return dict(inputs)
    shapes = dict(inputs)
    for info in [*inferred.graph.value_info, *inferred.graph.output]:
        kind = info.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[info.name] = tuple(int(dim.dim_value) for dim in kind.shape.dim)
    return shapes


def _by_running(graph: Graph, inputs: dict[str, Shape], wanted: set[str]) -> dict[str, Shape]:
    arrays = {info.name: np.zeros(inputs[info.name], info.dtype) for info in graph.inputs}
    try:
        program = Program(graph)
    except UnsupportedOp:
        return _by_runtime(graph, arrays, wanted)
    found: dict[str, Shape] = {}

    def noted(name: str) -> Write:
        def note(tensor: torch.Tensor) -> torch.Tensor:
            found[name] = tuple(tensor.shape)
            return tensor

        return note

    with torch.no_grad():
        program.run({k: torch.tensor(v) for k, v in arrays.items()}, writes={name: noted(name) for name in wanted})
    return found


def _by_runtime(graph: Graph, arrays: dict[str, Array], wanted: set[str]) -> dict[str, Shape]:
    """Shapes of a model with ops outside the table: ONNX Runtime computes every tensor once."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    declared = {info.name for info in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - declared))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [info.name for info in session.get_outputs()]
        values = session.run(names, arrays)
    except Exception as error:  # the runtime's exceptions share no base class below Exception
        raise rejected(f"ONNX Runtime cannot run the model: {str(error)[:300]}") from error
    return {name: tuple(np.shape(value)) for name, value in zip(names, values, strict=True)}


def _op_shape(graph: Graph, layer: Layer, shapes: dict[str, Shape]) -> OpShape | None:
    node = graph.nodes[layer.node]
    read = shapes[layer.input]
    weight = layer.weight_shape
    has_bias = layer.bias is not None
    if layer.kind is LayerKind.EMBEDDING:
        return EmbeddingShape(tokens=prod(read), rows=weight[0], width=weight[1])
    if layer.kind is LayerKind.LINEAR:
        if len(weight) != 2 or layer.weight_position != 1 or node.attributes.get("transA", 0):
            return None
        k, n = (weight[1], weight[0]) if layer.channel_axis == 0 else weight
        return LinearShape(m=prod(read[:-1]), k=k, n=n, bias=has_bias)
    if layer.kind is LayerKind.CONV and len(weight) in (3, 4):
        spatial = len(weight) - 2
        lead = [1] * (2 - spatial)
        strides = list(node.attributes.get("strides", [1] * spatial))
        dilations = list(node.attributes.get("dilations", [1] * spatial))
        auto = node.attributes.get("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            begins, ends = same_pads(read[2:], weight[2:], strides, dilations, auto == "SAME_LOWER")
        else:
            pads = [0] * (2 * spatial) if auto == "VALID" else list(node.attributes.get("pads", [0] * (2 * spatial)))
            begins, ends = pads[:spatial], pads[spatial:]
        nothing = [0] * (2 - spatial)
        height, width = [*lead, *read[2:]]
        return Conv2dShape(
            batch=read[0],
            in_channels=read[1],
            height=height,
            width=width,
            out_channels=weight[0],
            kernel=_two([*lead, *weight[2:]]),
            stride=_two([*lead, *strides]),
            padding=(*_two([*nothing, *begins]), *_two([*nothing, *ends])),
            dilation=_two([*lead, *dilations]),
            groups=int(node.attributes.get("group", 1)),
            bias=has_bias,
        )
    return None


def _two(values: list[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
