"""What a study's page asks of its reader, the user's own evaluations, and what the reader asked of the study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service.dependencies import Parts
from service.errors import Problem
from service.store.models import ArtifactRow
from service.studies.allocations import recent_allocations
from service.studies.evaluations import get_evaluations
from service.studies.schemas import AllocationView, EvaluationView, StudyView

MOST_ASKED = 20


@dataclass(frozen=True)
class Asked:
    """One allocation that was asked for; `mix` counts its layers by precision, those in full precision left out."""

    view: AllocationView
    mix: str

    @property
    def is_infeasible(self) -> bool:
        return self.view.result is not None and self.view.result.infeasible is not None


def asked_of(session: Session, parts: Parts, study_id: str) -> list[Asked]:
    """The last allocations asked of the study, newest first."""
    return [Asked(view, _mix(view)) for view in recent_allocations(session, parts, study_id, MOST_ASKED)]


def _mix(view: AllocationView) -> str:
    counts = Counter((view.result.precisions or {}).values() if view.result else ())
    return ", ".join(f"{count} × {precision}" for precision, count in counts.most_common())


def is_solved(view: StudyView) -> bool:
    """True when some target of the study can be asked for other budgets."""
    return any(stage.kind == "solve" and stage.state == "succeeded" for stage in view.stages)


@dataclass(frozen=True)
class Evaluated:
    """The finalists of one target with what was posted of them, and their files as artifacts by name."""

    view: EvaluationView
    files: Mapping[str, ArtifactRow]


def evaluations_of(session: Session, view: StudyView, artifacts: Sequence[ArtifactRow]) -> list[Evaluated]:
    """Per target whose finalists are built, while the study waits for the user's own evaluator."""
    if view.is_terminal or view.spec.get("evaluator") is None:
        return []
    found = []
    for position in range(len(view.spec["targets"])):
        try:
            told = get_evaluations(view.id, session, position)
        except Problem:  # its finalists are not built yet
            continue
        files = {file.name: file for file in artifacts if file.target == position}
        found.append(Evaluated(told, files))
    return found


def evaluator_words(evaluator: Mapping[str, Any]) -> str:
    """What decides between the finalists."""
    metric, tolerance = evaluator["metric"], evaluator.get("tolerance")
    best = "highest" if evaluator.get("higher_is_better", True) else "lowest"
    if tolerance is None:
        return f"The finalist within the budgets with the {best} {metric} wins."
    return f"The fastest finalist whose {metric} is at most {tolerance:g} worse than full precision's wins."
