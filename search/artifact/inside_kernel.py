"""What kernels do to activations by themselves, written out as ONNX ops so that a simulation computes it too."""

from __future__ import annotations

from typing import Any

import numpy as np

from search.artifact.graph_edit import GraphEdit


def rows_quantized_inside(edit: GraphEdit, name: str, source: str, width: int, group: int, code_max: int) -> str:
    """`source` as MatMulNBits at accuracy level 4 reads it: int8 per row and weight block, scale = max|x| / 127."""
    prefix = f"{name}.rows"

    def step(op_type: str, inputs: list[str], suffix: str, **attributes: Any) -> str:
        output = edit.fresh(f"{prefix}.{suffix}")
        edit.add(op_type, inputs, [output], **attributes)
        return output

    def whole(suffix: str, *values: int) -> str:
        return edit.constant(f"{prefix}.{suffix}", np.asarray(values, dtype=np.int64))

    shape = step("Shape", [source], "shape")
    leading = step("Slice", [shape, whole("zero", 0), whole("last", -1)], "leading")
    short = -width % group
    padded = source
    if short:
        short_shape = step("Concat", [leading, whole("short", short)], "short_shape", axis=0)
        zeros = step("Expand", [edit.constant(f"{prefix}.0", np.zeros((), np.float32)), short_shape], "padding")
        padded = step("Concat", [source, zeros], "padded", axis=-1)
    blocks_shape = step("Concat", [leading, whole("blocks", -1, group)], "blocks_shape", axis=0)
    blocks = step("Reshape", [padded, blocks_shape], "blocked")
    axis = whole("axis", -1)
    largest = step("ReduceMax", [step("Abs", [blocks], "abs"), axis], "largest", keepdims=1)
    limit = edit.constant(f"{prefix}.code_max", np.asarray(code_max, np.float32))
    scale = step("Div", [largest, limit], "scale")
    one = edit.constant(f"{prefix}.1", np.ones((), np.float32))
    is_zero = step("Equal", [largest, edit.constant(f"{prefix}.0", np.zeros((), np.float32))], "is_zero")
    codes = step("Round", [step("Div", [blocks, step("Where", [is_zero, one, scale], "divisor")], "ratio")], "codes")
    values = step("Mul", [codes, scale], "values")
    flat_shape = step("Concat", [leading, whole("flat", width + short)], "flat_shape", axis=0)
    flat = step("Reshape", [values, flat_shape], "flat_values")
    if not short:
        return flat
    return step("Slice", [flat, whole("zero", 0), whole("width", width), axis], "cut")
