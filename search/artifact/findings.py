"""Findings: the rules by which executed ops are compared with what a file asks for and with what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from kernels.precision import Precision
from search.artifact.diagnosis import why_float
from search.artifact.executed import WeightedOp
from search.artifact.intent import Compute, IntendedLayer, Wiring
from search.graph import Graph, LayerKind


@dataclass(frozen=True)
class Finding:
    """One thing that is not as asked. `layer` is None for what concerns no single layer.

    | code                    | meaning                                                        |
    |-------------------------|----------------------------------------------------------------|
    | `quantized_ran_float`   | integers were asked for, float products ran                    |
    | `float_ran_int8`        | float was asked for, an integer kernel ran                     |
    | `other_kernel`          | quantized, but by another arithmetic than asked for            |
    | `weight_dequantized`    | a stored integer weight or bias is widened to float every run  |
    | `integer_max_pool`      | a MaxPool reads 8-bit integers in NCHW, slower than in float   |
    | `extra_boundary`        | more tensors are quantized at run time than the file asks for  |
    | `not_as_planned`        | the file itself asks for another precision than was decided    |
    | `layer_not_found`       | a layer's op is not among the executed ones                    |
    """

    code: str
    layer: str | None
    sentence: str


def layer_findings(
    name: str,
    wiring: Wiring,
    layer: IntendedLayer,
    ran: list[WeightedOp],
    options: Mapping[str, str],
    *,
    on_onnxruntime: bool,
) -> list[Finding]:
    if not ran:
        if layer.compute is Compute.FLOAT:
            return []  # merged or folded: nothing was lost
        return [Finding("layer_not_found", name, f"{name}: its {layer.node.op_type} is not among the executed ops")]
    compute, op = ran[0].compute, ran[0].op_type
    if compute is layer.compute:
        return []
    if layer.compute is Compute.FLOAT:
        why = "an optimizer quantized it without calibration; disable WeightBiasQuantization"
        return [Finding("float_ran_int8", name, f"{name} is float in the file and ran as {op}: {why}")]
    if compute is Compute.FLOAT:
        why = why_float(wiring, layer, options) if on_onnxruntime else "the runtime did not fuse the pattern"
        asked = f"{layer.bits}-bit {'weights' if layer.compute is Compute.WEIGHT_ONLY else 'integer products'}"
        return [Finding("quantized_ran_float", name, f"{name} asks for {asked} and ran as float {op}: {why}")]
    why = f": {why_float(wiring, layer, options)}" if on_onnxruntime else ""
    return [
        Finding(
            "other_kernel",
            name,
            f"{name} asks for {layer.compute.value} arithmetic and ran as {op} ({compute.value}){why}",
        )
    ]


def decision_findings(graph: Graph, expected: Mapping[str, str], written: Mapping[str, IntendedLayer]) -> list[Finding]:
    findings = []
    for name, precision_name in expected.items():
        precision, layer = Precision(precision_name), graph.layer(name)
        found = written.get(name)
        if found is None:
            if not precision.is_float:
                findings.append(Finding("layer_not_found", name, f"{name}: decided {precision}, but not in the file"))
            continue
        if precision.is_float:
            wanted, bits = Compute.FLOAT, 32
        else:
            widened = precision.is_weight_only and layer.kind is not LayerKind.EMBEDDING
            wanted = Compute.WEIGHT_ONLY if widened else Compute.INT8
            bits = 4 if precision.weight_bits <= 4 else 8
        if (found.compute, found.bits) != (wanted, bits):
            findings.append(
                Finding(
                    "not_as_planned",
                    name,
                    f"{name}: decided {precision}, the file asks for {found.compute.value}, {found.bits}-bit weights",
                )
            )
    return findings


def graph_findings(
    wiring: Wiring,
    optimized: onnx.ModelProto,
    intended: list[IntendedLayer],
    names: Mapping[int, str],
    explained: set[str | None],
) -> list[Finding]:
    """What ONNX Runtime's own graph shows besides the layers: widened constants, integer pools, extra quantizers."""
    findings = []
    types = {tensor.name: tensor.data_type for tensor in optimized.graph.initializer}
    owner = {
        tensor: names.get(index, layer.name)
        for index, layer in enumerate(intended)
        for tensor in (*layer.weight_names, *layer.bias_names)
    }
    producers = {name: node for node in optimized.graph.node for name in node.output}
    for node in optimized.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in types:
            layer = owner.get(node.input[0])
            if layer not in explained or layer is None:
                where = f"{layer}: " if layer else ""
                findings.append(
                    Finding(
                        "weight_dequantized", layer, f"{where}constant {node.input[0]!r} is widened to float every run"
                    )
                )
                explained.add(layer)
        if node.op_type == "MaxPool" and node.domain == "" and _is_integer(node.input[0], producers):
            findings.append(
                Finding(
                    "integer_max_pool",
                    None,
                    f"MaxPool {node.name or node.output[0]!r} runs on 8-bit integers in NCHW, slower than in float: "
                    "disable QDQPropagationTransformer",
                )
            )
    quantizers = [node for node in optimized.graph.node if node.op_type == "QuantizeLinear"]
    asked, ran = _asked_quantizers(wiring), sum(not _requantizes(node, producers) for node in quantizers)
    if ran > asked and not explained - {None}:
        findings.append(
            Finding("extra_boundary", None, f"{ran} tensors are quantized at run time, the file needs only {asked}")
        )
    return findings


def _is_integer(tensor: str, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether an 8-bit tensor, through layout changes, comes from a quantizer or an integer kernel."""
    node = producers.get(tensor)
    while node is not None and node.op_type in ("Transpose", "Reshape", "MaxPool"):
        node = producers.get(node.input[0])
    return node is not None and node.op_type in ("QuantizeLinear", "QLinearConv", "QLinearAdd")


def _requantizes(quantizer: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether it restores codes behind a layout change: the layout optimizer writes such pairs, values stay equal."""
    node = producers.get(quantizer.input[0])
    return node is not None and node.op_type == "Transpose" and _made_by(producers, node.input[0], "DequantizeLinear")


def _made_by(producers: Mapping[str, onnx.NodeProto], tensor: str, op_type: str) -> bool:
    node = producers.get(tensor)
    return node is not None and node.op_type == op_type


def _asked_quantizers(wiring: Wiring) -> int:
    """Quantizers the file needs at run time: all but those that integer convolutions absorb."""
    absorbed = 0
    nodes = [node for node in wiring.model.graph.node if node.op_type == "QuantizeLinear"]
    for node in nodes:
        source = wiring.producers.get(node.input[0])
        if source is not None and source.op_type in ("Relu", "Clip"):
            source = wiring.producers.get(source.input[0])
        if source is not None and source.op_type == "Conv":
            inputs = (wiring.producers.get(name) for name in source.input[:2])
            absorbed += all(made is not None and made.op_type == "DequantizeLinear" for made in inputs)
    return len(nodes) - absorbed
