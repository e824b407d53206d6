"""Copies enough to leave the cache, run strictly in turn, and only where a weight's loading shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.backends.base import Runnable
from kernels.backends.fake import FAKE_DEVICE
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape, OpShape
from kernels.precision import Precision
from kernels.rotation import MOST_COPIES, Rotation, copies_needed

DEVICE = replace(FAKE_DEVICE, l2_bytes=2 << 20)
TOKEN = LinearShape(m=1, k=384, n=1536)


@pytest.mark.parametrize(
    "op, precision, copies",
    [
        (TOKEN, "fp32", 2),
        (TOKEN, "w8a8", 8),
        (TOKEN, "w4a16-g32", 15),
        (LinearShape(m=1, k=64, n=64), "w8a8", MOST_COPIES),
        (LinearShape(m=4096, k=384, n=1536), "w8a8", 1),
        (Conv2dShape(1, 64, 56, 56, 64, (3, 3), padding=(1, 1, 1, 1)), "w8a8", 1),
        (EmbeddingShape(tokens=4, rows=1000, width=64), "w8a16", 1),
    ],
)
def test_copies_fill_twice_the_cache_where_weights_are_used_few_times(op: OpShape, precision: str, copies: int) -> None:
    assert copies_needed(op, Precision(precision), DEVICE) == copies


def test_device_of_unknown_cache_gets_one_copy() -> None:
    assert copies_needed(TOKEN, Precision("fp32"), FAKE_DEVICE) == 1


class Noting(Runnable):
    def __init__(self, name: str, log: list[str]) -> None:
        self.executed_kernel, self._log = name, log

    def run(self) -> None:
        self._log.append(self.executed_kernel)

    def output(self) -> np.ndarray:
        raise AssertionError("timing reads no output")

    def close(self) -> None:
        self._log.append(f"close {self.executed_kernel}")


def test_copies_take_turns_and_all_are_closed() -> None:
    log: list[str] = []
    rotation = Rotation([Noting(name, log) for name in "abc"])
    for _ in range(5):
        rotation.run()
    rotation.close()
    assert log == ["a", "b", "c", "a", "b", "close a", "close b", "close c"]
    assert rotation.executed_kernel == "a"
