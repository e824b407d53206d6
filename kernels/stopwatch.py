"""Clocks and the statistics of repeated timings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

NANOSECONDS_PER_MICROSECOND = 1_000
_CONFIDENCE = 0.95
_RESAMPLES = 400
_OWN_WORK_SHARE = 0.9
_PROBE_NS = 5_000_000
_QUIET_STEP_S = 0.004
_QUIET_SHARE = 0.1
_LONGEST_WAIT_S = 0.2


class Clock(Protocol):
    """A source of time. `name` is recorded with every measurement."""

    name: str

    def now_ns(self) -> int: ...


class ThreadCpuClock:
    """CPU time of the calling thread: other processes cannot lengthen it, work on other threads is not in it."""

    name = "thread_cpu"

    def now_ns(self) -> int:
        return time.thread_time_ns()


class WallClock:
    """Elapsed time: right for any number of threads, and disturbed by whatever else runs on the machine."""

    name = "wall"

    def now_ns(self) -> int:
        return time.perf_counter_ns()


class CountedClock:
    """Time that passes only when someone calls `advance_us`; subclasses say in `name` who counts."""

    name = "counted"

    def __init__(self) -> None:
        self._now_ns = 0

    def now_ns(self) -> int:
        return self._now_ns

    def advance_us(self, microseconds: float) -> None:
        self._now_ns += round(microseconds * NANOSECONDS_PER_MICROSECOND)


def choose_clock(work: Callable[[], None], threads: int) -> Clock:
    """The thread's CPU clock when one thread is asked for and `work` really runs in the caller; else the wall clock.

    Whether it does is measured: over some milliseconds the calling thread must account for 90 % of the CPU
    time of the whole process. A runtime that hands the work to a thread of its own fails that.
    """
    if threads != 1:
        return WallClock()
    work()
    own, process = time.thread_time_ns(), time.process_time_ns()
    while time.process_time_ns() - process < _PROBE_NS:
        work()
    used = time.process_time_ns() - process
    return ThreadCpuClock() if time.thread_time_ns() - own >= _OWN_WORK_SHARE * used else WallClock()


def wait_until_quiet() -> None:
    """Sleep until the other threads of this process have stopped using the CPU, at most a fifth of a second.

    The idle workers of an ONNX Runtime session spin for 20 to 30 ms after its last run, on cores that the session
    timed next needs: without the wait that one took up to 1.6 times as long on two threads.
    """
    deadline = time.perf_counter() + _LONGEST_WAIT_S
    while time.perf_counter() < deadline:
        own, process = time.thread_time(), time.process_time()
        time.sleep(_QUIET_STEP_S)
        others = (time.process_time() - process) - (time.thread_time() - own)
        if others < _QUIET_SHARE * _QUIET_STEP_S:
            return


@dataclass(frozen=True)
class Timing:
    """The median of `samples` timings in microseconds, its 95 % bootstrap interval, and the 5th and 95th percentile."""

    median_us: float
    ci_low_us: float
    ci_high_us: float
    p05_us: float
    p95_us: float
    samples: int

    @property
    def half_width(self) -> float:
        """Half the interval's width relative to the median."""
        return (self.ci_high_us - self.ci_low_us) / 2 / self.median_us if self.median_us > 0 else 0.0

    def per_call(self, calls: int) -> Timing:
        """The timing of one of `calls` equal calls that were timed together."""
        return Timing(
            self.median_us / calls,
            self.ci_low_us / calls,
            self.ci_high_us / calls,
            self.p05_us / calls,
            self.p95_us / calls,
            self.samples,
        )


def summarize(samples_us: Sequence[float], seed: int = 0) -> Timing:
    """The timing of a non-empty series; the bootstrap (percentile method) is seeded, hence repeatable."""
    values = np.asarray(samples_us, dtype=np.float64)
    rng = np.random.default_rng(seed)
    medians = np.median(values[rng.integers(0, len(values), (_RESAMPLES, len(values)))], axis=1)
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(medians, [tail, 100 - tail])
    p05, p95 = np.percentile(values, [5, 95])
    return Timing(float(np.median(values)), float(low), float(high), float(p05), float(p95), len(values))
