"""CUDA backend: our kernels on this machine's GPU, beside what libraries offer; a row is the fastest that is right.

Every pair is given to all contenders. Each one is checked on a sample of its output and gets a first impression in all
of its tiles; the fastest is then timed by the full protocol under the cache mode asked for. A row names it, and lists
what the others took. What a contender cannot run, or computes wrongly, is left out and the reason kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from kernels.backends.base import Backend, LoadedModel, OpFailed, Runnable, TimedOp
from kernels.backends.cuda_boundaries import overhead_arms
from kernels.backends.cuda_contender import Contender, Prepared
from kernels.backends.cuda_device import CudaDevice, DeviceClock, OutOfDeviceMemory
from kernels.backends.cuda_driver import translated
from kernels.backends.cuda_timing import (
    PROTOCOL,
    Copies,
    GraphOp,
    anchor_work,
    capture,
    copies_for,
    first_impression_us,
    repeats_for,
)
from kernels.errors import BackendUnavailable, CompilationFailed, UnsupportedPrecision
from kernels.hardware_profile import HardwareProfile
from kernels.latency_table import RowScope
from kernels.op_shape import OpShape
from kernels.precision import Precision
from kernels.random_layer import RandomLayer, random_layer
from kernels.spot_check import Sample, sample

LEFT_OUT = (OpFailed, UnsupportedPrecision, CompilationFailed)
"""What one contender may do without ending the comparison; `DeviceLost` ends it."""


class CudaOp(Runnable):
    """One op by its fastest contender."""

    def __init__(self, prepared: Prepared, variant: str, kernel: str, clock: DeviceClock) -> None:
        self.layer = prepared.layer
        self.executed_kernel = kernel
        self._prepared = prepared
        self._variant = variant
        self._graph = capture(prepared, variant, Copies(1, 1), 1)
        self._clock = clock

    def run(self) -> None:
        self._clock.advance_us(self._graph.replay_us())

    def output(self) -> np.ndarray[Any, Any]:
        written = self._prepared.enqueue(self._variant, 0, 0)
        self._prepared.device.synchronize()
        return self._prepared.rows(written)


class Cuda(Backend):
    """The backend over one device. `reasons` keeps why a contender was left out, by (signature, precision).

    `trying` is entered with a kernel's name around its first launches on an op: what takes a device along is known.
    """

    name = "cuda"
    scope = RowScope.KERNEL
    protocol = PROTOCOL

    def __init__(
        self,
        profile: HardwareProfile,
        device: CudaDevice,
        contenders: Sequence[Contender],
        trying: Callable[[str], AbstractContextManager[None]] = lambda kernel: nullcontext(),
    ) -> None:
        self.profile = profile
        self.device = device
        self.contenders = tuple(contenders)
        self.trying = trying
        self.version = profile.runtime_version
        self.reasons: dict[tuple[str, str], dict[str, str]] = {}
        self._clock = DeviceClock()
        self._anchor: Callable[[], None] | None = None

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        reasons = [f"{each.name} {reason}" for each in self.contenders if (reason := each.why_not(op, precision))]
        return "; ".join(reasons) if len(reasons) == len(self.contenders) else None

    def build(self, op: OpShape, precision: Precision, threads: int, seed: int = 0) -> CudaOp:
        prepared, variant, kernel, _ = self._fastest(op, precision, seed, Copies(1, 1))
        return CudaOp(prepared, variant, kernel, self._clock)

    def timed(self, op: OpShape, precision: Precision, threads: int, seed: int, cache: str) -> TimedOp | None:
        copies = copies_for(op, precision, self.profile.device.l2_bytes, cache)
        prepared, variant, kernel, tried = self._fastest(op, precision, seed, copies)
        repeats = repeats_for(tried[kernel], copies)
        graph = capture(prepared, variant, copies, repeats)
        return GraphOp(graph, repeats, self._clock, kernel, tried, holds=prepared)

    def load_model(
        self, model: bytes | Path, threads: int, session_options: Mapping[str, str] | None = None
    ) -> LoadedModel:
        raise BackendUnavailable(
            "the CUDA runtime assembles networks from a graph, it does not load ONNX files",
            hint="search.latency.cuda_network builds one; deploy the file with a runtime that reads it",
        )

    def clock(self, threads: int) -> DeviceClock:
        return self._clock

    @property
    def anchor(self) -> Callable[[], None]:
        if self._anchor is None:
            self._anchor = anchor_work(self.device, self._clock)
        return self._anchor

    def overheads(self) -> Mapping[tuple[str, str], Callable[[], TimedOp]]:
        return overhead_arms(self.device, self._clock)

    def circumstances(self) -> dict[str, Any]:
        device = {"uuid_hash": self.device.uuid_hash, "arch": self.device.arch, **self.device.telemetry()}
        return {**device, "missing": dict(self.missing)} if self.missing else device

    @property
    def missing(self) -> Mapping[str, str]:
        return {each.name: each.missing for each in self.contenders if each.missing}

    def layer(self, op: OpShape, precision: Precision, seed: int) -> RandomLayer:
        """Random numbers of a pair in the profile's own recipe; float precisions have none."""
        recipe = None if precision.is_float else self.profile.recipe(op.kind, precision)
        return random_layer(op, precision, recipe, seed)

    def _fastest(
        self, op: OpShape, precision: Precision, seed: int, copies: Copies
    ) -> tuple[Prepared, str, str, dict[str, float]]:
        """The best contender's data, variant and name, and the first impression of every one."""
        self.check(op, precision)
        layer = self.layer(op, precision, seed)
        expected = sample(layer, seed)
        reasons = self.reasons.setdefault((op.signature, precision.name), {})
        codes: set[str] = set()  # not the errors: their frames would keep device memory
        tried: dict[str, float] = {}
        best: tuple[Prepared, str, str] | None = None
        for contender in self.contenders:
            if contender.why_not(op, precision) is not None:
                continue
            try:
                with translated(contender.name or "our kernels"):
                    prepared = contender.prepare(layer, copies.weights, copies.inputs)
            except LEFT_OUT as error:
                reasons[contender.name] = error.message
                codes.add(error.code)
                continue
            for variant in prepared.variants:
                name = f"{contender.name} {variant}".strip()
                try:
                    tried[name] = self._impression(name, prepared, variant, expected, copies)
                except LEFT_OUT as error:
                    reasons[name] = error.message
                    codes.add(error.code)
                    continue
                if best is None or tried[name] < tried[best[2]]:
                    best = prepared, variant, name
        if best is None:
            said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            if codes == {OutOfDeviceMemory.code}:
                raise OutOfDeviceMemory(
                    f"{op.signature} in {precision} does not fit on the device: {said}",
                    hint="use a smaller batch, or end other programs on this GPU",
                )
            raise OpFailed(
                f"{op.signature} in {precision}: no kernel ran and was right: {said}",
                hint="this op is left out, the others go on",
            )
        return (*best, tried)

    def _impression(self, kernel: str, prepared: Prepared, variant: str, expected: Sample, copies: Copies) -> float:
        with self.trying(kernel), translated(kernel):
            prepared.check(variant, expected)
            return first_impression_us(prepared, variant, copies)
