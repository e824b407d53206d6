"""Plan: which stages a study has and what each waits for. The kinds are data; the engine knows none by name.

check ─┬─ scan_shard ×n ─ scan ─┬─ solve ─ evaluate ─ verdict     (all but check and the shards: one chain per target)
       └─ measure ──────────────┘

Shards scan the union of the targets' recipes. They are planned where several workers scan or several targets may differ
in their numerics; each target's `scan` takes from them what its recipes name, and does the whole where there are none.
`verdict` waits for the user's own evaluator and is planned only where the study asks for one. `answer` finds one more
allocation of a study that was solved before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Sees = Literal["hardware", "operating_point", "goal"]


@dataclass(frozen=True)
class StageKind:
    """One kind of stage.

    `queue` may name `{hardware}`, the slug of the stage's target. `per_target`: one stage per target, told that target
    alone, so that it is the same whatever other targets a study has. `sees`: how much of a target is part of the input:
    `hardware` only, `operating_point` too, or the whole `goal` with budgets and tolerance; what a stage does not see
    can change and finds it finished. `device` says what of the hardware profile its output depends on. `ignores` are
    options it does not read. `shards` names the kind it is a part of: planned as several stages that serve all
    targets, or as none. `saves`: parts it saves are taken up by later attempts and by all kinds of that name. `judges`:
    it is told of the user's own evaluator. `awaits`: it also waits for what only a user can bring. `publishes`: its
    files are artifacts.
    """

    name: str
    after: tuple[str, ...]
    queue: str
    per_target: bool = False
    sees: Sees = "goal"
    device: Literal["nothing", "recipes", "profile"] = "profile"
    ignores: tuple[str, ...] = ()
    shards: str | None = None
    saves: str | None = None
    judges: bool = False
    awaits: str | None = None
    publishes: bool = False

    @property
    def on_device(self) -> bool:
        """True when the stage must run on the target's own hardware."""
        return "{hardware}" in self.queue


_SOLVING = ("pins", "front_points", "solver")
_SCANNING = ("metrics", "precisions", "losses", "scan_samples")
_SCAN = {"sees": "hardware", "device": "recipes", "ignores": (*_SOLVING, "estimates"), "saves": "scan"}
EVALUATIONS = "evaluations"
KINDS: tuple[StageKind, ...] = (
    StageKind("check", (), "check", sees="operating_point", device="nothing"),
    StageKind("scan_shard", ("check",), "scan", shards="scan", **_SCAN),  # type: ignore[arg-type]
    StageKind("scan", ("check", "scan_shard"), "scan", per_target=True, **_SCAN),  # type: ignore[arg-type]
    StageKind(
        "measure", ("check",), "measure.{hardware}", True, "operating_point", ignores=(*_SOLVING, *_SCANNING),
        saves="measure",
    ),
    StageKind("solve", ("scan", "measure"), "solve", per_target=True),
    StageKind("evaluate", ("solve",), "measure.{hardware}", per_target=True, judges=True, publishes=True),
    StageKind(
        "verdict", ("evaluate",), "solve", per_target=True, judges=True, awaits=EVALUATIONS, publishes=True
    ),
    StageKind(
        "answer", ("solve",), "solve", per_target=True, ignores=(*_SCANNING, "pins", "front_points", "estimates")
    ),
)  # fmt: skip
STUDY_KINDS = ("check", "scan_shard", "scan", "measure", "solve", "evaluate")
GOALS = ("budgets", "tolerance")
COMMON_QUEUES: tuple[str, ...] = tuple(dict.fromkeys(kind.queue for kind in KINDS if not kind.on_device))


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
    awaits: str | None = None


def study_kinds(spec: Mapping[str, Any]) -> tuple[StageKind, ...]:
    """The kinds a study of this request goes through."""
    names = (*STUDY_KINDS, "verdict") if spec.get("evaluator") else STUDY_KINDS
    return tuple(map(kind_named, names))


def answer_kinds(*, from_question: bool) -> tuple[StageKind, ...]:
    """The kinds that find one more allocation: from a stored question alone, or with all that leads to one."""
    return tuple(map(kind_named, ("answer",) if from_question else (*STUDY_KINDS[:-1], "answer")))


def plan_study(
    spec: Mapping[str, Any],
    kinds: Sequence[StageKind] | None = None,
    *,
    shards: int = 1,
    anywhere: Collection[str] = (),
) -> list[PlannedStage]:
    """The stages of a study in an order in which each comes after what it waits for.

    Kinds that are parts of another are planned as `shards` stages where those are several or the targets may be scanned
    differently. Stages of hardware in `anywhere` need no device: any worker that scans does them.
    """
    planned: list[PlannedStage] = []
    for kind in study_kinds(spec) if kinds is None else kinds:
        targets: list[int | None] = list(range(len(spec["targets"]))) if kind.per_target else [None]
        if kind.shards is not None:
            several = len(stage_spec(spec, kind, None)["targets"]) > 1
            targets = [None] * shards if shards > 1 or several else []
        for shard, target in enumerate(targets):
            after = tuple(
                position
                for position, earlier in enumerate(planned)
                if earlier.kind in kind.after and (earlier.target is None or target in (None, earlier.target))
            )
            hardware = spec["targets"][target]["hardware"] if target is not None else ""
            queue = "scan" if kind.on_device and hardware in anywhere else kind.queue.format(hardware=hardware)
            planned.append(PlannedStage(kind.name, shard, target, queue, after, kind.awaits))
    return planned


def stage_spec(
    spec: Mapping[str, Any], kind: StageKind, target: int | None, shard: tuple[int, int] | None = None
) -> dict[str, Any]:
    """What a stage is told of the study: its own target or all, and of each, and of the options, what it reads."""
    chosen = spec["targets"] if target is None else [spec["targets"][target]]
    left_out = ("targets", "options") if kind.judges else ("targets", "options", "evaluator")
    told = {name: value for name, value in spec.items() if name not in left_out}
    told["targets"] = _distinct([_seen(entry, kind, bool(spec.get("dataset"))) for entry in chosen])
    told["options"] = {name: value for name, value in spec.get("options", {}).items() if name not in kind.ignores}
    return told if shard is None else {**told, "shard": list(shard)}


def _seen(entry: Mapping[str, Any], kind: StageKind, has_data: bool) -> dict[str, Any]:
    match kind.sees:
        case "goal":
            return dict(entry)
        case "hardware" if has_data:  # without a dataset, synthetic samples take the operating point's dimensions
            return {"hardware": entry["hardware"]}
        case _:
            return {name: value for name, value in entry.items() if name not in GOALS}


def _distinct(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for index, entry in enumerate(entries) if entry not in entries[:index]]
