"""Interleaving: the timing protocol that turns callables into medians.

The protocol. Every arm is warmed up; a sample is a run of calls long enough for the clock. Arms take turns
(A B C A B C), so that a slow minute hurts all of them alike. Every round also times a fixed piece of work, the
anchor; a block of rounds whose anchor is off by more than the drift limit is dropped and taken again. Sampling
stops when the median of every arm is known to the asked width, or when its time is up.

Whole models, and several threads on the wall clock, take long turns (A A A B B B C C C), each after a few untimed
calls; on several threads also after the workers of the arm before have come to rest. Every block has them in an order
of its own: an arm that always came first, or always behind the same other, would carry what that does to it (whole
networks that came first were up to 3 % slower than their own copies). Such a block lasts seconds, of which the anchor
at its begin says too little: none is dropped (in a noisy hour half of them were, and medians of all repeat better).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import median

import numpy as np

from kernels.stopwatch import (
    NANOSECONDS_PER_MICROSECOND,
    Clock,
    Timing,
    WallClock,
    choose_clock,
    summarize,
    wait_until_quiet,
)

Progress = Callable[[int, int], None]
ANCHOR = "anchor"
_OVERTIME = 3.0


@dataclass(frozen=True)
class Protocol:
    """How long and how often to time. Times are on the measuring clock, so CPU time for one thread.

    `sample_us` is the least length of a sample (short ops are called several times in it). Sampling of an arm ends
    when its interval's half width is at most `half_width` of the median, or after `arm_seconds`, never before
    `min_samples`. `drift_limit` is the relative change of the anchor that drops a block (`block_rounds` rounds) of
    short turns. With `long_turns` an arm's samples of a block follow one another, after `untimed_calls`: a whole model
    whose weights the other arms have just pushed out of the caches needs several calls until it runs at the pace it
    keeps in service.
    """

    warmup_calls: int = 3
    warmup_us: float = 25_000.0
    sample_us: float = 500.0
    min_samples: int = 30
    max_samples: int = 300
    half_width: float = 0.01
    arm_seconds: float = 1.0
    block_rounds: int = 5
    drift_limit: float = 0.03
    seed: int = 0
    long_turns: bool = False
    untimed_calls: int = 1


DEFAULT = Protocol()


@dataclass(frozen=True)
class Interleaved:
    """The timings of all arms and the circumstances: clock, anchor median, its largest drift, blocks dropped.

    `steady` is False when so many blocks drifted that they had to be used after all.
    """

    timings: dict[str, Timing]
    clock: str
    anchor_us: float
    anchor_drift: float
    blocks: int
    dropped_blocks: int
    steady: bool


@dataclass(frozen=True)
class _Block:
    anchor_us: float
    samples_us: Mapping[str, Sequence[float]]


def measure_interleaved(
    arms: Mapping[str, Callable[[], None]],
    *,
    threads: int,
    protocol: Protocol = DEFAULT,
    progress: Progress | None = None,
    clock: Clock | None = None,
    anchor: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Microseconds per call of every arm; `progress(done, total)` counts samples of the slowest-known arm."""
    return interleave(arms, threads=threads, protocol=protocol, progress=progress, clock=clock, anchor=anchor).timings


def interleave(
    arms: Mapping[str, Callable[[], None]],
    *,
    threads: int,
    protocol: Protocol = DEFAULT,
    progress: Progress | None = None,
    clock: Clock | None = None,
    anchor: Callable[[], None] | None = None,
) -> Interleaved:
    """`measure_interleaved` with the circumstances of the measurement. An empty `arms` is a ValueError."""
    if not arms:
        raise ValueError("nothing to measure: no arms")
    watch = clock or choose_clock(next(iter(arms.values())), threads)
    work = {ANCHOR: anchor or anchor_work(), **{f"arm:{name}": run for name, run in arms.items()}}
    calls = {name: _warm_up(run, watch, protocol) for name, run in work.items()}
    long_turns = protocol.long_turns or (isinstance(watch, WallClock) and threads > 1)
    run_block = partial(_run_block_in_long_turns, has_workers=threads > 1) if long_turns else _run_block
    order = random.Random(protocol.seed)
    blocks: list[_Block] = []
    began_ns = watch.now_ns()
    budget_ns = protocol.arm_seconds * len(arms) * 1e9
    while True:
        turns = order.sample([*arms], len(arms)) if long_turns else [*arms]
        in_turn = {name: work[name] for name in (ANCHOR, *(f"arm:{arm}" for arm in turns))}
        blocks.append(run_block(in_turn, calls, watch, protocol))
        kept = blocks if long_turns else _steady_blocks(blocks, protocol.drift_limit)
        count = len(kept) * protocol.block_rounds
        if progress is not None:
            progress(min(count, protocol.min_samples), protocol.min_samples)
        elapsed_ns = watch.now_ns() - began_ns
        if elapsed_ns >= _OVERTIME * budget_ns and len(blocks) * protocol.block_rounds >= protocol.min_samples:
            break
        if count < protocol.min_samples:
            continue
        if elapsed_ns >= budget_ns or count >= protocol.max_samples:
            break
        if all(t.half_width <= protocol.half_width for t in _summaries(kept, arms, protocol).values()):
            break
    steady = len(kept) * protocol.block_rounds >= protocol.min_samples
    anchors = [block.anchor_us for block in blocks]
    centre = median(anchors)
    return Interleaved(
        timings=_summaries(kept if steady else blocks, arms, protocol),
        clock=watch.name,
        anchor_us=centre,
        anchor_drift=max(_deviation(value, centre) for value in anchors),
        blocks=len(blocks),
        dropped_blocks=len(blocks) - len(kept) if steady else 0,
        steady=steady,
    )


@lru_cache(maxsize=1)
def anchor_work() -> Callable[[], None]:
    """A fixed piece of single-threaded arithmetic in cache, some tens of microseconds."""
    values = np.random.default_rng(0).uniform(0.5, 2.0, 1 << 14)
    out = np.empty_like(values)

    def work() -> None:
        np.sqrt(values, out=out)
        np.multiply(out, values, out=out)
        np.divide(out, values, out=out)

    return work


def _warm_up(run: Callable[[], None], clock: Clock, protocol: Protocol) -> int:
    """Run until warm; returns how many calls make one sample long enough."""
    began = clock.now_ns()
    done = 0
    while True:
        run()
        done += 1
        elapsed_us = (clock.now_ns() - began) / NANOSECONDS_PER_MICROSECOND
        if done >= protocol.warmup_calls and elapsed_us >= protocol.warmup_us:
            break
    began = clock.now_ns()
    for _ in range(protocol.warmup_calls):
        run()
    call_us = (clock.now_ns() - began) / NANOSECONDS_PER_MICROSECOND / protocol.warmup_calls
    return max(1, round(protocol.sample_us / max(call_us, 1e-3)))


def _run_block(
    work: Mapping[str, Callable[[], None]], calls: Mapping[str, int], clock: Clock, protocol: Protocol
) -> _Block:
    samples: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(protocol.block_rounds):
        for name, run in work.items():
            samples[name].append(_sample_us(run, calls[name], clock))
    return _block(samples)


def _run_block_in_long_turns(
    work: Mapping[str, Callable[[], None]],
    calls: Mapping[str, int],
    clock: Clock,
    protocol: Protocol,
    has_workers: bool,
) -> _Block:
    samples: dict[str, list[float]] = {}
    for name, run in work.items():
        if has_workers:
            wait_until_quiet()
        for _ in range(protocol.untimed_calls):
            run()
        samples[name] = [_sample_us(run, calls[name], clock) for _ in range(protocol.block_rounds)]
    return _block(samples)


def _sample_us(run: Callable[[], None], calls: int, clock: Clock) -> float:
    repeat = range(calls)
    began = clock.now_ns()
    for _ in repeat:
        run()
    return (clock.now_ns() - began) / NANOSECONDS_PER_MICROSECOND / calls


def _block(samples: dict[str, list[float]]) -> _Block:
    return _Block(median(samples.pop(ANCHOR)), {name.removeprefix("arm:"): taken for name, taken in samples.items()})


def _steady_blocks(blocks: Sequence[_Block], drift_limit: float) -> list[_Block]:
    centre = median(block.anchor_us for block in blocks)
    return [block for block in blocks if _deviation(block.anchor_us, centre) <= drift_limit]


def _deviation(value: float, centre: float) -> float:
    """Relative distance; a clock on which the anchor takes no time cannot drift."""
    return abs(value / centre - 1) if centre > 0 else 0.0


def _summaries(blocks: Sequence[_Block], arms: Mapping[str, object], protocol: Protocol) -> dict[str, Timing]:
    return {
        name: summarize([sample for block in blocks for sample in block.samples_us[name]], protocol.seed)
        for name in arms
    }
