"""Microbenchmark: the missing rows of a latency table, measured by the protocol of `kernels.interleaving`."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from kernels import cpu
from kernels.backends.base import Backend, KernelFallback
from kernels.errors import BackendUnavailable, BadTable, KernelsError, UnsupportedPrecision
from kernels.hardware_profile import HardwareProfile
from kernels.interleaving import DEFAULT, Interleaved, Progress, Protocol, interleave, measure_interleaved
from kernels.latency_table import LatencyRow, LatencyTable, RowScope, RowStatus
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
_ARMS_AT_ONCE = 12
_BYTES_AT_ONCE = 256_000_000


@dataclass(frozen=True)
class Refused:
    """A pair without a row, and why: not runnable here, or another kernel ran than its precision promises."""

    signature: str
    precision: str
    code: str
    reason: str


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
) -> LatencyTable:
    """The table with the rows it lacked; pairs that cannot be measured stay absent (see `measure_missing`)."""
    return measure_missing(
        backend, profile, pairs, threads, table, progress, protocol=protocol, checkpoint=checkpoint
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
) -> Measured:
    """Measure what the table lacks, all precisions of a shape interleaved.

    `progress(done, total)` counts pairs. `checkpoint` receives the table after every chunk, so that an interrupted
    run loses little and resumes with the rest. Raises `BackendUnavailable` when this is not the profile's device,
    `BadTable` (`table_mismatch`) when the table belongs to another, and `KernelsError` (`threads_unavailable`).
    """
    _check(profile, threads, table)
    missing = [pair for pair in dict.fromkeys(pairs) if not table.has(*pair, threads)]
    missing.sort(key=lambda pair: pair[0].signature)
    protocol = protocol or backend.protocol or DEFAULT
    run = f"run_{uuid.uuid4().hex[:12]}"
    provenance = _provenance(backend, profile, threads, protocol)
    refused: list[Refused] = []
    done = 0
    for chunk in _chunks(missing):
        within = None if progress is None else _within(progress, done, len(chunk), len(missing))
        rows, timed = _measure_chunk(backend, profile, chunk, threads, protocol, run, refused, within)
        provenance["refused"] = [asdict(entry) for entry in refused]
        if timed is not None:
            _note(provenance, timed)
        table = table.extended(rows, run, dict(provenance))
        done += len(chunk)
        if checkpoint is not None and rows:
            checkpoint(table)
        if progress is not None:
            progress(done, len(missing))
    return Measured(table, tuple(refused))


def _measure_chunk(
    backend: Backend,
    profile: HardwareProfile,
    chunk: Sequence[Pair],
    threads: int,
    protocol: Protocol,
    run: str,
    refused: list[Refused],
    progress: Progress | None,
) -> tuple[list[LatencyRow], Interleaved | None]:
    built: dict[Pair, Rotation] = {}
    try:
        for op, precision in chunk:
            try:
                copies = range(copies_needed(op, precision, profile.device))
                built[op, precision] = Rotation([backend.build(op, precision, threads, protocol.seed) for _ in copies])
            except (KernelFallback, UnsupportedPrecision) as error:
                refused.append(Refused(op.signature, precision.name, error.code, error.message))
        if not built:
            return [], None
        names = {f"{op.signature} {precision}": (op, precision) for op, precision in built}
        timed = interleave(
            {name: built[pair].run for name, pair in names.items()},
            threads=threads,
            protocol=protocol,
            clock=backend.clock(threads),
            anchor=backend.anchor,
            progress=progress,
        )
        rows: list[LatencyRow] = []
        for name, (op, precision) in names.items():
            timing = timed.timings[name]
            least = roofline_us(op, precision, profile.device, threads)
            if timing.median_us < least:
                reason = f"{timing.median_us:.3g} us is faster than this device can be ({least:.3g} us)"
                refused.append(Refused(op.signature, precision.name, "below_roofline", reason))
            else:
                rows.append(_row(op, precision, threads, timing, built[op, precision].executed_kernel, run))
        return rows, timed
    finally:
        for runnable in built.values():
            runnable.close()


def _row(op: OpShape, precision: Precision, threads: int, timing: Timing, kernel: str, run: str) -> LatencyRow:
    return LatencyRow(
        signature=op.signature,
        precision=precision.name,
        threads=threads,
        median_us=timing.median_us,
        ci_low_us=timing.ci_low_us,
        ci_high_us=timing.ci_high_us,
        p05_us=timing.p05_us,
        p95_us=timing.p95_us,
        samples=timing.samples,
        status=RowStatus.MEASURED,
        scope=RowScope.DEPLOYABLE,
        executed_kernel=kernel,
        run=run,
    )


def _within(progress: Progress, before: int, size: int, total: int) -> Progress:
    """Progress of one chunk as pairs of the whole; its last pair is done only when its rows are."""
    return lambda done, of: progress(before + min(size - 1, size * done // of), total)


def _check(profile: HardwareProfile, threads: int, table: LatencyTable) -> None:
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


def _provenance(backend: Backend, profile: HardwareProfile, threads: int, protocol: Protocol) -> dict[str, Any]:
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "tool_version": _tool_version(),
        "python": platform.python_version(),
        "backend": backend.name,
        "backend_version": backend.version,
        "session_options": dict(profile.session_options),
        "threads": threads,
        "cache": "cold_weights",
        "protocol": asdict(protocol),
        "load_average_before": cpu.load_average(),
        "frequency_mhz_before": cpu.frequency_mhz(),
        "anchor_drift": 0.0,
        "blocks": 0,
        "dropped_blocks": 0,
        "steady": True,
    }


def _note(provenance: dict[str, Any], timed: Interleaved) -> None:
    """Fold the circumstances of one chunk into those of the run."""
    provenance["clock"] = timed.clock
    provenance["anchor_us"] = timed.anchor_us
    provenance["anchor_drift"] = max(provenance["anchor_drift"], timed.anchor_drift)
    provenance["blocks"] += timed.blocks
    provenance["dropped_blocks"] += timed.dropped_blocks
    provenance["steady"] = provenance["steady"] and timed.steady
    provenance["load_average_after"] = cpu.load_average()
    provenance["frequency_mhz_after"] = cpu.frequency_mhz()


def _tool_version() -> str:
    try:
        return metadata.version("bitwright-server")
    except metadata.PackageNotFoundError:
        return "unknown"
