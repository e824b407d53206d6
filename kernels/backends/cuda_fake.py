"""Fake CUDA device: launches recorded, computed on the CPU by a model of each kernel, timed by a formula.

It makes everything the host does for a GPU testable without one: packing, padding, argument order, tile choice, graphs,
rotation, tables, resume. Its times mean nothing. What it cannot show is whether the machine code is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kernels.backends.base import OpFailed
from kernels.backends.cuda_device import Geometry, Graph, Work
from kernels.backends.cuda_models import MODELS
from kernels.cuda.launch import TensorMapOf
from kernels.cuda.signature import signature_of
from kernels.cuda.source import Defines, KernelSource
from kernels.device_identity import DeviceIdentity

FAKE_GPU = DeviceIdentity(
    kind="gpu", name="fake GPU", cores=132, memory_bytes=80_000_000_000, isa=("sm_90",), l2_bytes=4096,
    driver="CUDA 13.0",
)  # fmt: skip
_LAUNCH_US = 1.5
_BIT_PRODUCTS_PER_US = 1.6e10
_BYTES_PER_US = 2.0e6

KernelModel = Callable[..., None]
"""Computes what a kernel would from its macros, geometry, and arguments by name (structs of addresses, numbers)."""


@dataclass(frozen=True)
class FakeKernel:
    """What `function` gave: which kernel, in which configuration."""

    source: KernelSource
    tile: str
    defines: Mapping[str, int | str]
    shared_bytes: int


@dataclass(frozen=True)
class RecordedLaunch:
    """One enqueued kernel or torch call; `symbol` is the kernel's name and tile, or what the call is named."""

    symbol: str
    geometry: Geometry | None
    arguments: tuple[Any, ...] = ()
    us: float = 0.0


@dataclass
class FakeGraph:
    """Captured work. It was computed while it was captured; a replay, whose inputs are the same, only takes time."""

    launches: list[RecordedLaunch]
    replays: int = 0

    def replay_us(self) -> float:
        self.replays += 1
        return sum(launch.us for launch in self.launches)


class FakeCudaDevice:
    """A `CudaDevice` without a GPU. `launches` lists what ran; `fails_on` maps a symbol to what its launch raises."""

    torch_device = "cpu"
    uuid_hash = "fake"

    def __init__(
        self,
        models: Mapping[str, KernelModel] | None = None,
        arch: str = "sm_90a",
        identity: DeviceIdentity = FAKE_GPU,
        fails_on: Mapping[str, Exception] | None = None,
    ) -> None:
        self.identity = identity
        self.arch = arch
        self.models = dict(MODELS if models is None else models)
        self.fails_on = dict(fails_on or {})
        self.launches: list[RecordedLaunch] = []
        self._captured: list[RecordedLaunch] | None = None
        self._computed: set[tuple[Any, ...]] = set()  # within a capture, where a repeated launch has the same inputs

    def function(self, source: KernelSource, tile: str, more_defines: Defines, shared_bytes: int) -> FakeKernel:
        return FakeKernel(source, tile, {**source.defines(tile), **more_defines}, shared_bytes)

    def compile_ahead(self, wanted: Sequence[tuple[KernelSource, str, Defines]]) -> None:
        return

    def launch(self, kernel: FakeKernel, geometry: Geometry, arguments: Sequence[Any], work: Work) -> None:
        source = kernel.source
        if geometry.shared_bytes > kernel.shared_bytes:
            raise OpFailed(f"{source.name} was loaded with {kernel.shared_bytes} bytes of shared memory")
        if source.entry not in self.models:
            raise OpFailed(f"the fake device has no model of {source.entry}", hint="add one to its models")
        model = self.models[source.entry]
        named = dict(zip([name for name, _ in signature_of(source).parameters], arguments, strict=True))
        recorded = RecordedLaunch(f"{source.name} {kernel.tile}", geometry, tuple(arguments), fake_us(work))
        key = (
            source.name,
            kernel.tile,
            *(repr(each) if isinstance(each, TensorMapOf) else bytes(each) for each in arguments),
        )
        if key in self._computed:
            self._enqueue(recorded, lambda: None)
            return
        if self._captured is not None:
            self._computed.add(key)
        self._enqueue(recorded, lambda: model(kernel.defines, geometry, named))

    def run_torch(self, name: str, call: Callable[[], Any], work: Work) -> Any:
        with torch.no_grad():
            return self._enqueue(RecordedLaunch(name, None, (), fake_us(work)), call)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        self._captured = []
        try:
            enqueue()
            return FakeGraph(self._captured)
        finally:
            self._captured = None
            self._computed = set()

    def synchronize(self) -> None:
        return

    def telemetry(self) -> dict[str, Any]:
        return {"sm_clock_mhz": 1980, "temperature_c": 40, "throttle": []}

    def _enqueue(self, recorded: RecordedLaunch, run: Callable[[], Any]) -> Any:
        self.launches.append(recorded)
        if recorded.symbol in self.fails_on:
            raise self.fails_on[recorded.symbol]
        if self._captured is not None:
            self._captured.append(recorded)
        return run()


def fake_us(work: Work) -> float:
    """Microseconds of one launch: a constant, and the larger of products and bytes."""
    return _LAUNCH_US + max(work.macs * work.bits / _BIT_PRODUCTS_PER_US, work.moved_bytes / _BYTES_PER_US)
