"""Export: an assembly written into the submitted ONNX as quantize/dequantize pairs that runtimes fuse."""

from __future__ import annotations

import numpy as np
import onnx

from kernels.errors import UnsupportedPrecision
from kernels.precision import Precision
from kernels.recipe import Recipe
from search.artifact.graph_edit import GraphEdit
from search.artifact.layer_patterns import INT4_BITS, reads_static, write_layer
from search.artifact.opset import INT4_OPSET, PER_CHANNEL_OPSET, opset_of, why_not_raisable
from search.assembly import ActivationQuantizer, Assembly
from search.errors import BadSubmission
from search.graph import Graph, Layer, LayerKind

# `fake` computes by a formula; it takes what ONNX Runtime takes.
RUNTIMES = ("onnxruntime_cpu", "openvino", "cuda", "fake")


def export_assembly(graph: Graph, assembly: Assembly, runtime: str) -> onnx.ModelProto:
    """The assembly as a model that `runtime` (a `HardwareProfile.runtime`) runs with its integer kernels.

    An edit of `graph.model`: node and tensor names and the float layers survive; metadata, dead nodes and replaced
    weights are gone; constants that are equal are stored once. Equal inputs give equal bytes. The opset is raised
    only where needed (4-bit types exist from 21 on). Raises `BadSubmission`: `assembly_incomplete` (a quantizer is
    missing), `opset_not_raisable`, `pattern_unsupported`, `runtime_unknown`.
    """
    if runtime not in RUNTIMES:
        raise BadSubmission(
            f"no export for runtime {runtime!r}", hint=f"runtimes are {', '.join(RUNTIMES)}", code="runtime_unknown"
        )
    return _write(graph, assembly, runtime)


def export_simulation(graph: Graph, assembly: Assembly) -> onnx.ModelProto:
    """The same model with everything written out that kernels do inside, to be run without any optimization."""
    return _write(graph, assembly, None)


def quantized_input_name(tensor: str) -> str:
    """The name that a graph input's quantized value has in an exported model."""
    return f"{tensor}.dq"


def why_not(graph: Graph, layer: Layer, precision: Precision, recipe: Recipe | None = None) -> str | None:
    """Why the layer cannot be exported at that precision, as a sentence; None when it can."""
    if layer.unquantized_reason is not None:
        return layer.unquantized_reason
    if precision.is_float:
        return None
    needed = INT4_OPSET if precision.weight_bits <= INT4_BITS or precision.group_size else PER_CHANNEL_OPSET
    reason = why_not_raisable(graph.model, needed)
    if reason is not None:
        return f"{precision} needs ONNX opset {needed}: {reason}"
    if not _is_float32(graph, layer):
        return f"its weight is {graph.constants[layer.weight].dtype}; only float32 layers are written"
    if layer.kind is not LayerKind.LINEAR and (precision.is_dynamic or precision.group_size):
        return f"only linear layers have a {precision} form"
    if recipe is not None and recipe.output_quantized and layer.kind is LayerKind.EMBEDDING:
        return "an embedding has no quantized output"
    return None


def _is_float32(graph: Graph, layer: Layer) -> bool:
    """Whether the node computes in float32: its stored weight is, or the model casts it on the way."""
    if graph.constants[layer.weight].dtype == np.float32:
        return True
    source = graph.nodes[layer.node].inputs[layer.weight_position]
    casts = (node for node in graph.nodes if node.op_type == "Cast" and source in node.outputs)
    return any(node.attributes.get("to") == onnx.TensorProto.FLOAT for node in casts)


def _write(graph: Graph, assembly: Assembly, runtime: str | None) -> onnx.ModelProto:
    candidates = [(graph.layer(name), assembly.candidates[name]) for name in _in_order(graph, assembly)]
    int4 = any(candidate.weight.bits <= INT4_BITS or candidate.weight.group_size for _, candidate in candidates)
    minimum = INT4_OPSET if int4 else PER_CHANNEL_OPSET
    if not candidates and not assembly.output_quantized:
        minimum = opset_of(graph.model)
    edit = GraphEdit(graph.model, minimum)
    for tensor in sorted(assembly.output_quantized):
        _quantize_for_all(edit, _quantizer(assembly, tensor))
    pairs: dict[str, str] = {}
    for layer, candidate in candidates:
        quantizer = None
        if reads_static(candidate.recipe):
            quantizer = _quantizer(assembly, layer.input)
            if layer.input not in assembly.output_quantized:
                if layer.input not in pairs:
                    pairs[layer.input] = _add_pair(edit, layer.input, quantizer)
                node = edit.submitted(graph.nodes[layer.node].outputs[0])
                node.input[layer.input_position] = pairs[layer.input]
        write_layer(edit, graph, layer, candidate, quantizer, runtime=runtime)
    return edit.finish()


def _in_order(graph: Graph, assembly: Assembly) -> list[str]:
    known = [layer.name for layer in graph.layers]
    strangers = sorted(set(assembly.candidates) - set(known))
    if strangers:
        raise BadSubmission(
            f"the assembly has layers that the graph does not: {', '.join(strangers)}",
            hint="assemble for the graph that is exported",
            code="assembly_incomplete",
        )
    return [name for name in known if name in assembly.candidates]


def _quantizer(assembly: Assembly, tensor: str) -> ActivationQuantizer:
    try:
        return assembly.quantizers[tensor]
    except KeyError:
        raise BadSubmission(
            f"the assembly quantizes tensor {tensor!r} but has no quantizer for it",
            hint="calibrate that tensor before assembling",
            code="assembly_incomplete",
        ) from None


def _quantize_for_all(edit: GraphEdit, quantizer: ActivationQuantizer) -> None:
    """Let every reader of the tensor, graph outputs included, see its quantized value."""
    tensor = quantizer.tensor
    if edit.has_producer(tensor):
        # Reader names stay as submitted; the producer writes the float value under a new name.
        raw = edit.fresh(f"{tensor}.float")
        edit.rename_output(edit.submitted(tensor), tensor, raw)
        _add_pair(edit, raw, quantizer, output=tensor)
        return
    readers = edit.readers(tensor)
    output = _add_pair(edit, tensor, quantizer)
    for node, position in readers:
        node.input[position] = output


def _add_pair(edit: GraphEdit, source: str, quantizer: ActivationQuantizer, output: str | None = None) -> str:
    """Q/DQ of `source`; returns the name of the dequantized tensor. Narrow code ranges are clipped in float first."""
    numerics = quantizer.numerics
    if numerics.bits > 8:
        raise UnsupportedPrecision(
            f"tensor {quantizer.tensor!r} has {numerics.bits}-bit activations", hint="at most 8 bits can be written"
        )
    dtype = np.dtype(np.int8 if numerics.signed else np.uint8)
    scale = np.float32(quantizer.scale)
    tensor = quantizer.tensor
    limits = np.iinfo(dtype)
    if (numerics.code_min, numerics.code_max) != (limits.min, limits.max):
        bounds = [np.float32((code - quantizer.zero_point) * scale) for code in (numerics.code_min, numerics.code_max)]
        clipped = edit.fresh(f"{tensor}.clipped")
        low, high = (
            edit.constant(f"{tensor}.{name}", np.asarray(value)) for name, value in zip("lh", bounds, strict=True)
        )
        edit.add("Clip", [source, low, high], [clipped])
        source = clipped
    parameters = [
        edit.constant(f"{tensor}.s", np.asarray(scale)),
        edit.constant(f"{tensor}.z", np.asarray(quantizer.zero_point, dtype=dtype)),
    ]
    codes = edit.fresh(f"{tensor}.q")
    result = output if output is not None else edit.fresh(quantized_input_name(tensor))
    edit.add("QuantizeLinear", [source, *parameters], [codes])
    edit.add("DequantizeLinear", [codes, *parameters], [result])
    return result
