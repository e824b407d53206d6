"""Rotation: copies of one op run in turn, so that each call finds its weights where a network would leave them.

Timed alone, an op's weights stay in the second-level cache; inside a network the other layers push them out between two
runs. At one token the difference is a factor of three to five. Copies with weights of their own, together larger than
the cache, give cold weights with warm code and warm activations (the rotating buffers of GPU benchmarks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from types import MappingProxyType

from kernels.backends.base import Runnable
from kernels.device_identity import DeviceIdentity
from kernels.op_shape import OpShape
from kernels.precision import Precision

MOST_COPIES = 32
CACHE_SHARE = 2.0
"""Copies together hold this many times the second-level cache."""
HIGH_REUSE = 256
"""Products per weight above which loading a weight hides behind its arithmetic: one copy is enough."""


def copies_needed(op: OpShape, precision: Precision, device: DeviceIdentity) -> int:
    """How many copies keep the weights of an op out of the device's second-level cache; 1 where it does not matter."""
    if not device.l2_bytes or not op.macs or op.macs > HIGH_REUSE * op.weight_count:
        return 1
    weight_bytes = op.weight_count * precision.weight_bits / 8
    return max(2, min(MOST_COPIES, math.ceil(CACHE_SHARE * device.l2_bytes / weight_bytes)))


class Rotation:
    """Runs one copy per call, in turn: the `TimedOp` of runtimes that only know single ops."""

    repeats = 1
    tried: Mapping[str, float] = MappingProxyType({})

    def __init__(self, copies: Sequence[Runnable]) -> None:
        self.copies = tuple(copies)
        self._next = cycle([copy.run for copy in self.copies])

    @property
    def executed_kernel(self) -> str:
        return self.copies[0].executed_kernel

    def run(self) -> None:
        next(self._next)()

    def close(self) -> None:
        for copy in self.copies:
            copy.close()
