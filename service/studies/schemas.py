"""What a client sends to start a study and what it gets back."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, PlainValidator, model_validator

_TIMES = re.compile(r"\d+(\.\d+)?x?")
MAX_TARGETS = 16
MAX_BUDGET_TEXT = 32
MAX_OPTIONS = 64
Resource = Literal["latency_ms", "size_bytes", "bops", "peak_memory_bytes"]


class Strict(BaseModel):
    """A field we do not know is a mistake, not something to ignore."""

    model_config = ConfigDict(extra="forbid")


class RelativeBudget(Strict):
    """A point between the cheapest (0) and the dearest (1) reachable allocation."""

    relative: Annotated[float, Field(ge=0, le=1, strict=True)]


def _budget(value: Any) -> float | str | dict[str, float]:
    match value:
        case bool():
            pass
        case int() | float() if math.isfinite(value) and value > 0:
            return value
        case str() if len(value) <= MAX_BUDGET_TEXT and _TIMES.fullmatch(text := value.strip()):
            if float(text.rstrip("x")) > 0:
                return text
        case {"relative": int() | float() as fraction, **rest} if not rest and 0 <= fraction <= 1:
            return {"relative": float(fraction)}
    raise ValueError('write a positive number, "0.6x" of full precision, or {"relative": 0.5}')


# One validator instead of a union, so that a wrong budget gets one sentence and not one for every way to write it.
BudgetValue = Annotated[Any, PlainValidator(_budget, json_schema_input_type=float | str | RelativeBudget)]
BudgetNumber = Annotated[FiniteFloat, Field(gt=0, strict=True)]


class OperatingPointRequest(Strict):
    """How the model is served; without `batch` at the one it is exported for, or 1 where that is open."""

    batch: Annotated[int, Field(ge=1, le=65536, strict=True)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    dims: dict[
        Annotated[str, Field(min_length=1, max_length=128)], Annotated[int, Field(ge=1, le=1 << 31, strict=True)]
    ] = Field(default_factory=dict, max_length=32)


class AccuracyDrop(Strict):
    """At most this fraction of samples may be answered wrongly that full precision answers rightly."""

    accuracy_drop: BudgetNumber


class LossTolerance(Strict):
    """At most this loss, in the loss's own unit."""

    loss: BudgetNumber


class TargetRequest(Strict):
    """A hardware profile, an operating point, and budgets or a tolerance."""

    hardware: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    operating_point: OperatingPointRequest = Field(default_factory=OperatingPointRequest)
    budgets: dict[Resource, BudgetValue] = Field(default_factory=dict)
    tolerance: AccuracyDrop | LossTolerance | None = None

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if bool(self.budgets) == (self.tolerance is not None):
            raise ValueError('give either budgets, as {"latency_ms": "0.6x"}, or a tolerance, as {"loss": 0.01}')
        return self


MetricName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\s].*$")]


class EvaluatorRequest(Strict):
    """Quality is judged by the user: their pipeline downloads the finalists and posts `metric` of each.

    With a `tolerance` the fastest finalist wins whose metric is at most so much worse than full precision's.
    """

    metric: MetricName
    higher_is_better: bool = True
    tolerance: Annotated[FiniteFloat, Field(ge=0, strict=True)] | None = None


class StudyRequest(Strict):
    """The body of `POST /v1/studies`."""

    model: Annotated[str, Field(min_length=1, max_length=64)]
    dataset: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    targets: Annotated[list[TargetRequest], Field(min_length=1, max_length=MAX_TARGETS)]
    seed: Annotated[int, Field(ge=0, lt=1 << 32, strict=True)] = 0
    options: dict[Annotated[str, Field(max_length=64)], JsonValue] = Field(default_factory=dict, max_length=MAX_OPTIONS)
    evaluator: EvaluatorRequest | None = None
    name: Annotated[str, Field(max_length=200)] = ""

    def spec(self) -> dict[str, Any]:
        """The request as the stages are told it; the name is for people only."""
        spec = self.model_dump(mode="json", exclude={"name"})
        if spec["evaluator"] is None:
            del spec["evaluator"]
        return spec


class CloneRequest(Strict):
    """What a copy of a study asks differently; fields left out stay as they are."""

    targets: Annotated[list[TargetRequest], Field(min_length=1, max_length=MAX_TARGETS)] = Field(default_factory=list)
    seed: Annotated[int, Field(ge=0, lt=1 << 32, strict=True)] = 0
    options: dict[Annotated[str, Field(max_length=64)], JsonValue] = Field(default_factory=dict, max_length=MAX_OPTIONS)
    evaluator: EvaluatorRequest | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)] = "copy"


class PlaceRequest(Strict):
    """A hardware profile at an operating point."""

    hardware: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    operating_point: OperatingPointRequest = Field(default_factory=OperatingPointRequest)


class AllocationRequest(Strict):
    """A new question to a solved study: budgets on one of its targets (by position), or on a new place.

    One budget on the front's resource is answered at once from the stored front where its proven gap to the optimum is
    at most `within`; everything else is solved, and with `exact` that too. `metric` names the sensitivity to solve from
    (default: what won the verdict).
    """

    target: Annotated[int, Field(ge=0, lt=MAX_TARGETS, strict=True)] | PlaceRequest = 0
    budgets: dict[Resource, BudgetValue] = Field(min_length=1)
    metric: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    within: Annotated[FiniteFloat, Field(ge=0, strict=True)] = 0.1
    exact: Annotated[bool, Field(strict=True)] = False


class FinalistResult(Strict):
    """What the user's evaluator measured of one finalist."""

    finalist: Annotated[str, Field(min_length=1, max_length=200)]
    metrics: dict[MetricName, Annotated[FiniteFloat, Field(strict=True)]] = Field(min_length=1, max_length=64)


class EvaluationRequest(Strict):
    """Results of the user's own evaluator, in one post or several."""

    target: Annotated[int, Field(ge=0, lt=MAX_TARGETS, strict=True)] = 0
    results: Annotated[list[FinalistResult], Field(min_length=1, max_length=64)]


class Progress(BaseModel):
    """How far the running step is; `eta_s` is None until it can be told."""

    done: int
    total: int
    unit: str
    eta_s: float | None
    message: str = ""


class StudyError(BaseModel):
    """Why a study failed: `user` means the submission must change, `infrastructure` that we failed."""

    category: Literal["user", "infrastructure"]
    code: str
    message: str
    hint: str
    stage: str


class WaitingFor(BaseModel):
    """What a study waits for that nobody here can hurry: a worker for a queue, or the user's own evaluations."""

    kind: Literal["worker", "evaluations"]
    queue: str | None
    reason: str


class StageView(BaseModel):
    """One step of a study. `shared`: another study's stage does the same work now, and this one takes its output."""

    kind: str
    target: int | None
    shard: int | None
    state: str
    attempt: int
    reused: bool
    shared: bool
    progress: Progress | None
    started_at: str | None
    finished_at: str | None
    error: StudyError | None


class StudySummary(BaseModel):
    """A study as a list shows it. Clients ask `is_terminal`; they never enumerate states."""

    id: str
    name: str
    state: str
    is_terminal: bool
    model: str
    dataset: str | None
    hardware: list[str]
    verdicts: list[Any] | None
    error: StudyError | None
    created_at: str | None
    updated_at: str | None
    finished_at: str | None


class StudyView(StudySummary):
    """A study with all a waiting client wants to know."""

    version: int
    stage: str | None
    progress: Progress
    waiting_for: WaitingFor | None
    stages: list[StageView]
    spec: dict[str, Any]
    links: dict[str, str]


class StudyPage(BaseModel):
    items: list[StudySummary]
    next_cursor: str | None


class EventView(BaseModel):
    """Something that happened; `seq` orders the events of one study."""

    seq: int
    at: str | None
    kind: str
    data: dict[str, Any]


class EventList(BaseModel):
    items: list[EventView]


class StageLog(BaseModel):
    """The last lines one stage printed in its last attempt that printed any; `is_cut`: there were more before them.

    Folders of the server are left out of them.
    """

    stage: str
    target: int | None
    shard: int | None
    attempt: int
    written_at: str | None
    is_cut: bool
    lines: list[str]


class StudyLog(BaseModel):
    items: list[StageLog]


class AllocationResult(BaseModel):
    """A predicted allocation: nothing of it was built or run.

    `precisions` by layer, full precision left out; None when nothing can be reached. `gap` bounds how far the surrogate
    loss is from its optimum. `infeasible` says what can be reached when the budgets cannot be met; the allocation is
    then the nearest one.
    """

    metric: str
    limits: dict[str, float]
    precisions: dict[str, str] | None
    predicted: dict[str, float]
    surrogate_loss: float | None
    gap: float | None
    infeasible: dict[str, Any] | None


class AllocationView(BaseModel):
    """An allocation asked of a study. `origin`: `front` (looked up) or `solved`. `position` None: a new target."""

    id: str
    study: str
    position: int | None
    target: dict[str, Any]
    origin: Literal["front", "solved"]
    state: str
    is_terminal: bool
    result: AllocationResult | None
    error: StudyError | None
    waiting_for: WaitingFor | None
    created_at: str | None


class PlannedAllocation(BaseModel):
    """An allocation the study itself solved for one of its targets, before it was built."""

    position: int
    name: str
    source: str
    metric: str | None
    precisions: dict[str, str]
    predicted: dict[str, float]
    surrogate_loss: float | None
    gap: float | None


class AllocationPage(BaseModel):
    """Allocations asked later, newest first, and with the first page those of the study itself."""

    items: list[AllocationView]
    planned: list[PlannedAllocation]
    next_cursor: str | None


class Finalist(BaseModel):
    """An assembly that was built and waits for the user's evaluator; its files are artifacts of the study."""

    name: str
    file: str
    source: str
    meets_budgets: bool
    latency_ms: float | None
    size_bytes: int
    metrics: dict[str, float] | None


class EvaluationView(BaseModel):
    """What has been posted of one target's finalists and what is missing."""

    target: int
    metric: str
    state: str
    finalists: list[Finalist]
    missing: list[str]


class ComparedFigure(BaseModel):
    """One figure of the chosen assembly: measured, with its 95 % interval, beside full precision's."""

    value: float
    low: float | None
    high: float | None
    full_precision: float | None


class ComparedTarget(BaseModel):
    """One target of one study beside others.

    `figures` of the chosen assembly: `latency_ms`, `size_bytes`, `loss`, `accuracy`, as far as they were measured; None
    where nothing was chosen.
    """

    study: str
    name: str
    state: str
    model: str
    position: int
    target: dict[str, Any]
    verdict: dict[str, Any] | None
    figures: dict[str, ComparedFigure] | None
    error: StudyError | None


class Comparison(BaseModel):
    items: list[ComparedTarget]


class ArtifactView(BaseModel):
    """A file to download."""

    id: str
    name: str
    target: int | None
    media_type: str
    sha256: str
    size_bytes: int
    href: str


class ArtifactList(BaseModel):
    items: list[ArtifactView]
