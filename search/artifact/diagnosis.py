"""Diagnosis: why ONNX Runtime ran a layer in float although the file asks for integers, in words.

Every rule is a pattern that ONNX Runtime 1.32 was seen not to fuse; the tests hold each of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from search.artifact.intent import INT4_TYPES, Compute, IntendedLayer, Wiring, activation_reader

_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 256
_BIAS_SCALE_TOLERANCE = 1e-4
DISABLE_KEY = "optimization.disable_specified_optimizers"


def why_float(wiring: Wiring, layer: IntendedLayer, session_options: Mapping[str, str]) -> str:
    """The first known reason that applies, as the end of a sentence."""
    if layer.compute is Compute.WEIGHT_ONLY:
        return _why_not_weight_only(wiring, layer, session_options)
    node = layer.node
    stored = wiring.initializers[layer.weight]
    if stored.data_type in INT4_TYPES and not any(_op(wiring, name) == "Cast" for name in layer.weight_names):
        return "its 4-bit weight reaches the op without a Cast to int8"
    if node.op_type == "MatMul":
        return _why_not_matmul(wiring, layer, session_options)
    reason = _bias_reason(wiring, layer)
    if node.op_type == "Gemm":
        if any(_op(wiring, name) == "DequantizeLinear" and len(wiring.producers[name].input) < 3
               for name in layer.weight_names):  # fmt: skip
            return "the weight of a Gemm needs a zero point, even a zero one"
        return reason or _relu_reason(wiring, node) or "the runtime did not fuse the pattern"
    return reason or _output_reason(wiring, node) or "the runtime did not fuse the pattern"


def _why_not_matmul(wiring: Wiring, layer: IntendedLayer, session_options: Mapping[str, str]) -> str:
    reader = wiring.only_reader(layer.node.output[0])
    disabled = session_options.get(DISABLE_KEY, "").split(";")
    if reader is not None and reader.op_type == "Add" and "MatMulAddFusion" not in disabled:
        return "MatMulAddFusion made it a float Gemm: disable that optimizer in the session options"
    return _relu_reason(wiring, layer.node) or "the runtime did not fuse the pattern"


def _why_not_weight_only(wiring: Wiring, layer: IntendedLayer, session_options: Mapping[str, str]) -> str:
    node = layer.node
    if node.op_type in ("Conv", "ConvTranspose", "Gather"):
        return f"{node.op_type} has no kernel for quantized weights with float activations"
    dequantize = next(wiring.producers[name] for name in layer.weight_names if _op(wiring, name) == "DequantizeLinear")
    if len(wiring.readers.get(layer.weight, [])) > 1 or len(wiring.readers.get(dequantize.output[0], [])) > 1:
        return "its stored weight has more than one reader"
    if layer.weight_names[0] != dequantize.output[0]:
        return "a node stands between the dequantized weight and the op"
    if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
        return "its weight is stored transposed (transB)"
    block = next((attribute.i for attribute in dequantize.attribute if attribute.name == "block_size"), 0)
    if block and (block & (block - 1) or not _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK):
        return f"its group size {block} is not a power of two from {_SMALLEST_BLOCK} to {_LARGEST_BLOCK}"
    disabled = session_options.get(DISABLE_KEY, "").split(";")
    if "MatMulAddFusion" not in disabled:
        return "MatMulAddFusion took it apart: disable that optimizer in the session options"
    reader = wiring.only_reader(node.output[0])
    if reader is not None and reader.op_type in ("Relu", "Clip"):
        return "a ReLU or Clip follows without a bias between them"
    return "the runtime did not fuse the pattern"


def _relu_reason(wiring: Wiring, node: onnx.NodeProto) -> str | None:
    """A Gemm, or a MatMul without Add, followed by ReLU or Clip needs a quantizer behind that."""
    reader = wiring.only_reader(node.output[0])
    if reader is None or reader.op_type not in ("Relu", "Clip"):
        return None
    quantizer = wiring.only_reader(reader.output[0])
    if quantizer is not None and quantizer.op_type == "QuantizeLinear":
        return None
    return f"its {reader.op_type} has no quantizer behind it; write it as MatMul + Add"


def _bias_reason(wiring: Wiring, layer: IntendedLayer) -> str | None:
    node = layer.node
    if len(node.input) < 3 or not node.input[2]:
        return None
    bias = wiring.producers.get(node.input[2])
    if bias is None or bias.op_type != "DequantizeLinear":
        return "its bias is float; it must be int32 behind a DequantizeLinear"
    expected, given = _scale(wiring, activation_reader(wiring, layer)), _scale(wiring, node.input[2])
    weight = next(
        (_scale(wiring, name) for name in layer.weight_names if _op(wiring, name) == "DequantizeLinear"), None
    )
    if expected is None or given is None or weight is None:
        return None
    product = np.broadcast_to(expected * weight, given.shape) if given.ndim else expected * weight
    if not np.allclose(given, product, rtol=_BIAS_SCALE_TOLERANCE, atol=0):
        return "the scale of its bias is not input scale × weight scale"
    return None


def _output_reason(wiring: Wiring, node: onnx.NodeProto) -> str | None:
    """What is wrong behind a convolution: it needs one quantizer there, with at most a ReLU or Clip between."""
    reader = wiring.only_reader(node.output[0])
    if reader is None:
        return "its output has other readers than one quantizer"
    if reader.op_type == "QuantizeLinear":
        return None
    if reader.op_type not in ("Relu", "Clip"):
        return f"{reader.op_type} reads its output before any quantizer does"
    quantizer = wiring.only_reader(reader.output[0])
    if quantizer is None or quantizer.op_type != "QuantizeLinear":
        return f"no quantizer follows its {reader.op_type}"
    scale, zero_point = _constant(wiring, quantizer.input[1]), _constant(wiring, quantizer.input[2])
    if scale is None or zero_point is None:
        return None
    limits = np.iinfo(np.int8 if zero_point.dtype == np.int8 else np.uint8)
    if reader.op_type == "Relu" and int(zero_point.item()) != limits.min:
        return f"behind a ReLU the zero point must be {limits.min}, not {int(zero_point.item())}"
    if reader.op_type == "Clip":
        if scale.ndim:
            return "around a Clip the scale must be a scalar, not of shape (1,)"
        bound = _constant(wiring, reader.input[2]) if len(reader.input) > 2 and reader.input[2] else None
        top = (limits.max - int(zero_point.item())) * float(scale)
        if bound is not None and top > float(bound.item()) * (1 + 1e-6):
            return f"the quantized range reaches {top:.4g}, beyond the Clip at {float(bound.item()):.4g}"
        if int(zero_point.item()) != limits.min:
            return f"behind a Clip from 0 the zero point must be {limits.min}, not {int(zero_point.item())}"
    return None


def _op(wiring: Wiring, tensor: str) -> str:
    node = wiring.producers.get(tensor)
    return str(node.op_type) if node is not None else ""


def _constant(wiring: Wiring, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    tensor = wiring.initializers.get(name)
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    return np.asarray(numpy_helper.to_array(tensor))


def _scale(wiring: Wiring, tensor: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
    node = wiring.producers.get(tensor)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    found = _constant(wiring, node.input[1])
    return None if found is None else found.astype(np.float64)
