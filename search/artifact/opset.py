"""Raising a model's opset in place, because 4-bit integer types exist only from opset 21 on.

`onnx.version_converter` rebuilds the graph through its own intermediate form and refuses ops it has no adapter for.
Between opset 13 and 21 very few ops changed their meaning, so those few are rewritten here and everything else
keeps its bytes; the converter is the fallback for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from search.errors import BadSubmission

PER_CHANNEL_OPSET = 13
INT4_OPSET = 21
INT4_IR_VERSION = 10
_DEFAULT_DOMAINS = ("", "ai.onnx")

_REDUCE_AXES_BECAME_INPUT = 18
_REDUCE_OPS = frozenset(
    ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
     "ReduceSumSquare")
)  # fmt: skip
_SPLIT_NEEDS_COUNT = 18
_GRID_SAMPLE_MODES = (20, {b"bilinear": b"linear", b"bicubic": b"cubic"})
_ROI_ALIGN_DEFAULT_CHANGED = 16
# Ops whose meaning changed at that opset in a way that is left to onnx.version_converter.
_LEFT_TO_CONVERTER = {"DFT": 20}
# Scale and bias went from one per group to one per channel; the converter leaves them as they are, silently wrong.
_NOT_RAISABLE = {"GroupNormalization": 21}


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default operator set."""
    return max((entry.version for entry in model.opset_import if entry.domain in _DEFAULT_DOMAINS), default=1)


def why_not_raisable(model: onnx.ModelProto, target: int) -> str | None:
    """Why the model cannot be brought to opset `target`, as a sentence; None when it can (or is there already)."""
    version = opset_of(model)
    if version >= target:
        return None
    stuck = _crossed(model, _NOT_RAISABLE, version, target)
    if stuck:
        return f"opset {version} cannot be raised to {target}: {', '.join(sorted(stuck))} changed in between"
    left = _needs_converter(model, version, target)
    if not left:
        return None
    try:
        _convert(model, target)
    except (RuntimeError, ValueError, IndexError) as error:
        ops = ", ".join(sorted(left))
        return f"opset {version} cannot be raised to {target}: {ops} changed in between ({str(error).splitlines()[0]})"
    return None


def raise_opset(model: onnx.ModelProto, target: int) -> onnx.ModelProto:
    """`model` at opset `target` or later: changed in place where possible, else a converted copy.

    Raises `BadSubmission` (`opset_not_raisable`) when an op in it has no equivalent there.
    """
    version = opset_of(model)
    if version >= target:
        return model
    reason = why_not_raisable(model, target)
    if reason is not None:
        raise BadSubmission(
            reason, hint=f"export the model again at opset {target} or later", code="opset_not_raisable"
        )
    if _needs_converter(model, version, target):
        return _convert(model, target)
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain in _DEFAULT_DOMAINS:
                _rewrite(model.graph, node, version, target)
    for entry in model.opset_import:
        if entry.domain in _DEFAULT_DOMAINS:
            entry.version = target
    model.ir_version = max(model.ir_version, INT4_IR_VERSION if target >= INT4_OPSET else 7)
    return model


def _convert(model: onnx.ModelProto, target: int) -> onnx.ModelProto:
    converted = version_converter.convert_version(model, target)
    converted.ir_version = max(converted.ir_version, INT4_IR_VERSION if target >= INT4_OPSET else 7)
    return converted


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _ops(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for graph in _graphs(model.graph) for node in graph.node if node.domain in _DEFAULT_DOMAINS}


def _crossed(model: onnx.ModelProto, changes: Mapping[str, int], version: int, target: int) -> set[str]:
    return {op for op in _ops(model) if op in changes and version < changes[op] <= target}


def _needs_converter(model: onnx.ModelProto, version: int, target: int) -> set[str]:
    if version < PER_CHANNEL_OPSET:
        return _ops(model)
    return _crossed(model, _LEFT_TO_CONVERTER, version, target)


def _rewrite(main: onnx.GraphProto, node: onnx.NodeProto, version: int, target: int) -> None:
    def crosses(changed: int) -> bool:
        return version < changed <= target

    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type in _REDUCE_OPS and "axes" in attributes and crosses(_REDUCE_AXES_BECAME_INPUT):
        name = f"{node.output[0]}.axes"
        axes = np.asarray(list(attributes["axes"].ints), dtype=np.int64)
        main.initializer.append(numpy_helper.from_array(axes, name))
        node.input.append(name)
        node.attribute.remove(attributes["axes"])
    elif node.op_type == "Split" and len(node.input) == 1 and crosses(_SPLIT_NEEDS_COUNT):
        node.attribute.append(onnx.helper.make_attribute("num_outputs", len(node.output)))
    elif node.op_type == "GridSample" and crosses(_GRID_SAMPLE_MODES[0]) and "mode" in attributes:
        mode = attributes["mode"]
        mode.s = _GRID_SAMPLE_MODES[1].get(mode.s, mode.s)
    elif (
        node.op_type == "RoiAlign"
        and crosses(_ROI_ALIGN_DEFAULT_CHANGED)
        and "coordinate_transformation_mode" not in attributes
    ):
        node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "output_half_pixel"))
