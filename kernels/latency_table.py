"""Latency table: measured times of (op shape, precision) pairs on one profile. Append-only and versioned."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

from kernels.device_identity import DeviceIdentity
from kernels.errors import BadTable, NotMeasured
from kernels.op_shape import OpShape
from kernels.precision import Precision

SCHEMA_VERSION = 1
COLD_WEIGHTS = "cold_weights"
CACHE_MODES = (COLD_WEIGHTS, "cold", "hot")
"""What the caches hold when an op starts: its activations only (as inside a network), nothing of it, or everything."""


class RowStatus(str, Enum):
    """Where a row's number comes from; only `measured` rows may be called measured."""

    MEASURED = "measured"
    INTERPOLATED = "interpolated"
    ESTIMATED = "estimated"
    PUBLISHED = "published"


class RowScope(str, Enum):
    """What was timed: the runtime that loads the artifact (`deployable`) or our kernel alone (`kernel`)."""

    DEPLOYABLE = "deployable"
    KERNEL = "kernel"


Key = tuple[str, str, int, str]


@dataclass(frozen=True)
class LatencyRow:
    """One measurement: the median of `samples` runs in microseconds with its bootstrap interval.

    `run` names the entry of `LatencyTable.runs` that holds versions, options, clocks and time. `executed_kernel`
    is what the runtime reported to have run, which may differ from what was asked. Where several kernels can run the
    pair the row is the fastest's, and `tried` holds the first impression (microseconds) of every one by name.
    """

    signature: str
    precision: str
    threads: int
    median_us: float
    ci_low_us: float
    ci_high_us: float
    p05_us: float
    p95_us: float
    samples: int
    status: RowStatus
    scope: RowScope
    executed_kernel: str
    run: str
    cache: str = COLD_WEIGHTS
    tried: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> Key:
        return self.signature, self.precision, self.threads, self.cache


@dataclass(frozen=True)
class LatencyTable:
    """All rows of one profile. Adding rows gives a new table with the next `version`; a later row wins.

    `overheads` are rows of what is no layer: an empty launch (`empty`), and conversions between number formats
    (`quantize_e4096`, `dequantize_e4096` for so many elements). They are shown and never subtracted from a row.
    """

    profile: str
    device: DeviceIdentity
    runtime: str
    runtime_version: str
    rows: tuple[LatencyRow, ...] = ()
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = 0
    overheads: tuple[LatencyRow, ...] = ()

    def _index(self) -> dict[Key, LatencyRow]:
        cached: dict[Key, LatencyRow] | None = self.__dict__.get("_rows_by_key")
        if cached is None:
            cached = {row.key: row for row in self.rows}
            object.__setattr__(self, "_rows_by_key", cached)
        return cached

    def latest(self) -> Iterator[LatencyRow]:
        """The valid row of every key, later appended rows replacing earlier ones."""
        return iter(self._index().values())

    def has(self, op: OpShape, precision: Precision, threads: int, cache: str = COLD_WEIGHTS) -> bool:
        return (op.signature, precision.name, threads, cache) in self._index()

    def lookup(self, op: OpShape, precision: Precision, threads: int, cache: str = COLD_WEIGHTS) -> LatencyRow:
        """The row of a pair; raises `NotMeasured` for anything the table does not hold."""
        row = self._index().get((op.signature, precision.name, threads, cache))
        if row is None:
            raise NotMeasured(
                f"profile {self.profile!r} has no row for {op.signature} in {precision} on {threads} thread(s)",
                hint="measure it: python -m search measure --model … --hardware …",
            )
        return row

    def extended(
        self, rows: Iterable[LatencyRow], run: str, provenance: dict[str, Any], overheads: Iterable[LatencyRow] = ()
    ) -> LatencyTable:
        """A new table with `rows` and `overheads` appended under the provenance of one measuring run."""
        added, more = tuple(rows), tuple(overheads)
        if not added and not more:
            return self
        return replace(
            self,
            rows=self.rows + added,
            overheads=self.overheads + more,
            runs={**self.runs, run: provenance},
            version=self.version + 1,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "profile": self.profile,
            "device": self.device.to_json(),
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "version": self.version,
            "runs": self.runs,
            "rows": [_row_json(row) for row in self.rows],
            "overheads": [_row_json(row) for row in self.overheads],
        }

    @classmethod
    def from_json(cls, data: Any) -> LatencyTable:
        """The table a JSON document holds; raises `BadTable` for another schema or a damaged one."""
        try:
            if data["schema_version"] != SCHEMA_VERSION:
                raise BadTable(
                    f"latency table has schema version {data['schema_version']}, this program reads {SCHEMA_VERSION}",
                    hint="measure again with this version, or use the version that wrote the table",
                )
            return cls(
                profile=data["profile"],
                device=DeviceIdentity.from_json(data["device"]),
                runtime=data["runtime"],
                runtime_version=data["runtime_version"],
                rows=tuple(_read_row(row) for row in data["rows"]),
                runs=data["runs"],
                version=data["version"],
                overheads=tuple(_read_row(row) for row in data.get("overheads", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadTable(f"not a latency table: {error!r}", hint="expected the JSON of kernels measure") from error

    @classmethod
    def loads(cls, text: str) -> LatencyTable:
        try:
            return cls.from_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise BadTable(f"not JSON: {error}", hint="expected the JSON of kernels measure") from error


def _row_json(row: LatencyRow) -> dict[str, Any]:
    return {**asdict(row), "status": row.status.value, "scope": row.scope.value}


def _read_row(data: dict[str, Any]) -> LatencyRow:
    row = LatencyRow(**{**data, "status": RowStatus(data["status"]), "scope": RowScope(data["scope"])})
    times = (row.median_us, row.ci_low_us, row.ci_high_us, row.p05_us, row.p95_us)
    if not all(isinstance(each, (int, float)) and 0 <= each < math.inf for each in times) or row.median_us == 0:
        raise ValueError(f"{row.signature} in {row.precision} takes {times} microseconds")
    return row
