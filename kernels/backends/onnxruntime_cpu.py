"""ONNX Runtime on this CPU: what deploys is what is timed.

What each exported pattern executes as was measured with ONNX Runtime 1.32 and is held by the tests:

| pair                  | written as                                          | executes as           |
|-----------------------|-----------------------------------------------------|-----------------------|
| conv2d w8a8           | DQ → Conv(DQ weight, DQ int32 bias) → Q             | QLinearConv           |
| conv2d w4a8           | the same, int4 weight → Cast(int8) → DQ             | QLinearConv           |
| linear w8a8           | DQ → Gemm(DQ weight, DQ int32 bias)                 | QGemm                 |
| linear w4a8           | the same, int4 weight → Cast(int8) → DQ             | QGemm                 |
| linear w8a8-dynamic   | DynamicQuantizeLinear + MatMulInteger + Cast + Mul  | DynamicQuantizeMatMul |
| linear w4a16-g32      | blocked int4 DQ → MatMul                            | MatMulNBits           |
| embedding w8a16       | Gather codes → Cast → Mul by the gathered row scale | Gather                |
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from kernels.backends.base import Backend, BadModel, ExecutedOp, KernelFallback, LoadedModel, Runnable
from kernels.hardware_profile import HardwareProfile
from kernels.onnx_op import INPUT, OUTPUT, op_model
from kernels.op_shape import OpShape
from kernels.precision import FP32, Precision
from kernels.random_layer import RandomLayer, random_layer

# Each of these passes rewrites what was asked: the first hoists a quantizer above an fp32 MaxPool (1.7x slower), the
# second makes fp32-assigned layers int8, the third turns an integer MatMul + Add into an fp32 Gemm (8x slower).
DISABLED_OPTIMIZERS = ("QDQPropagationTransformer", "WeightBiasQuantization", "MatMulAddFusion")
SESSION_OPTIONS: Mapping[str, str] = {
    "optimization.disable_specified_optimizers": ";".join(DISABLED_OPTIMIZERS),  # a comma would be ignored silently
    "session.qdq_matmulnbits_accuracy_level": "4",
}
_INTEGER_OPS = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger",
     "ConvInteger", "MatMulNBits"}
)  # fmt: skip
_ERROR_LEVEL = 3


class OnnxRuntimeModel(LoadedModel):
    """One inference session on the CPU; a run executes in the calling thread when `threads` is 1."""

    def __init__(self, model: bytes | Path, threads: int, session_options: Mapping[str, str]) -> None:
        self._source = model
        self._options = dict(session_options)
        self._threads = threads
        self._session = self._open(None)
        self.output_names = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        return dict(zip(self.output_names, self._session.run(self.output_names, dict(inputs)), strict=True))

    def executed_ops(self) -> list[ExecutedOp]:
        graph = self.optimized_model.graph
        constants = {tensor.name for tensor in graph.initializer}
        return [
            ExecutedOp(
                name=node.name,
                op_type=node.op_type,
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                weights=tuple(name for name in node.input if name in constants),
                compute="i8" if node.op_type in _INTEGER_OPS else "",
                origins=(node.name,) if node.name else (),
            )
            for node in graph.node
        ]

    @cached_property
    def optimized_model(self) -> onnx.ModelProto:
        """The graph that the session executes; loads the model a second time to have it written."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            self._open(path)
            return onnx.load(path)

    @property
    def session(self) -> onnxruntime.InferenceSession:
        return self._session

    def close(self) -> None:
        del self._session

    def _open(self, optimized_path: Path | None) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERROR_LEVEL
        for key, value in self._options.items():
            options.add_session_config_entry(key, value)
        if optimized_path is not None:
            options.optimized_model_filepath = str(optimized_path)
        source = str(self._source) if isinstance(self._source, Path) else self._source
        try:
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exception classes are private and differ between releases
            raise BadModel(
                f"ONNX Runtime {onnxruntime.__version__} does not load the model: {error}",
                hint="check it with onnx.checker, and that its opset is one this runtime knows",
            ) from error


class OnnxRuntimeOp(Runnable):
    """One op bound to its data through io-binding, so that a run copies nothing."""

    def __init__(self, layer: RandomLayer, loaded: OnnxRuntimeModel, executed_kernel: str) -> None:
        self.layer = layer
        self.executed_kernel = executed_kernel
        self._loaded = loaded
        self._binding = loaded.session.io_binding()
        self._binding.bind_cpu_input(INPUT, layer.input)
        self._binding.bind_output(OUTPUT)

    def run(self) -> None:
        self._loaded.session.run_with_iobinding(self._binding)

    def output(self) -> np.ndarray[Any, Any]:
        self.run()
        result: np.ndarray[Any, Any] = self._binding.copy_outputs_to_cpu()[0]
        return result

    def close(self) -> None:
        del self._binding
        self._loaded.close()


class OnnxRuntimeCpu(Backend):
    """ONNX Runtime's CPU execution provider, bound to the profile whose recipes and session options it uses."""

    name = "onnxruntime_cpu"

    def __init__(self, profile: HardwareProfile) -> None:
        self.profile = profile
        self.version = str(onnxruntime.__version__)

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        return self.profile.why_not(op, precision)

    def build(self, op: OpShape, precision: Precision, threads: int, seed: int = 0) -> OnnxRuntimeOp:
        self.check(op, precision)
        recipe = None if precision == FP32 else self.profile.recipe(op.kind, precision)
        layer = random_layer(op, precision, recipe, seed)
        loaded = self.load_model(op_model(layer), threads)
        executed = loaded.executed_ops()
        expected = self.profile.support[op.kind, precision.name].kernel
        kernel = next((step.op_type for step in executed if step.op_type == expected), None)
        if kernel is None or any(step.op_type == "DequantizeLinear" for step in executed):
            ran = ", ".join(step.op_type for step in executed)
            loaded.close()
            raise KernelFallback(
                f"{op.signature} in {precision} ran as {ran} instead of {expected}",
                hint="this runtime version treats the pattern differently: measure with the version of the profile",
            )
        return OnnxRuntimeOp(layer, loaded, kernel)

    def load_model(
        self, model: bytes | Path, threads: int, session_options: Mapping[str, str] | None = None
    ) -> OnnxRuntimeModel:
        options = self.profile.session_options if session_options is None else session_options
        return OnnxRuntimeModel(model, threads, options)
