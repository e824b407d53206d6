"""CUDA device: the seam between what is launched and the GPU it is launched on.

Everything above it (`kernels.cuda.launch`, the backend, the microbenchmark, end-to-end networks) speaks to the
`CudaDevice` protocol. `kernels.backends.cuda_driver` is a GPU; `kernels.backends.cuda_fake` computes on the CPU and
takes as long as a formula says, so that all of the host's logic is tested where there is no GPU.

Memory is torch's on both sides: a buffer is a tensor on `torch_device`, its address `data_ptr()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kernels.backends.base import OpFailed
from kernels.cuda.source import Defines, KernelSource
from kernels.device_identity import DeviceIdentity
from kernels.errors import BackendUnavailable
from kernels.stopwatch import CountedClock


class OutOfDeviceMemory(OpFailed):
    """The op's buffers do not fit on the device."""

    code = "device_out_of_memory"


class WrongResult(OpFailed):
    """A kernel ran and did not compute what the reference says; its time means nothing."""

    code = "wrong_result"


class DeviceLost(BackendUnavailable):
    """The device refuses all further work of this process: what was measured so far is all there will be."""

    code = "device_lost"


@dataclass(frozen=True)
class Geometry:
    """Blocks, threads per block and dynamic shared memory of one launch."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0


@dataclass(frozen=True)
class Work:
    """What an op has to do at least: products, bytes moved through device memory, and bits of its operands."""

    macs: float = 0.0
    moved_bytes: float = 0.0
    bits: int = 16


class Graph(Protocol):
    """Work captured once, to be replayed as a whole."""

    def replay_us(self) -> float:
        """Run everything again and wait for it; microseconds between events before and after."""
        ...


class CudaDevice(Protocol):
    """One GPU: compiles and loads kernels, launches them in order on one stream, captures graphs and times them.

    `arch` is the exact target that code is compiled for (`sm_90a`). `uuid_hash` tells two cards of one model apart
    without naming them. All methods may raise `OutOfDeviceMemory`, `OpFailed` or `DeviceLost`.
    """

    identity: DeviceIdentity
    arch: str
    uuid_hash: str
    torch_device: str

    def function(self, source: KernelSource, tile: str, more_defines: Defines, shared_bytes: int) -> Any:
        """A kernel compiled for this device in one configuration, allowed to use that much dynamic shared memory.

        Raises what `kernels.cuda.compile.compile_kernel` raises."""
        ...

    def compile_ahead(self, wanted: Sequence[tuple[KernelSource, str, Defines]]) -> None:
        """Have kernels (source, tile, more defines) ready before `function` asks for them one by one; errors wait."""
        ...

    def launch(self, kernel: Any, geometry: Geometry, arguments: Sequence[Any], work: Work) -> None:
        """Enqueue a kernel with the ctypes values of `kernels.cuda.signature`."""
        ...

    def run_torch(self, name: str, call: Callable[[], Any], work: Work) -> Any:
        """Enqueue torch operations on the same stream."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """What `enqueue` puts on the stream, captured and not yet run. Run it once before, so that nothing is set up
        inside the capture."""
        ...

    def synchronize(self) -> None:
        """Wait for everything enqueued; errors of earlier launches surface here."""
        ...

    def telemetry(self) -> dict[str, Any]:
        """Clocks, temperature, power and its limit, ECC and what throttles, as far as the driver tells."""
        ...


class DeviceClock(CountedClock):
    """Time as the device's events counted it: what the host does between replays is not in it."""

    name = "cuda_events"
