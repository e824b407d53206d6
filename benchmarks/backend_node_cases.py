"""ONNX backend node tests: one tiny model per behaviour of an op, with inputs and expected outputs.

They ship as code in the `onnx` package. A case belongs to the op of its only node; cases with several nodes (ops
expanded into primitive ones) are kept under `EXPANDED`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from search.errors import SearchError, UnsupportedOp
from search.graph import Graph
from search.onnx_import import Program, graph_from_model
from search.onnx_import.ops import OPS
from search.onnx_import.ops.table import to_torch

EXPANDED = "(several ops)"

# What is out of scope, by name pattern, and why. Everything else of a listed op must pass.
EXCLUSIONS: tuple[tuple[str, str], ...] = (
    (r"test_cast(like)?_.*_to_FLOAT8E.*", "casts to 8-bit floats: torch computes no 8-bit floats"),
    (r"test_cast(like)?_.*_to_FLOAT4E2M1.*", "casts to 4-bit floats: torch computes no 4-bit floats"),
    (r"test_quantizelinear_(e4m3fn|e5m2|float4e2m1).*", "codes in 8- and 4-bit floats: recipes here are integers"),
    (r"test_training_dropout(?!_zero_ratio).*", "dropout in training mode is random"),
    (r"test_batchnorm_.*_training_mode", "batch normalization in training mode changes its own statistics"),
    (r"test_equal_string.*", "string tensors"),
    (r"test_identity_(sequence|opt)", "sequences and optionals are refused at the door"),
    (r"test_bitwise_not_3d", "complement of uint16, which is computed as int32"),
)
_HALF_ULPS = {"float16": 2e-3, "bfloat16": 2**-7}


@dataclass(frozen=True)
class NodeCase:
    """One backend test: the model, and (inputs, expected outputs) in the model's order."""

    name: str
    op: str
    model: onnx.ModelProto
    data: tuple[tuple[list[Any], list[Any]], ...]
    relative: float
    absolute: float

    @property
    def op_types(self) -> set[str]:
        return {node.op_type for node in self.model.graph.node}

    @property
    def excluded(self) -> str | None:
        return next((why for pattern, why in EXCLUSIONS if re.fullmatch(pattern, self.name)), None)


@cache
def node_cases() -> tuple[NodeCase, ...]:
    """Every backend node test of the installed onnx package, in its order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generating expected values divides by zero on purpose
        from onnx.backend.test.case import node

        found = node.collect_testcases(None)
    cases = []
    for case in found:
        nodes = case.model.graph.node
        op = nodes[0].op_type if len(nodes) == 1 and "_expanded" not in case.name else EXPANDED
        cases.append(NodeCase(case.name, op, case.model, tuple(case.data_sets), case.rtol, case.atol))
    return tuple(cases)


def listed_cases() -> tuple[NodeCase, ...]:
    """The cases whose every op is in the op table and that no exclusion names."""
    return tuple(case for case in node_cases() if case.op_types <= OPS.keys() and case.excluded is None)


def failure(case: NodeCase) -> str | None:
    """Why the importer fails a case; None when every output has the expected shape, type and values.

    Half-precision cases are computed in float32, so they are held to about one unit in the last place of theirs.
    """
    try:
        graph = graph_from_model(case.model)
        wide = any(info.dtype == np.float64 for info in (*graph.inputs, *graph.outputs))
        program = Program(graph, dtype=torch.float64 if wide else torch.float32)
        for inputs, expected in case.data:
            found = _run(program, graph, inputs)
            for info, want in zip(graph.outputs, expected, strict=True):
                if why := _difference(found[info.name], _array(want), info.dtype.name, case, _tolerance(graph)):
                    return f"output {info.name}: {why}"
    except SearchError as error:
        return str(error)
    return None


def _run(program: Program, graph: Graph, inputs: Iterable[Any]) -> dict[str, torch.Tensor]:
    feed = {}
    for info, value in zip(graph.inputs, inputs, strict=True):
        tensor = to_torch(_array(value), program.dtype)
        if tensor is None:
            raise UnsupportedOp(f"input {info.name!r} has type {info.dtype}, which torch does not compute")
        feed[info.name] = tensor
    with torch.no_grad():
        return program.run(feed)


def _array(value: Any) -> np.ndarray[Any, Any]:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _tolerance(graph: Graph) -> float:
    names = {info.dtype.name for info in (*graph.inputs, *graph.outputs)}
    names |= {array.dtype.name for array in graph.constants.values()}
    if any(node.attributes.get("to") == onnx.TensorProto.BFLOAT16 for node in graph.nodes):
        names.add("bfloat16")
    return max((_HALF_ULPS.get(name, 0.0) for name in names), default=0.0)


def _difference(
    found: torch.Tensor, want: np.ndarray[Any, Any], type_name: str, case: NodeCase, tolerance: float
) -> str | None:
    have = found.numpy()
    if have.shape != want.shape:
        return f"shape {have.shape}, expected {want.shape}"
    is_float = "float" in want.dtype.name
    if is_float != (have.dtype.kind == "f") or (want.dtype == np.bool_) != (have.dtype == np.bool_):
        return f"type {have.dtype}, expected {type_name}"
    if want.dtype.kind not in "fiub":  # ml_dtypes
        want = want.astype(np.float32 if is_float else np.int64)
    if not is_float:
        return None if np.array_equal(have, want) else f"{have.ravel()[:4]}, expected {want.ravel()[:4]}"
    relative, absolute = max(case.relative, tolerance), max(case.absolute, tolerance)
    if np.allclose(have, want.astype(have.dtype), rtol=relative, atol=absolute, equal_nan=True):
        return None
    return f"{have.ravel()[:4]}, expected {want.ravel()[:4]}"
