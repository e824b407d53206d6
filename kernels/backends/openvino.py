"""OpenVINO on this CPU.

What each exported pattern executes as was measured with OpenVINO 2026.4 and is held by the tests:

| pair             | written as                                   | executes as                                       |
|------------------|----------------------------------------------|---------------------------------------------------|
| conv2d w8a8      | DQ → Conv(DQ weight) → Q                     | Convolution, integer                              |
| conv2d w4a8      | the same, int4 weight → Cast(int8) → DQ      | Convolution, integer                              |
| linear w8a8      | Q → DQ → Gemm(DQ weight)                     | FullyConnected, integer                           |
| linear w4a8      | the same, int4 weight → Cast(int8) → DQ      | FullyConnected, integer                           |
| linear w4a16-g32 | blocked int4 DQ → MatMul                     | FullyConnected on i4 weights, rows int8 per group |
| embedding w8a16  | Gather codes → Cast → Mul by the row scale   | Gather of i8                                      |

A static linear op is recognized by the quantizer *before* it: fed with codes it runs on float products, so its rows
include quantizing the input. DynamicQuantizeLinear + MatMulInteger runs in float and is not offered. On CPUs with
bfloat16 units the default silently computes full precision in bfloat16, so one profile asks for `f32` by name and
another for `bf16`; the integer kernels are the same in both, to the bit.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino

from kernels.backends.base import Backend, BadModel, ExecutedOp, KernelFallback, LoadedModel, Runnable
from kernels.hardware_profile import HardwareProfile
from kernels.onnx_op import INPUT, op_feed, op_model
from kernels.op_shape import OpShape
from kernels.precision import FP32, Precision
from kernels.random_layer import RandomLayer, random_layer

SESSION_OPTIONS: Mapping[str, str] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "NUM_STREAMS": "1",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
}
BF16_SESSION_OPTIONS: Mapping[str, str] = {**SESSION_OPTIONS, "INFERENCE_PRECISION_HINT": "bf16"}
_NOT_WORK = frozenset({"Input", "Output", "Const"})
_FLOAT_COMPUTE = frozenset({"f32", "f16", "bf16"})
_WEIGHT_TYPES = frozenset({"i4", "u4", "i8", "u8"})


class OpenVinoModel(LoadedModel):
    """One compiled model with one stream; a run executes in the calling thread when `threads` is 1."""

    def __init__(self, model: bytes | Path, threads: int, session_options: Mapping[str, str]) -> None:
        config = {**session_options, "INFERENCE_NUM_THREADS": str(threads)}
        try:
            self.output_names = _output_names(model)
            core = openvino.Core()
            graph = core.read_model(io.BytesIO(model) if isinstance(model, bytes) else str(model))
            self._compiled = core.compile_model(graph, "CPU", config)
        except Exception as error:  # the runtime raises RuntimeError, protobuf and onnx their own for damaged files
            raise BadModel(
                f"OpenVINO {openvino.__version__} does not load the model: {error}",
                hint="check it with onnx.checker, and that its opset is one this runtime knows",
            ) from error
        self._request = self._compiled.create_infer_request()

    @property
    def request(self) -> Any:
        return self._request

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        found = self._request.infer(dict(inputs), share_inputs=True)
        return {name: np.array(found[index]) for index, name in enumerate(self.output_names)}

    def executed_ops(self) -> list[ExecutedOp]:
        nodes = self._compiled.get_runtime_model().get_ordered_ops()
        constants = {node.get_friendly_name(): node for node in nodes if _info(node, "layerType") == "Const"}
        return [_executed(node, constants) for node in nodes if _info(node, "layerType") not in _NOT_WORK]

    def close(self) -> None:
        del self._request
        del self._compiled


class OpenVinoOp(Runnable):
    """One op whose input stays bound to the request between runs."""

    def __init__(self, layer: RandomLayer, loaded: OpenVinoModel, feed: np.ndarray[Any, Any], kernel: str) -> None:
        self.layer = layer
        self.executed_kernel = kernel
        self._feed = feed
        self._loaded = loaded
        self._request = loaded.request
        self._request.set_tensor(INPUT, openvino.Tensor(feed, shared_memory=True))

    def run(self) -> None:
        self._request.infer()

    def output(self) -> np.ndarray[Any, Any]:
        self.run()
        return np.array(self._request.get_output_tensor(0).data)

    def close(self) -> None:
        del self._request
        self._loaded.close()


class OpenVino(Backend):
    """OpenVINO's CPU plugin, bound to the profile whose recipes and session options it uses."""

    name = "openvino"

    def __init__(self, profile: HardwareProfile) -> None:
        self.profile = profile
        self.version = str(openvino.__version__)

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        return self.profile.why_not(op, precision)

    def build(self, op: OpShape, precision: Precision, threads: int, seed: int = 0) -> OpenVinoOp:
        self.check(op, precision)
        recipe = None if precision == FP32 else self.profile.recipe(op.kind, precision)
        layer = random_layer(op, precision, recipe, seed)
        loaded = self.load_model(op_model(layer, float_linear_input=True), threads)
        expected = self.profile.support[op.kind, precision.name].kernel
        executed = loaded.executed_ops()
        if expected not in {kernel_name(step) for step in executed}:
            ran = ", ".join(kernel_name(step) for step in executed)
            loaded.close()
            raise KernelFallback(
                f"{op.signature} in {precision} ran as {ran} instead of {expected}",
                hint="this CPU or runtime version treats the pattern differently from the profile",
            )
        return OpenVinoOp(layer, loaded, op_feed(layer, float_linear_input=True)[INPUT], expected)

    def load_model(
        self, model: bytes | Path, threads: int, session_options: Mapping[str, str] | None = None
    ) -> OpenVinoModel:
        options = self.profile.session_options if session_options is None else session_options
        return OpenVinoModel(model, threads, options)


def kernel_name(step: ExecutedOp) -> str:
    """Layer type and arithmetic as profiles name OpenVINO's kernels: `Convolution:i8`, `FullyConnected:i4-weights`."""
    return f"{step.op_type}:{step.compute}" if step.compute else step.op_type


def _executed(node: Any, constants: Mapping[str, Any]) -> ExecutedOp:
    sources = [port.get_source_output().get_node() for port in node.inputs()]
    kind = _info(node, "layerType")
    return ExecutedOp(
        name=node.get_friendly_name(),
        op_type=kind,
        inputs=tuple(source.get_friendly_name() for source in sources),
        outputs=(node.get_friendly_name(),),
        weights=tuple(found for source in sources if (found := _constant_behind(source, constants))),
        compute=_compute(kind, _info(node, "primitiveType"), _info(node, "runtimePrecision")),
        origins=tuple(name for name in _info(node, "originalLayersNames").split(",") if name),
    )


def _compute(kind: str, primitive: str, precision: str) -> str:
    """`brgconv_avx512_amx_I8` computes in i8; an f32 primitive whose precision is i4 widens its weights."""
    arithmetic = primitive.rpartition("_")[2].lower()
    if kind == "FullyConnected" and arithmetic in _FLOAT_COMPUTE and precision in _WEIGHT_TYPES:
        return f"{precision}-weights"
    return arithmetic


def _constant_behind(node: Any, constants: Mapping[str, Any]) -> str | None:
    """The constant that a node is, or that a chain of layout changes before it starts from."""
    while node.get_friendly_name() not in constants:
        if _info(node, "layerType") not in {"Transpose", "Reshape", "Reorder", "Convert"} or not node.inputs():
            return None
        node = node.input(0).get_source_output().get_node()
    return str(node.get_friendly_name())


def _info(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def _output_names(model: bytes | Path) -> list[str]:
    """Outputs as the ONNX file names them; the compiled model may know an output by several tensor names."""
    proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)
    return [output.name for output in proto.graph.output]
