"""Networks timed beside known ones, on a device whose pace the test sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernels.backends.base import ExecutedOp, LoadedModel
from kernels.operating_point import OperatingPoint
from kernels.stopwatch import CountedClock
from search.latency.assemblies import CalibrationAssembly
from search.latency.measure import NetworkTimer

LAYERS = 40


class Network(LoadedModel):
    """Takes 30 us per layer, 10 where it is quantized, times the pace of the device."""

    def __init__(self, device: Device, precisions: Mapping[str, str]) -> None:
        self.device, self.layers = device, len(precisions)
        device.loaded.append(frozenset(precisions))

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        self.device.watch.advance_us(self.device.pace * expected_us(self.layers))
        return {}

    def executed_ops(self) -> list[ExecutedOp]:
        return []

    def close(self) -> None:
        self.device.closed += 1


class Device:
    def __init__(self) -> None:
        self.pace, self.closed = 1.0, 0
        self.loaded: list[frozenset[str]] = []
        self.watch = CountedClock()

    def timer(self) -> NetworkTimer:
        backend: Any = SimpleNamespace(
            protocol=None, clock=lambda threads: self.watch, anchor=lambda: self.watch.advance_us(5.0)
        )
        profile: Any = SimpleNamespace(session_options={})
        return NetworkTimer(lambda precisions: Network(self, precisions), {}, backend, profile, OperatingPoint())


def assembly(quantized: int) -> CalibrationAssembly:
    return CalibrationAssembly(f"first {quantized}", {f"layer{index}": "w8a8" for index in range(quantized)})


def expected_us(quantized: int) -> float:
    return 30 * LAYERS - 20 * quantized


def test_new_runs_stand_at_the_pace_of_known_ones() -> None:
    device = Device()
    known = device.timer().measure([assembly(count) for count in range(18)])
    device.pace = 1.3
    device.loaded.clear()
    every = device.timer().measure([assembly(2), assembly(18), assembly(18), assembly(19)], known)
    assert [run.name for run in every] == [f"first {count}" for count in range(20)]
    assert [run.median_us for run in every] == pytest.approx([expected_us(count) for count in range(20)])
    assert [run.timings for run in every] == [2] * 16 + [1] * 4
    assert len(device.loaded) == 16 + 2, "the anchors and what is new"
    assert device.closed == 18 + 18
    assert device.timer().measure([assembly(3)], every) == every


def test_second_times_count_unless_one_of_the_two_was_disturbed() -> None:
    device = Device()
    known = device.timer().measure([assembly(count) for count in range(12)])
    off = {2: 1.03, 5: 1.5}
    known = [replace(run, median_us=off.get(index, 1.0) * run.median_us) for index, run in enumerate(known)]
    every = device.timer().measure([assembly(18)], known)
    assert every[2].median_us == pytest.approx(1.03**0.5 * expected_us(2), rel=2e-3)
    assert every[2].timings == 2
    assert every[5] == known[5]
