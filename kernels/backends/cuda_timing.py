"""Timing on a GPU: an op captured many times into one CUDA graph, rotating over copies of what must be cold.

A launch from the host costs more than many ops, so ops are timed as a network runs them: back to back inside a graph.
What the caches hold is chosen by what the executions share:

    cold_weights  weights rotate over copies of at least 3 x L2 together (at most 512 copies), activations stay
    cold          weights and activations rotate
    hot           everything is the same each time
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from kernels.backends.cuda_contender import Prepared
from kernels.backends.cuda_device import CudaDevice, DeviceClock, Graph, Work
from kernels.interleaving import Protocol
from kernels.latency_table import COLD_WEIGHTS
from kernels.op_shape import OpShape
from kernels.precision import Precision

ROTATED_SHARE = 3.0
"""All copies together hold this many times the second-level cache."""
MOST_COPIES = 512
MOST_REPEATS = 1024
SAMPLE_US = 400.0
"""Least length of one graph: a replay's own start, a few microseconds, is below the noise then."""
ANCHOR_SIZE = 1024
IMPRESSION_REPEATS, IMPRESSION_REPLAYS = 12, 5
PROTOCOL = Protocol(sample_us=0.0, min_samples=30, max_samples=300, half_width=0.01, arm_seconds=2.0)
"""A sample is one replay; two seconds of device time an arm at most."""


@dataclass(frozen=True)
class Copies:
    """How many copies of weights and of activations a rotation needs."""

    weights: int
    inputs: int


def copies_for(op: OpShape, precision: Precision, l2_bytes: int, cache: str) -> Copies:
    """The copies of a cache mode; one of each where nothing has to be cold."""
    if cache == "hot" or not l2_bytes:
        return Copies(1, 1)
    weight_bytes = max(1.0, op.weight_count * precision.weight_bits / 8)
    if cache == COLD_WEIGHTS:
        return Copies(_count(weight_bytes, l2_bytes), 1)
    input_bytes = max(1.0, op.input_elements * min(16, precision.activation_bits) / 8)
    count = _count(weight_bytes + input_bytes, l2_bytes)
    return Copies(count, count)


def _count(bytes_each: float, l2_bytes: int) -> int:
    return max(2, min(MOST_COPIES, math.ceil(ROTATED_SHARE * l2_bytes / bytes_each)))


def capture(prepared: Prepared, variant: str, copies: Copies, repeats: int) -> Graph:
    """A graph of `repeats` executions in rotation; the op has run before, so nothing is set up inside."""

    def enqueue() -> None:
        for index in range(repeats):
            prepared.enqueue(variant, index % copies.weights, index % copies.inputs)

    return prepared.device.capture(enqueue)


def first_impression_us(prepared: Prepared, variant: str, copies: Copies) -> float:
    """Microseconds of one execution from a few replays of a short graph: good enough to rank implementations."""
    graph = capture(prepared, variant, copies, IMPRESSION_REPEATS)
    graph.replay_us()
    return median(graph.replay_us() for _ in range(IMPRESSION_REPLAYS)) / IMPRESSION_REPEATS


class GraphOp:
    """The `TimedOp` of a GPU: a replay runs the op `repeats` times and moves the device's clock on."""

    def __init__(
        self,
        graph: Graph,
        repeats: int,
        clock: DeviceClock,
        executed_kernel: str,
        tried: Mapping[str, float] | None = None,
        holds: object = None,
    ) -> None:
        self.repeats = repeats
        self.executed_kernel = executed_kernel
        self.tried: Mapping[str, float] = dict(tried or {})
        self._graph: Graph | None = graph
        self._holds = holds  # a graph knows addresses only: whoever owns the memory must stay
        self._clock = clock

    def run(self) -> None:
        assert self._graph is not None, "closed"
        self._clock.advance_us(self._graph.replay_us())

    def close(self) -> None:
        self._graph = self._holds = None


def repeats_for(us: float, copies: Copies) -> int:
    """Enough executions for a sample, and for every copy to have its turn."""
    return max(copies.weights, copies.inputs, min(MOST_REPEATS, math.ceil(SAMPLE_US / max(us, 1e-3))))


def repeated(
    device: CudaDevice, clock: DeviceClock, enqueue: Callable[[], object], kernel: str, repeats: int
) -> GraphOp:
    """Any enqueued work as an arm."""
    enqueue()
    device.synchronize()

    def all_of_it() -> None:
        for _ in range(repeats):
            enqueue()

    return GraphOp(device.capture(all_of_it), repeats, clock, kernel, holds=enqueue)


def anchor_work(device: CudaDevice, clock: DeviceClock, repeats: int = 10) -> Callable[[], None]:
    """Fixed matrix products whose time shows whether the device got slower or faster."""
    size = ANCHOR_SIZE if device.torch_device != "cpu" else ANCHOR_SIZE // 32
    first, second = torch.randn(2, size, size).to(device.torch_device, torch.float16)
    work = Work(float(size) ** 3, 3.0 * size * size * 2, 16)

    def product() -> None:
        device.run_torch("anchor", lambda: first @ second, work)

    return repeated(device, clock, product, "anchor", repeats).run
