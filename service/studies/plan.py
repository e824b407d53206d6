"""Plan: which stages a study has and what each waits for. The kinds are data; the engine knows none by name.

check ─┬─ scan ──────────────┬─ solve ─── evaluate (one per target)
       └─ measure (per target) ┘
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageKind:
    """One kind of stage.

    `queue` may name `{hardware}`, the slug of the stage's target. `reads_budgets`: budgets and tolerance are
    part of its input; the others never see them, so a new budget finds them finished. `publishes`: its files are
    artifacts.
    """

    name: str
    after: tuple[str, ...]
    queue: str
    per_target: bool = False
    reads_budgets: bool = False
    publishes: bool = False

    @property
    def on_device(self) -> bool:
        """True when the stage must run on the target's own hardware, which then is part of its input."""
        return "{hardware}" in self.queue


KINDS: tuple[StageKind, ...] = (
    StageKind("check", (), "check", reads_budgets=True),
    StageKind("scan", ("check",), "scan"),
    StageKind("measure", ("check",), "measure.{hardware}", per_target=True),
    StageKind("solve", ("scan", "measure"), "solve", reads_budgets=True),
    StageKind("evaluate", ("solve",), "measure.{hardware}", per_target=True, reads_budgets=True, publishes=True),
)
GOALS = ("budgets", "tolerance")
COMMON_QUEUES: tuple[str, ...] = tuple(kind.queue for kind in KINDS if not kind.on_device)


def kind_named(name: str, kinds: Sequence[StageKind] = KINDS) -> StageKind:
    """The kind of that name; raises `KeyError` for one this version does not know."""
    return {kind.name: kind for kind in kinds}[name]


@dataclass(frozen=True)
class PlannedStage:
    """A stage to be: `after` holds the positions in the plan of the stages it waits for."""

    kind: str
    shard: int
    target: int | None
    queue: str
    after: tuple[int, ...]


def plan_study(spec: Mapping[str, Any], kinds: Sequence[StageKind] = KINDS) -> list[PlannedStage]:
    """The stages of a study in an order in which each comes after what it waits for."""
    planned: list[PlannedStage] = []
    for kind in kinds:
        targets: list[int | None] = list(range(len(spec["targets"]))) if kind.per_target else [None]
        for shard, target in enumerate(targets):
            after = tuple(
                position
                for position, earlier in enumerate(planned)
                if earlier.kind in kind.after and (earlier.target is None or target in (None, earlier.target))
            )
            hardware = spec["targets"][target]["hardware"] if target is not None else ""
            planned.append(PlannedStage(kind.name, shard, target, kind.queue.format(hardware=hardware), after))
    return planned


def stage_spec(spec: Mapping[str, Any], kind: StageKind, target: int | None) -> dict[str, Any]:
    """What a stage is told of the study: the request, without budgets where the kind does not read them."""
    targets = [
        dict(entry) if kind.reads_budgets else {name: value for name, value in entry.items() if name not in GOALS}
        for entry in spec["targets"]
    ]
    told = {**spec, "targets": targets}
    return told if target is None else {**told, "target": target}
