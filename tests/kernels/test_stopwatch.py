"""Which clock is chosen, and the statistics of a series."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from kernels import stopwatch
from kernels.stopwatch import ThreadCpuClock, WallClock, choose_clock, summarize, wait_until_quiet


def burn() -> None:
    np.sqrt(np.arange(20_000.0))


def test_one_thread_of_work_in_the_caller_is_timed_by_its_cpu_clock() -> None:
    assert isinstance(choose_clock(burn, threads=1), ThreadCpuClock)


def test_work_on_another_thread_needs_the_wall_clock() -> None:
    def elsewhere() -> None:
        worker = threading.Thread(target=burn)
        worker.start()
        worker.join()

    assert isinstance(choose_clock(elsewhere, threads=1), WallClock)


def test_several_threads_need_the_wall_clock() -> None:
    assert isinstance(choose_clock(burn, threads=2), WallClock)


class BusyProcess:
    """Stands in for `time`: other threads use the whole processor until `busy_s` have passed."""

    def __init__(self, busy_s: float) -> None:
        self.busy_s, self.now = busy_s, 0.0

    def perf_counter(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return 0.0

    def process_time(self) -> float:
        return min(self.now, self.busy_s)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("busy_s", "waits_s"), [(0.0, 0.0), (0.05, 0.05), (9.0, 0.2)])
def test_quiet_means_that_no_other_thread_works(monkeypatch: pytest.MonkeyPatch, busy_s: float, waits_s: float) -> None:
    process = BusyProcess(busy_s)
    monkeypatch.setattr(stopwatch, "time", process)
    wait_until_quiet()
    assert waits_s <= process.now <= waits_s + 0.02


def test_both_clocks_run_forwards() -> None:
    for clock in (ThreadCpuClock(), WallClock()):
        before = clock.now_ns()
        burn()
        assert clock.now_ns() > before


def test_summary_is_seeded_and_ordered() -> None:
    series = np.random.default_rng(5).lognormal(3, 0.2, 60)
    timing = summarize(series)
    assert timing == summarize(series)
    assert timing.p05_us <= timing.ci_low_us <= timing.median_us <= timing.ci_high_us <= timing.p95_us
    assert timing.samples == 60


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(200):
        timing = summarize(rng.normal(100, 5, 40))
        hits += timing.ci_low_us <= 100 <= timing.ci_high_us
    assert 0.88 <= hits / 200 <= 0.99


def test_a_single_sample_has_no_width() -> None:
    timing = summarize([42.0])
    assert (timing.median_us, timing.half_width) == (42.0, 0.0)
