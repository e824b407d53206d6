"""How one quantized layer is written in ONNX so that a runtime fuses it into its integer kernel.

| layer, activations                | written as                                          | ONNX Runtime 1.32 runs |
|-----------------------------------|-----------------------------------------------------|------------------------|
| conv, static                      | DQ(x), DQ(int8 w per channel), DQ(int32 b) → Conv   | QLinearConv            |
| the same with 4-bit weights       | … Cast(int4 w → int8) → DQ …                        | QLinearConv            |
| Gemm, static                      | DQ(x), DQ(int8 w), DQ(int32 b) → Gemm               | QGemm                  |
| MatMul (+ Add), static            | DQ(x), DQ(int8 w) → MatMul (→ Add float b)          | MatMulIntegerToFloat   |
| Gemm or MatMul before ReLU        | the same, always with an Add                        | MatMulIntegerToFloat   |
| linear, dynamic                   | DynamicQuantizeLinear → MatMulInteger → Cast → Mul  | DynamicQuantizeMatMul  |
| linear, float, int4/int8 weights  | DQ(w as (K, N), blocked) → MatMul (→ Add)           | MatMulNBits            |
| embedding                         | Gather(int8 rows), Gather(scale) → Cast → Mul       | the same               |

Forms that look equivalent and are not (each one runs in float): int4 → DQ → Conv; a blocked DQ with two readers or
its initializer shared; a Gemm with transposed blocked weights; a blocked MatMul without bias before a ReLU; a Gemm
whose weight DQ has no zero point; a float bias on Conv or Gemm; scales of shape (1,) around a Clip.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from kernels.recipe import Granularity, Recipe
from search.artifact.graph_edit import GraphEdit
from search.artifact.inside_kernel import rows_quantized_inside
from search.artifact.integer_bias import bias_codes, widen_dead_channels
from search.assembly import ActivationQuantizer, Candidate, QuantizedWeight
from search.errors import BadSubmission
from search.graph import Graph, Layer, LayerKind

Array = np.ndarray[Any, Any]
INT4_BITS = 4


def reads_static(recipe: Recipe) -> bool:
    """True when the graph itself must quantize what the layer reads, with a range fixed by calibration."""
    return recipe.activation is not None and not recipe.activation.dynamic


def emulates_inside(recipe: Recipe) -> bool:
    """True when the kernel quantizes activations that the graph leaves in float."""
    return recipe.activation is None and recipe.internal_activation is not None


def write_layer(
    edit: GraphEdit,
    graph: Graph,
    layer: Layer,
    candidate: Candidate,
    quantizer: ActivationQuantizer | None,
    *,
    runtime: str | None,
) -> None:
    """Replace one layer's weight and bias in `edit`. `quantizer` is that of the tensor it reads (static recipes).

    With `runtime` None, a simulation, what a kernel does to its activations by itself is written out too.
    """
    node = edit.submitted(graph.nodes[layer.node].outputs[0])
    if layer.kind is LayerKind.EMBEDDING:
        _write_embedding(edit, layer, candidate, node)
    elif layer.kind is LayerKind.LINEAR and candidate.recipe.activation is None:
        _write_weight_only(edit, layer, candidate, node, simulate=runtime is None)
    elif layer.kind is LayerKind.LINEAR and not reads_static(candidate.recipe):
        _write_dynamic(edit, layer, candidate, node)
    else:
        _write_static(edit, layer, candidate, node, quantizer)
        if runtime == "openvino" and layer.kind is LayerKind.CONV:
            _stride_before(edit, layer, node)
    if layer.bias is not None and layer.bias.node != layer.node:
        _replace_added_bias(edit, graph, layer, candidate)


def _write_static(
    edit: GraphEdit, layer: Layer, candidate: Candidate, node: onnx.NodeProto, quantizer: ActivationQuantizer | None
) -> None:
    weight, bias = candidate.weight, candidate.bias
    own_bias = layer.bias is None or layer.bias.node == layer.node
    integer_bias = bias is not None and own_bias and node.op_type != "MatMul" and quantizer is not None
    if integer_bias:
        assert bias is not None
        assert quantizer is not None
        weight = widen_dead_channels(weight, bias, quantizer.scale)
    if layer.kind is LayerKind.LINEAR and own_bias and _feeds_relu(edit, node):
        # ONNX Runtime 1.32 runs Gemm → ReLU and MatMul → ReLU in float unless a quantizer follows, MatMul → Add →
        # ReLU always on integers. One form for both, so that a layer's bytes do not depend on its neighbours.
        if bias is None:
            bias = np.zeros(layer.weight_shape[layer.channel_axis], dtype=np.float32)
        elif integer_bias and quantizer is not None:
            codes, scale = bias_codes(weight, bias, quantizer.scale)
            bias = np.asarray(codes * scale, dtype=np.float32)
        codes, scale, zero_point = _as_matmul(node, weight)
        weight = QuantizedWeight(codes, scale, zero_point, 1, weight.bits)
        _to_matmul(edit, layer, node, _dequantized(edit, layer, weight, zero_point=False), bias)
        return
    node.input[layer.weight_position] = _dequantized(edit, layer, weight, zero_point=node.op_type == "Gemm")
    if not own_bias:
        return
    if node.op_type == "MatMul":
        if bias is not None:
            _append_bias(edit, layer, node, bias)
        return
    del node.input[2:]
    if bias is not None:
        exact = quantizer is not None and integer_bias
        node.input.append(_bias_dq(edit, layer, weight, bias, quantizer) if exact else _float_bias(edit, layer, bias))


def _feeds_relu(edit: GraphEdit, node: onnx.NodeProto) -> bool:
    """Whether a ReLU or Clip alone reads the node."""
    readers = edit.readers(node.output[0])
    return len(readers) == 1 and readers[0][0].op_type in ("Relu", "Clip")


def _bias_dq(
    edit: GraphEdit, layer: Layer, weight: QuantizedWeight, bias: Array, quantizer: ActivationQuantizer | None
) -> str:
    assert quantizer is not None
    codes, scale = bias_codes(weight, bias, quantizer.scale)
    prefix = f"{layer.name}.bias"
    output = edit.fresh(f"{prefix}.dequantized")
    codes_name = edit.constant(f"{prefix}.int32", codes)
    edit.add("DequantizeLinear", [codes_name, edit.constant(f"{prefix}.scale", scale)], [output], axis=0)
    return output


def _float_bias(edit: GraphEdit, layer: Layer, bias: Array) -> str:
    return edit.constant(f"{layer.name}.bias.float", bias.astype(np.float32))


def _stride_before(edit: GraphEdit, layer: Layer, node: onnx.NodeProto) -> None:
    """Write a strided 1×1 convolution as MaxPool 1×1 with that stride, then the convolution at stride 1.

    The values are equal. OpenVINO 2026.4 moves the stride of such a convolution above its input's quantizer by
    itself, and then finds no integer pattern any more.
    """
    strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [])
    pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [])
    kernel = layer.weight_shape[2:]
    if max(kernel) > 1 or max(strides, default=1) == 1 or any(pads):
        return
    source = node.input[layer.input_position]
    picked = edit.fresh(f"{layer.name}.strided")
    edit.add("MaxPool", [source], [picked], kernel_shape=list(kernel), strides=strides)
    node.input[layer.input_position] = picked
    for attribute in node.attribute:
        if attribute.name == "strides":
            attribute.ints[:] = [1] * len(strides)


def _append_bias(edit: GraphEdit, layer: Layer, node: onnx.NodeProto, bias: Array) -> None:
    """Put an Add behind a node that has none; the sum takes over the node's output name."""
    output = node.output[0]
    raw = edit.fresh(f"{output}.nobias")
    edit.rename_output(node, output, raw)
    edit.add("Add", [raw, _float_bias(edit, layer, bias)], [output])


def _replace_added_bias(edit: GraphEdit, graph: Graph, layer: Layer, candidate: Candidate) -> None:
    assert layer.bias is not None
    add = edit.submitted(graph.nodes[layer.bias.node].outputs[0])
    bias = candidate.bias
    if bias is None:
        bias = np.zeros(layer.weight_shape[layer.channel_axis], dtype=np.float32)
    add.input[layer.bias.position] = _float_bias(edit, layer, bias)


def _codes(edit: GraphEdit, layer: Layer, weight: QuantizedWeight) -> str:
    """The tensor name of the int8 codes: an initializer, or a Cast of a 4-bit one (half the bytes, same kernel)."""
    if weight.bits > INT4_BITS:
        return edit.constant(f"{layer.weight}.int8", weight.codes)
    packed = edit.constant(f"{layer.weight}.int4", weight.codes, int4=True)
    return edit.once("Cast", packed, [f"{layer.weight}.int8"], to=TensorProto.INT8)[0]


def _dequantized(edit: GraphEdit, layer: Layer, weight: QuantizedWeight, *, zero_point: bool) -> str:
    """The float tensor that a node reads instead of its weight: DQ of int8 codes, per channel or per tensor."""
    if weight.group_size is not None:
        raise BadSubmission(
            f"layer {layer.name!r} has grouped weights and quantized activations",
            hint="no runtime runs that pair; use per-channel weights or float activations",
            code="pattern_unsupported",
        )
    inputs = [_codes(edit, layer, weight), edit.constant(f"{layer.weight}.scale", weight.scale)]
    if weight.zero_point is not None:
        inputs.append(edit.constant(f"{layer.weight}.zero_point", weight.zero_point))
    elif zero_point:
        inputs.append(edit.constant(f"{layer.weight}.zero_point", np.zeros(weight.scale.shape, dtype=np.int8)))
    output = edit.fresh(f"{layer.name}.dequantized")
    axis = {"axis": weight.channel_axis} if weight.scale.ndim else {}
    edit.add("DequantizeLinear", inputs, [output], **axis)
    return output


def _as_matmul(node: onnx.NodeProto, weight: QuantizedWeight) -> tuple[Array, Array, Array | None]:
    """Codes, scales and zero points of a linear layer as a MatMul reads them: (K, N), whatever the node's form was."""
    codes, scale, zero_point = weight.codes, weight.scale, weight.zero_point
    if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
        codes = np.ascontiguousarray(codes.T)
        if scale.ndim == 2:
            scale = np.ascontiguousarray(scale.T)
            zero_point = None if zero_point is None else np.ascontiguousarray(zero_point.T)
    return codes, np.asarray(scale, dtype=np.float32), zero_point


def _to_matmul(edit: GraphEdit, layer: Layer, node: onnx.NodeProto, weight: str, bias: Array | None) -> None:
    """Make `node` (MatMul or Gemm) read `weight` as a MatMul, with the Gemm's own bias as an Add behind it."""
    source = node.input[0]
    del node.input[:]
    node.input.extend([source, weight])
    node.op_type = "MatMul"
    del node.attribute[:]
    if bias is not None and (layer.bias is None or layer.bias.node == layer.node):
        _append_bias(edit, layer, node, bias)


def _write_weight_only(
    edit: GraphEdit, layer: Layer, candidate: Candidate, node: onnx.NodeProto, *, simulate: bool
) -> None:
    weight = candidate.weight
    codes, scale, zero_point = _as_matmul(node, weight)
    int4 = weight.bits <= INT4_BITS
    suffix = "int4" if int4 else "int8"
    inputs = [
        edit.constant(f"{layer.weight}.{suffix}", codes, int4=int4, share=False),
        edit.constant(f"{layer.weight}.scale", scale, share=False),
    ]
    if zero_point is not None:
        inputs.append(edit.constant(f"{layer.weight}.zero_point", zero_point, int4=int4, share=False))
    output = edit.fresh(f"{layer.name}.dequantized")
    if weight.group_size is not None:
        edit.add("DequantizeLinear", inputs, [output], axis=0, block_size=weight.group_size)
    else:
        edit.add("DequantizeLinear", inputs, [output], **({"axis": 1} if scale.ndim else {}))
    bias = candidate.bias
    if bias is None and any(reader.op_type in ("Relu", "Clip") for reader, _ in edit.readers(node.output[0])):
        # ONNX Runtime 1.32 does not fuse MatMul → Relu to MatMulNBits; with an Add between them it does.
        bias = np.zeros(codes.shape[1], dtype=np.float32)
    _to_matmul(edit, layer, node, output, bias)
    inside = candidate.recipe.internal_activation
    if simulate and inside is not None:
        if inside.granularity is not Granularity.ROW or not inside.symmetric:
            raise BadSubmission(
                f"layer {layer.name!r} asks for internal activations that are not symmetric rows",
                hint="only the row-wise form of MatMulNBits is known",
                code="pattern_unsupported",
            )
        group = weight.group_size or codes.shape[0]
        node.input[0] = rows_quantized_inside(edit, layer.name, node.input[0], codes.shape[0], group, inside.code_max)


def _write_dynamic(edit: GraphEdit, layer: Layer, candidate: Candidate, node: onnx.NodeProto) -> None:
    codes, scale, zero_point = _as_matmul(node, candidate.weight)
    source, output = node.input[0], node.output[0]
    quantized, input_scale, input_zero = _dynamic_quantize(edit, source)
    weight = QuantizedWeight(codes, scale, zero_point, 1, candidate.weight.bits)
    inputs = [quantized, _codes(edit, layer, weight), input_zero]
    if zero_point is not None:
        inputs.append(edit.constant(f"{layer.weight}.zero_point", zero_point))
    prefix = layer.name
    integer, as_float, both = (edit.fresh(f"{prefix}.{part}") for part in ("int32", "float", "scale"))
    edit.remove(node)
    matmul = edit.add("MatMulInteger", inputs, [integer])
    matmul.name = node.name or integer
    edit.add("Cast", [integer], [as_float], to=TensorProto.FLOAT)
    edit.add("Mul", [input_scale, edit.constant(f"{layer.weight}.scale", scale)], [both])
    scaled = edit.add("Mul", [as_float, both], [output])
    if candidate.bias is not None and (layer.bias is None or layer.bias.node == layer.node):
        _append_bias(edit, layer, scaled, candidate.bias)


def _dynamic_quantize(edit: GraphEdit, source: str) -> tuple[str, str, str]:
    names = [f"{source}.dynamic.{part}" for part in ("q", "scale", "zero_point")]
    codes, scale, zero = edit.once("DynamicQuantizeLinear", source, names)
    return codes, scale, zero


def _write_embedding(edit: GraphEdit, layer: Layer, candidate: Candidate, node: onnx.NodeProto) -> None:
    weight = candidate.weight
    output, indices = node.output[0], node.input[1]
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    if axis != 0 or weight.group_size is not None or weight.zero_point is not None or weight.codes.ndim != 2:
        raise BadSubmission(
            f"embedding {layer.name!r} is not a symmetric table of rows gathered along axis 0",
            hint="keep the layer in full precision",
            code="pattern_unsupported",
        )
    rows, as_float = edit.fresh(f"{layer.name}.rows"), edit.fresh(f"{layer.name}.float")
    node.input[0] = _codes(edit, layer, weight)
    edit.rename_output(node, output, rows)
    edit.add("Cast", [rows], [as_float], to=TensorProto.FLOAT)
    scale = weight.scale
    if scale.ndim == 1 and weight.channel_axis == 0:
        scale_name = edit.fresh(f"{layer.name}.scale")
        edit.add("Gather", [edit.constant(f"{layer.weight}.scale", scale[:, None]), indices], [scale_name])
    else:
        scale_name = edit.constant(f"{layer.weight}.scale", scale)
    scaled = edit.add("Mul", [as_float, scale_name], [output])
    if candidate.bias is not None:
        _append_bias(edit, layer, scaled, candidate.bias)
