"""What clients send and get about hardware: profiles, latency tables, coverage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from service.store.models import LatencyTableRow
from service.times import iso

MAX_ROWS = 50_000
MAX_PAIRS = 1000
SLUG = r"^[a-z0-9][a-z0-9._-]{0,62}[a-z0-9]$"
Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=200)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Microseconds = Annotated[FiniteFloat, Field(gt=0, lt=1e12)]


class Strict(BaseModel):
    """A field we do not know is a mistake, and so is text where a number belongs."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Device(Strict):
    """A CPU or GPU; two of one identity (kind, name, cores, isa, driver) may share a latency table."""

    kind: Name
    name: Name
    cores: Annotated[int, Field(ge=1, lt=1 << 31)]
    memory_bytes: Count
    isa: Annotated[list[Name], Field(max_length=200)] = []
    l2_bytes: Count = 0
    l3_bytes: Count = 0
    os: Text = ""
    driver: Text = ""


class Support(Strict):
    """The kernel that runs an op kind in a precision; `via` is its own compute format."""

    op: Name
    precision: Name
    kernel: Name
    via: Literal["native", "via_int8", "via_fp16", "via_bf16", "emulated"] = "native"
    whole_groups: bool = False
    verified: bool = True


class NumericsBody(Strict):
    """One tensor's integer format."""

    bits: Annotated[int, Field(ge=1, le=16)]
    symmetric: bool
    signed: bool
    granularity: Literal["tensor", "channel", "group", "row"]
    group_size: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    reduced_range: bool = False
    dynamic: bool = False


class RecipeBody(Strict):
    """The numerics a runtime imposes on a layer in one precision."""

    name: Name
    weight: NumericsBody
    activation: NumericsBody | None
    output_quantized: bool
    internal_activation: NumericsBody | None = None


class PairRecipe(Strict):
    op: Name
    precision: Name
    recipe: RecipeBody


class PeakBody(Strict):
    """A rate with the source of the figure."""

    value: Annotated[FiniteFloat, Field(gt=0)]
    unit: Name
    source: Annotated[str, Field(max_length=1000)]
    quality: Text


class ProfileBody(Strict):
    """A hardware profile, as `python -m kernels profile --json` prints it."""

    schema_version: Literal[1]
    slug: Annotated[str, Field(pattern=SLUG)]
    device: Device
    runtime: Name
    runtime_version: Name
    support: Annotated[list[Support], Field(min_length=1, max_length=MAX_PAIRS)]
    recipes: Annotated[list[PairRecipe], Field(max_length=MAX_PAIRS)] = []
    session_options: dict[Name, Text] = Field(default_factory=dict, max_length=100)
    tie_rules: Annotated[list[Name], Field(max_length=100)] = []
    peaks: dict[Name, PeakBody] = Field(default_factory=dict, max_length=100)
    achieved: dict[Name, PeakBody] = Field(default_factory=dict, max_length=100)
    measurable_here: bool = False


class RowBody(Strict):
    """One measurement; see `kernels.latency_table.LatencyRow`."""

    signature: Annotated[str, Field(min_length=1, max_length=300)]
    precision: Name
    threads: Annotated[int, Field(ge=1, le=4096)]
    median_us: Microseconds
    ci_low_us: Microseconds
    ci_high_us: Microseconds
    p05_us: Microseconds
    p95_us: Microseconds
    samples: Count
    status: Literal["measured", "interpolated", "estimated", "published"]
    scope: Literal["deployable", "kernel"]
    executed_kernel: Annotated[str, Field(max_length=500)]
    run: Name
    cache: Literal["cold_weights", "cold", "hot"] = "cold_weights"
    tried: dict[Name, Microseconds] = Field(default_factory=dict, max_length=100)


class TableBody(Strict):
    """A latency table, as `python -m kernels measure` and `python -m search measure` write it."""

    schema_version: int
    profile: Name
    device: Device
    runtime: Name
    runtime_version: Name
    version: Count
    runs: dict[Name, dict[str, Any]] = Field(max_length=1000)
    rows: Annotated[list[RowBody], Field(min_length=1, max_length=MAX_ROWS)]
    overheads: Annotated[list[RowBody], Field(max_length=MAX_PAIRS)] = []


class TableSummary(BaseModel):
    """What is known of a profile now: rows that count, and how old they are."""

    version: int
    versions: int
    rows: int
    rows_by_status: dict[str, int]
    oldest_at: str | None
    newest_at: str | None
    age_s: float


class HardwareProfileView(BaseModel):
    """A device with its runtime. `live`: a worker takes its stages now. `source`: `worker`, `shipped` or `user`."""

    slug: str
    live: bool
    source: str
    announced_at: str | None
    table: TableSummary | None
    profile: dict[str, Any]


class HardwareProfileList(BaseModel):
    items: list[HardwareProfileView]


class LatencyTableView(BaseModel):
    """One version: the rows that one upload (`source` `upload`) or one stage (`study`) added.

    `current` is false for rows measured under another driver, runtime or set of options than the profile has now.
    """

    id: str
    hardware: str
    version: int
    rows: int
    source: str
    study: str | None
    runtime: str
    runtime_version: str
    device: dict[str, Any]
    runs: dict[str, dict[str, Any]]
    current: bool
    created_at: str | None


class LatencyTablePage(BaseModel):
    items: list[LatencyTableView]
    next_cursor: str | None


class CoverageCell(BaseModel):
    """Rows that count now for one op kind and precision."""

    op: str
    precision: str
    threads: int
    status: str
    scope: str
    rows: int
    op_shapes: int
    newest_at: str | None


class Coverage(BaseModel):
    """What has been measured of a profile, and which pairs it could run but nobody timed."""

    hardware: str
    cells: list[CoverageCell]
    unmeasured: list[str]


def table_view(row: LatencyTableRow, identity: str) -> LatencyTableView:
    return LatencyTableView(
        id=row.id,
        hardware=row.hardware,
        version=row.version,
        rows=row.row_count,
        source=row.source,
        study=row.study_id,
        runtime=row.runtime,
        runtime_version=row.runtime_version,
        device=row.device,
        runs=row.runs,
        current=row.identity_key == identity,
        created_at=iso(row.created_at),
    )
