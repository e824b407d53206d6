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
    """How the model is served."""

    batch: Annotated[int, Field(ge=1, le=65536, strict=True)] = 1
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


class StudyRequest(Strict):
    """The body of `POST /v1/studies`."""

    model: Annotated[str, Field(min_length=1, max_length=64)]
    dataset: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    targets: Annotated[list[TargetRequest], Field(min_length=1, max_length=MAX_TARGETS)]
    seed: Annotated[int, Field(ge=0, lt=1 << 32, strict=True)] = 0
    options: dict[Annotated[str, Field(max_length=64)], JsonValue] = Field(default_factory=dict, max_length=MAX_OPTIONS)
    name: Annotated[str, Field(max_length=200)] = ""

    def spec(self) -> dict[str, Any]:
        """The request as the stages are told it; the name is for people only."""
        return self.model_dump(mode="json", exclude={"name"})


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
    """What a study waits for that nobody here can hurry."""

    queue: str
    reason: str


class StageView(BaseModel):
    """One step of a study."""

    kind: str
    target: int | None
    state: str
    attempt: int
    reused: bool
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
