"""Answering: one target's allocation under a new budget, from its stored question. No model, no scan, no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from search.allocation.question import Question, question_file
from search.study import parse_study, require_goals

ANSWER = "answer.json"


def answer(spec: Mapping[str, Any], path: Path, progress: Callable[[int, int, str, str], None]) -> dict[str, Any]:
    """The best allocation of the study's one target by `spec["metric"]` (the leading one when absent)."""
    study = parse_study(spec)
    require_goals(study)
    (target,) = study.targets
    found = Question.load(path / question_file(0)).answer(
        target.budgets, metric=spec.get("metric"), solver=study.solver
    )
    document = {"hardware": target.hardware, **found.to_json()}
    (path / ANSWER).write_text(json.dumps(document, allow_nan=False))
    progress(1, 1, "targets", "solve")
    return {"outputs": [ANSWER], "summary": {"answer": document}}
