"""Microbenchmark: the missing rows of a latency table, measured by the protocol of `kernels.interleaving`."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from kernels import cpu
from kernels.backends.base import Backend, KernelFallback, OpFailed, TimedOp
from kernels.errors import BackendUnavailable, BadTable, CompilationFailed, KernelsError, UnsupportedPrecision
from kernels.hardware_profile import HardwareProfile
from kernels.interleaving import DEFAULT, Interleaved, Progress, Protocol, interleave, measure_interleaved
from kernels.latency_table import CACHE_MODES, COLD_WEIGHTS, LatencyRow, LatencyTable, RowStatus
from kernels.op_shape import OpShape
from kernels.precision import Precision
from kernels.roofline import roofline_us
from kernels.rotation import Rotation, copies_needed
from kernels.stopwatch import Timing

__all__ = [
    "DEFAULT",
    "Measured",
    "Protocol",
    "Refused",
    "Timing",
    "empty_table",
    "interleave",
    "measure_interleaved",
    "measure_missing",
    "measure_rows",
]

Pair = tuple[OpShape, Precision]
_LEFT_OUT = (KernelFallback, UnsupportedPrecision, OpFailed, CompilationFailed)
_ARMS_AT_ONCE = 12
_BYTES_AT_ONCE = 256_000_000


@dataclass(frozen=True)
class Refused:
    """A pair without a row, and why: not runnable here, or another kernel ran than its precision promises."""

    signature: str
    precision: str
    code: str
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Measured:
    """The extended table and the pairs that got no row."""

    table: LatencyTable
    refused: tuple[Refused, ...]


def empty_table(profile: HardwareProfile) -> LatencyTable:
    """A latency table of a profile, with no rows yet."""
    return LatencyTable(profile.slug, profile.device, profile.runtime, profile.runtime_version)


def measure_rows(
    backend: Backend,
    profile: HardwareProfile,
    pairs: Iterable[Pair],
    threads: int,
    table: LatencyTable,
    progress: Progress | None = None,
    *,
    protocol: Protocol | None = None,
    checkpoint: Callable[[LatencyTable], None] | None = None,
    cache: str = COLD_WEIGHTS,
) -> LatencyTable:
    """The table with the rows it lacked; pairs that cannot be measured stay absent (see `measure_missing`)."""
    return measure_missing(
        backend, profile, pairs, threads, table, progress, protocol=protocol, checkpoint=checkpoint, cache=cache
    ).table


def measure_missing(
    backend: Backend,
    profile: HardwareProfile,
    pairs: Iterable[Pair],
    threads: int,
    table: LatencyTable,
    progress: Progress | None = None,
    *,
    protocol: Protocol | None = None,
    checkpoint: Callable[[LatencyTable], None] | None = None,
    cache: str = COLD_WEIGHTS,
) -> Measured:
    """Measure what the table lacks under a cache mode, all precisions of a shape interleaved, and its overheads once.

    `progress(done, total)` counts pairs. `checkpoint` receives the table after every chunk, so that an interrupted
    run loses little and resumes with the rest. Raises `BackendUnavailable` when this is not the profile's device,
    `BadTable` (`table_mismatch`) when the table belongs to another, and `KernelsError` (`threads_unavailable`).
    """
    _check(profile, threads, table, cache)
    missing = [pair for pair in dict.fromkeys(pairs) if not table.has(*pair, threads, cache)]
    missing.sort(key=lambda pair: pair[0].signature)
    protocol = protocol or backend.protocol or DEFAULT
    run = f"run_{uuid.uuid4().hex[:12]}"
    provenance = _provenance(backend, profile, threads, protocol, cache)
    bench = _Bench(backend, profile, threads, protocol, cache, run, provenance)
    if missing:
        overheads = bench.overheads(table)
        table = table.extended((), run, dict(provenance), overheads)
    done = 0
    for chunk in _chunks(missing):
        within = None if progress is None else _within(progress, done, len(chunk), len(missing))
        rows = bench.measure(chunk, within)
        table = table.extended(rows, run, dict(provenance))
        done += len(chunk)
        if checkpoint is not None and rows:
            checkpoint(table)
        if progress is not None:
            progress(done, len(missing))
    return Measured(table, tuple(bench.refused))


class _Bench:
    """Times chunks of pairs in one run, keeping what could not be timed and under which circumstances."""

    def __init__(
        self,
        backend: Backend,
        profile: HardwareProfile,
        threads: int,
        protocol: Protocol,
        cache: str,
        run: str,
        provenance: dict[str, Any],
    ) -> None:
        self.backend, self.profile, self.threads, self.protocol = backend, profile, threads, protocol
        self.cache, self.run, self.provenance = cache, run, provenance
        self.refused: list[Refused] = []

    def measure(self, chunk: Sequence[Pair], progress: Progress | None) -> list[LatencyRow]:
        """Rows of the pairs that could be built and trusted."""
        built: dict[tuple[str, str], TimedOp] = {}
        least = {}
        try:
            for op, precision in chunk:
                least[op.signature, precision.name] = roofline_us(op, precision, self.profile.device, self.threads)
                try:
                    built[op.signature, precision.name] = self._arm(op, precision)
                except _LEFT_OUT as error:
                    self.refused.append(_refused((op.signature, precision.name), error))
            rows = self._timed(built, least, progress) if built else []
            self.provenance["refused"] = [asdict(entry) for entry in self.refused]
            return rows
        finally:
            for arm in built.values():
                arm.close()

    def overheads(self, table: LatencyTable) -> list[LatencyRow]:
        """Rows of launches and conversions that the table lacks; one that fails costs its row, not the sweep."""
        known = {(row.signature, row.precision) for row in table.overheads}
        built: dict[tuple[str, str], TimedOp] = {}
        refused: list[dict[str, Any]] = []
        try:
            for key, build in self.backend.overheads().items():
                if key in known:
                    continue
                try:
                    built[key] = build()
                except _LEFT_OUT as error:
                    refused.append(asdict(_refused(key, error)))
            if refused:
                self.provenance["overheads_refused"] = refused
            return self._timed(built, {}, None) if built else []
        finally:
            for arm in built.values():
                arm.close()

    def _arm(self, op: OpShape, precision: Precision) -> TimedOp:
        arm = self.backend.timed(op, precision, self.threads, self.protocol.seed, self.cache)
        if arm is not None:
            return arm
        copies = range(copies_needed(op, precision, self.profile.device) if self.cache == COLD_WEIGHTS else 1)
        return Rotation([self.backend.build(op, precision, self.threads, self.protocol.seed) for _ in copies])

    def _timed(
        self, arms: Mapping[tuple[str, str], TimedOp], least: Mapping[tuple[str, str], float], progress: Progress | None
    ) -> list[LatencyRow]:
        timed = interleave(
            {" ".join(key): arm.run for key, arm in arms.items()},
            threads=self.threads,
            protocol=self.protocol,
            clock=self.backend.clock(self.threads),
            anchor=self.backend.anchor,
            progress=progress,
        )
        _note(self.provenance, timed, self.backend)
        rows: list[LatencyRow] = []
        for (signature, precision), arm in arms.items():
            timing = timed.timings[f"{signature} {precision}"].per_call(arm.repeats)
            bound = least.get((signature, precision), 0.0)
            if timing.median_us < bound:
                reason = f"{timing.median_us:.3g} us is faster than this device can be ({bound:.3g} us)"
                self.refused.append(Refused(signature, precision, "below_roofline", reason))
            else:
                rows.append(self._row(signature, precision, timing, arm))
        return rows

    def _row(self, signature: str, precision: str, timing: Timing, arm: TimedOp) -> LatencyRow:
        return LatencyRow(
            signature=signature,
            precision=precision,
            threads=self.threads,
            median_us=timing.median_us,
            ci_low_us=timing.ci_low_us,
            ci_high_us=timing.ci_high_us,
            p05_us=timing.p05_us,
            p95_us=timing.p95_us,
            samples=timing.samples,
            status=RowStatus.MEASURED,
            scope=self.backend.scope,
            executed_kernel=arm.executed_kernel,
            run=self.run,
            cache=self.cache,
            tried=dict(arm.tried),
        )


def _refused(key: tuple[str, str], error: KernelsError) -> Refused:
    return Refused(*key, error.code, error.message, error.hint)


def _within(progress: Progress, before: int, size: int, total: int) -> Progress:
    """Progress of one chunk as pairs of the whole; its last pair is done only when its rows are."""
    return lambda done, of: progress(before + min(size - 1, size * done // of), total)


def _check(profile: HardwareProfile, threads: int, table: LatencyTable, cache: str) -> None:
    if cache not in CACHE_MODES:
        raise KernelsError(
            f"{cache!r} is not a cache mode", hint=f"choose of {', '.join(CACHE_MODES)}", code="bad_cache_mode"
        )
    if not profile.measurable_here:
        raise BackendUnavailable(
            f"profile {profile.slug!r} is {profile.device.name}, this machine is {cpu.this_cpu().name}",
            hint="measure on that device with `python -m kernels measure` and bring the latency table",
        )
    if not 1 <= threads <= profile.device.cores:
        raise KernelsError(
            f"{threads} threads were asked, {profile.device.name} offers {profile.device.cores}",
            hint="a latency with more threads than cores is the scheduler's, not the model's",
            code="threads_unavailable",
        )
    facts = {
        "profile": (table.profile, profile.slug),
        "device": (table.device, profile.device),
        "runtime": (table.runtime, profile.runtime),
        "runtime version": (table.runtime_version, profile.runtime_version),
    }
    wrong = [f"{name} {theirs} is not {ours}" for name, (theirs, ours) in facts.items() if theirs != ours]
    if wrong:
        raise BadTable(
            f"the latency table belongs elsewhere: {'; '.join(wrong)}",
            hint="write rows of this device and runtime version to a table of their own",
            code="table_mismatch",
        )


def _chunks(pairs: Sequence[Pair]) -> Iterable[list[Pair]]:
    """Whole shapes together, few enough arms that each keeps its share of cache and memory."""
    chunk: list[Pair] = []
    for index, (op, precision) in enumerate(pairs):
        new_shape = index > 0 and pairs[index - 1][0] != op
        arms = 1 + sum(1 for other, _ in pairs[index:] if other == op)
        bytes_held = sum(4 * member.weight_count for member, _ in chunk) + 4 * op.weight_count
        if chunk and new_shape and (len(chunk) + arms > _ARMS_AT_ONCE + 1 or bytes_held > _BYTES_AT_ONCE):
            yield chunk
            chunk = []
        chunk.append((op, precision))
    if chunk:
        yield chunk


def _provenance(
    backend: Backend, profile: HardwareProfile, threads: int, protocol: Protocol, cache: str
) -> dict[str, Any]:
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "tool_version": _tool_version(),
        "python": platform.python_version(),
        "backend": backend.name,
        "backend_version": backend.version,
        "session_options": dict(profile.session_options),
        "threads": threads,
        "cache": cache,
        "protocol": asdict(protocol),
        "load_average_before": cpu.load_average(),
        "frequency_mhz_before": cpu.frequency_mhz(),
        "anchor_drift": 0.0,
        "blocks": 0,
        "dropped_blocks": 0,
        "steady": True,
        "device_before": backend.circumstances(),
    }


def _note(provenance: dict[str, Any], timed: Interleaved, backend: Backend) -> None:
    """Fold the circumstances of one chunk into those of the run."""
    provenance["clock"] = timed.clock
    provenance["anchor_us"] = timed.anchor_us
    provenance["anchor_drift"] = max(provenance["anchor_drift"], timed.anchor_drift)
    provenance["blocks"] += timed.blocks
    provenance["dropped_blocks"] += timed.dropped_blocks
    provenance["steady"] = provenance["steady"] and timed.steady
    provenance["load_average_after"] = cpu.load_average()
    provenance["frequency_mhz_after"] = cpu.frequency_mhz()
    provenance["device_after"] = backend.circumstances()


def _tool_version() -> str:
    try:
        return metadata.version("bitwright-server")
    except metadata.PackageNotFoundError:
        return "unknown"
