"""The timing protocol on a clock that only moves when told: order, medians, warm-up, drift and stopping."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from kernels.backends.fake import FakeClock
from kernels.interleaving import Protocol, anchor_work, interleave, measure_interleaved

QUICK = Protocol(warmup_calls=2, warmup_us=0.0, sample_us=1.0, min_samples=10, max_samples=20, block_rounds=5)


class Bench:
    """Arms whose calls are written down and take the time of a schedule."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.calls: list[str] = []

    def arm(self, name: str, microseconds: Callable[[int], float]) -> Callable[[], None]:
        def run() -> None:
            self.clock.advance_us(microseconds(self.calls.count(name)))
            self.calls.append(name)

        return run


def test_arms_take_turns_and_the_anchor_goes_first() -> None:
    bench = Bench()
    arms = {"a": bench.arm("a", lambda _: 10.0), "b": bench.arm("b", lambda _: 30.0)}
    found = interleave(arms, threads=1, protocol=QUICK, clock=bench.clock, anchor=bench.arm("anchor", lambda _: 5.0))
    timed = bench.calls[-3 * found.timings["a"].samples :]
    assert timed == ["anchor", "a", "b"] * found.timings["a"].samples
    assert {name: timing.median_us for name, timing in found.timings.items()} == {"a": 10.0, "b": 30.0}
    assert found.clock == "fake"
    assert found.anchor_us == 5.0


def test_the_median_ignores_a_rare_slow_call_and_the_interval_covers_it() -> None:
    bench = Bench()
    arms = {"a": bench.arm("a", lambda call: 1000.0 if call % 7 == 0 else 100.0 + call % 3)}
    timing = interleave(
        arms, threads=1, protocol=QUICK, clock=bench.clock, anchor=bench.arm("anchor", lambda _: 5.0)
    ).timings["a"]
    assert 100 <= timing.ci_low_us <= timing.median_us <= timing.ci_high_us <= 102
    assert timing.p95_us > 500
    assert timing.samples >= QUICK.min_samples


def test_warm_up_runs_until_both_its_calls_and_its_time_are_up() -> None:
    bench = Bench()
    protocol = Protocol(warmup_calls=2, warmup_us=95.0, sample_us=1.0, min_samples=5, max_samples=5, block_rounds=5)
    anchor = bench.arm("anchor", lambda _: 5.0)
    interleave({"a": bench.arm("a", lambda _: 10.0)}, threads=1, protocol=protocol, clock=bench.clock, anchor=anchor)
    assert bench.calls.count("a") == 10 + 2 + 5  # 10 calls fill 95 us, 2 decide the repeats, 5 are samples


def test_short_calls_are_repeated_to_fill_a_sample() -> None:
    bench = Bench()
    protocol = Protocol(warmup_calls=1, warmup_us=0.0, sample_us=50.0, min_samples=5, max_samples=5, block_rounds=5)
    anchor = bench.arm("anchor", lambda _: 50.0)
    found = interleave(
        {"a": bench.arm("a", lambda _: 2.0)}, threads=1, protocol=protocol, clock=bench.clock, anchor=anchor
    )
    assert found.timings["a"].median_us == 2.0
    assert bench.calls.count("a") == 2 + 5 * 25


def test_blocks_whose_anchor_drifts_are_dropped_and_taken_again() -> None:
    bench = Bench()
    slow = range(2 + 5, 2 + 10)  # second block: one warm-up call and one to calibrate come first

    def anchor_us(call: int) -> float:
        return 12.0 if call in slow else 10.0

    protocol = Protocol(
        warmup_calls=1, warmup_us=0.0, sample_us=1.0, min_samples=15, max_samples=15, block_rounds=5, drift_limit=0.03
    )
    anchor = bench.arm("anchor", anchor_us)

    def arm_us(call: int) -> float:
        return 200.0 if bench.calls.count("anchor") - 1 in slow else 100.0

    found = interleave({"a": bench.arm("a", arm_us)}, threads=1, protocol=protocol, clock=bench.clock, anchor=anchor)
    assert found.dropped_blocks == 1
    assert found.blocks == 4
    assert found.anchor_drift == pytest.approx(0.2)
    assert found.timings["a"].p95_us == 100.0
    assert found.timings["a"].samples == 15


def test_long_turns_keep_the_blocks_whose_anchor_drifts() -> None:
    bench = Bench()
    protocol = Protocol(
        warmup_calls=1, warmup_us=0.0, sample_us=1.0, min_samples=15, max_samples=15, block_rounds=5, long_turns=True
    )
    anchor = bench.arm("anchor", lambda call: 12.0 if call in range(9, 14) else 10.0)
    found = interleave(
        {"a": bench.arm("a", lambda _: 100.0)}, threads=1, protocol=protocol, clock=bench.clock, anchor=anchor
    )
    assert found.anchor_drift == pytest.approx(0.2)
    assert (found.blocks, found.dropped_blocks, found.steady) == (3, 0, True)


def test_a_machine_that_never_settles_is_measured_all_the_same_and_says_so() -> None:
    bench = Bench()
    protocol = Protocol(
        warmup_calls=1, warmup_us=0.0, sample_us=1.0, min_samples=20, max_samples=40, block_rounds=5, arm_seconds=0.001
    )
    anchor = bench.arm("anchor", lambda call: 10.0 * 1.1 ** (call // 5))
    found = interleave(
        {"a": bench.arm("a", lambda _: 100.0)}, threads=1, protocol=protocol, clock=bench.clock, anchor=anchor
    )
    assert not found.steady
    assert found.timings["a"].samples >= 20


def test_a_noisy_arm_is_sampled_longer_than_a_quiet_one() -> None:
    def samples(noise: float) -> int:
        bench = Bench()
        rng = np.random.default_rng(0)
        protocol = Protocol(warmup_us=0.0, sample_us=1.0, min_samples=10, max_samples=100, block_rounds=5)
        arms = {"a": bench.arm("a", lambda _: 100.0 * (1 + noise * rng.random()))}
        anchor = bench.arm("anchor", lambda _: 10.0)
        return interleave(arms, threads=1, protocol=protocol, clock=bench.clock, anchor=anchor).timings["a"].samples

    assert samples(0.001) == 10
    assert samples(0.5) > 30


def test_several_threads_on_the_wall_clock_take_long_turns() -> None:
    calls: list[str] = []
    protocol = Protocol(warmup_calls=1, warmup_us=0.0, sample_us=0.0, min_samples=10, max_samples=10, block_rounds=5)

    def arm(name: str) -> Callable[[], None]:
        return lambda: calls.append(name)

    found = interleave({"a": arm("a"), "b": arm("b")}, threads=2, protocol=protocol, anchor=arm("anchor"))
    assert found.clock == "wall"
    untimed_and_samples = 1 + 5
    turns = calls[-2 * 3 * untimed_and_samples :: untimed_and_samples]
    assert [name for name in turns for _ in range(untimed_and_samples)] == calls[-2 * 3 * untimed_and_samples :]
    assert [turns[0], turns[3]] == ["anchor", "anchor"]
    assert sorted(turns[1:3]) == sorted(turns[4:]) == ["a", "b"]


def test_no_arm_always_comes_first_or_behind_the_same_other() -> None:
    calls: list[str] = []
    protocol = Protocol(
        warmup_calls=1, warmup_us=0.0, sample_us=0.0, min_samples=60, max_samples=60, block_rounds=3, long_turns=True
    )
    arms: dict[str, Callable[[], None]] = {name: lambda name=name: calls.append(name) for name in "abcd"}  # type: ignore[misc]
    interleave(arms, threads=1, protocol=protocol, anchor=lambda: calls.append("anchor"))
    firsts = {behind for before, behind in pairwise(calls[8:]) if before == "anchor"}
    assert {*"abcd"} <= firsts
    assert {("a", "b"), ("b", "a")} <= set(pairwise(calls[8:]))


def test_progress_ends_at_its_total_and_no_arms_is_an_error() -> None:
    bench = Bench()
    seen: list[tuple[int, int]] = []
    measure_interleaved(
        {"a": bench.arm("a", lambda _: 10.0)},
        threads=1,
        protocol=QUICK,
        clock=bench.clock,
        anchor=bench.arm("anchor", lambda _: 5.0),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (10, 10)
    with pytest.raises(ValueError, match="no arms"):
        measure_interleaved({}, threads=1)


def test_real_clocks_measure_real_work() -> None:
    values = np.ones(1 << 12)
    protocol = Protocol(warmup_us=100.0, sample_us=50.0, min_samples=10, max_samples=10, arm_seconds=0.05)
    found = interleave({"sum": lambda: np.sum(values, out=None)}, threads=1, protocol=protocol)  # type: ignore[dict-item]
    assert found.timings["sum"].median_us > 0
    assert found.clock in {"thread_cpu", "wall"}
    assert anchor_work() is anchor_work()


def test_long_turns_time_an_arm_at_the_pace_it_settles_to() -> None:
    bench = Bench()
    protocol = Protocol(
        warmup_calls=1, warmup_us=0.0, sample_us=0.0, min_samples=6, max_samples=6, block_rounds=3,
        long_turns=True, untimed_calls=2,
    )  # fmt: skip

    def cold_for_two_calls(name: str) -> Callable[[int], float]:
        return lambda call: 10.0 if bench.calls[-2:] == [name, name] else 99.0

    arms = {name: bench.arm(name, cold_for_two_calls(name)) for name in ("a", "b")}
    anchor = bench.arm("anchor", lambda _: 5.0)
    found = interleave(arms, threads=1, protocol=protocol, clock=bench.clock, anchor=anchor)
    assert bench.calls[-10:] == ["a"] * 5 + ["b"] * 5
    assert found.timings["a"].p95_us == found.timings["b"].p95_us == 10.0
