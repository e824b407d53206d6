"""Fake backend: computes by the reference and takes as long as a formula says, on a clock of its own.

It makes measuring repeatable to the nanosecond, for tests and for trying the program out; its latencies mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from kernels import recipes
from kernels.backends.base import Backend, BadModel, ExecutedOp, LoadedModel, Runnable
from kernels.device_identity import DeviceIdentity
from kernels.hardware_profile import HardwareProfile, KernelSupport
from kernels.interleaving import Protocol
from kernels.op_shape import OpShape
from kernels.precision import FP32, Precision
from kernels.random_layer import RandomLayer, random_layer
from kernels.recipe import Recipe
from kernels.reference import expected_output
from kernels.stopwatch import CountedClock

FAKE_DEVICE = DeviceIdentity(kind="cpu", name="fake", cores=64, memory_bytes=1 << 34, isa=("avx512f", "amx_int8"))
_CALL_US = 2.0
_MODEL_US = 10.0
_NODE_US = 1.0
_MACS_PER_US = 50_000.0
_WEIGHT_BYTES_PER_US = 5_000.0
_ELEMENTS_PER_US = 10_000.0
_ANCHOR_NS = 10_000
_SERIAL_SHARE = 0.1


class FakeClock(CountedClock):
    """The fake device's time."""

    name = "fake"


def fake_profile() -> HardwareProfile:
    """`fake`: the recipes of `cpu-local` on no device at all."""
    rows: dict[tuple[str, str], Recipe | None] = {
        ("conv2d", "fp32"): None,
        ("conv2d", "w8a8"): recipes.conv_recipe(8),
        ("conv2d", "w4a8"): recipes.conv_recipe(4),
        ("linear", "fp32"): None,
        ("linear", "w8a8"): recipes.linear_recipe(8),
        ("linear", "w8a8-dynamic"): recipes.linear_dynamic_recipe(),
        ("linear", "w4a8"): recipes.linear_recipe(4),
        ("linear", "w4a16-g32"): recipes.LINEAR_W4_GROUPS_INT8_INSIDE,
        ("embedding", "fp32"): None,
        ("embedding", "w8a16"): recipes.EMBEDDING_W8,
    }
    return HardwareProfile(
        slug="fake",
        device=FAKE_DEVICE,
        runtime="fake",
        runtime_version="1",
        support={(kind, name): KernelSupport(f"fake_{kind}_{name}") for kind, name in rows},
        recipes={pair: recipe for pair, recipe in rows.items() if recipe is not None},
        measurable_here=True,
    )


def fake_latency_us(op: OpShape, precision: Precision, threads: int) -> float:
    """Microseconds of one call: a constant, products, weight bytes and output elements, shared by the threads."""
    bits = max(precision.weight_bits, min(precision.activation_bits, 8)) if not precision.is_float else 32
    work = op.macs * bits / 32 / _MACS_PER_US
    moved = op.weight_count * precision.weight_bits / 8 / _WEIGHT_BYTES_PER_US if op.macs else 0.0
    share = _SERIAL_SHARE + (1 - _SERIAL_SHARE) / threads
    return _CALL_US + (work + moved + op.output_elements / _ELEMENTS_PER_US) * share


class FakeOp(Runnable):
    """An op that computes by the reference and advances the fake clock."""

    def __init__(self, layer: RandomLayer, kernel: str, clock: FakeClock, latency_us: float) -> None:
        self.layer = layer
        self.executed_kernel = kernel
        self._clock = clock
        self._latency_us = latency_us

    def run(self) -> None:
        self._clock.advance_us(self._latency_us)

    def output(self) -> np.ndarray[Any, Any]:
        self.run()
        return expected_output(self.layer)


class FakeModel(LoadedModel):
    """A model run node by node as submitted, whose time is a sum over its nodes and weight bytes."""

    def __init__(self, model: bytes | Path, clock: FakeClock) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
            source = model if isinstance(model, bytes) else str(model)
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exception classes are private and differ between releases
            raise BadModel(f"the model does not load: {error}", hint="check it with onnx.checker") from error
        self._clock = clock
        weight_bytes = sum(len(onnx.numpy_helper.to_array(t).tobytes()) for t in self._proto.graph.initializer)
        nodes = len(self._proto.graph.node)
        self.latency_us = _MODEL_US + _NODE_US * nodes + weight_bytes / _WEIGHT_BYTES_PER_US

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        self._clock.advance_us(self.latency_us)
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def executed_ops(self) -> list[ExecutedOp]:
        constants = {tensor.name for tensor in self._proto.graph.initializer}
        return [
            ExecutedOp(
                name=node.name,
                op_type=node.op_type,
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                weights=tuple(name for name in node.input if name in constants),
                origins=(node.name,) if node.name else (),
            )
            for node in self._proto.graph.node
        ]

    def close(self) -> None:
        del self._session


class FakeBackend(Backend):
    """The backend; one fake clock serves everything it builds."""

    name = "fake"
    version = "1"
    protocol = Protocol(warmup_us=0.0, min_samples=30, max_samples=30)

    def __init__(self, profile: HardwareProfile) -> None:
        self.profile = profile
        self.fake_clock = FakeClock()

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        return self.profile.why_not(op, precision)

    def build(self, op: OpShape, precision: Precision, threads: int, seed: int = 0) -> FakeOp:
        self.check(op, precision)
        recipe = None if precision == FP32 else self.profile.recipe(op.kind, precision)
        layer = random_layer(op, precision, recipe, seed)
        kernel = self.profile.support[op.kind, precision.name].kernel
        return FakeOp(layer, kernel, self.fake_clock, fake_latency_us(op, precision, threads))

    def load_model(
        self, model: bytes | Path, threads: int, session_options: Mapping[str, str] | None = None
    ) -> FakeModel:
        return FakeModel(model, self.fake_clock)

    def clock(self, threads: int) -> FakeClock:
        return self.fake_clock

    @property
    def anchor(self) -> Callable[[], None]:
        return lambda: self.fake_clock.advance_us(_ANCHOR_NS / 1_000)
