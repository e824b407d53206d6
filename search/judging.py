"""Judging: the verdict of one target from the numbers that the user's own evaluator posted. Runs no model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from search.evaluation.finalists import Finalist, judge
from search.report.html import render_html
from search.study import parse_study

FINALISTS, PROVISIONAL = "finalists.json", "provisional_report.json"


def verdict(spec: Mapping[str, Any], path: Path, progress: Callable[[int, int, str, str], None]) -> dict[str, Any]:
    """The verdict, the report that says so, and the winner's files; `evaluations` holds `finalist` and `metrics`."""
    study = parse_study(spec)
    assert study.evaluator is not None
    (target,) = study.targets
    finalists = [Finalist(**each) for each in json.loads((path / FINALISTS).read_text())]
    metrics = {each["finalist"]: each["metrics"] for each in spec["evaluations"]}
    values = {name: found[study.evaluator.metric] for name, found in metrics.items()}
    found = judge(finalists, study.evaluator, values)
    report = json.loads((path / PROVISIONAL).read_text())
    (document,) = report["targets"]
    outputs: list[str] = []
    winner = next((item for item in finalists if item.name == found.chosen), None)
    for kept, name in (winner.files if winner is not None else {}).items():
        shutil.copyfile(path / name, path / kept)
        outputs.append(kept)
    document["verdict"] |= {
        "kind": found.kind.value, "chosen": found.chosen, "runner_up": found.runner_up, "sentence": found.sentence,
        "loss_minus_runner_up": None,
    }  # fmt: skip
    document["artifacts"] = outputs
    for row in document["assemblies"]:
        row["evaluations"] = metrics.get(row["name"])
    _give_layers(document, found.chosen, study.evaluator.metric)
    (path / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False))
    (path / "report.html").write_text(render_html(report))
    front = {name: document[name] for name in ("hardware", "front", "assemblies")}
    (path / "front.json").write_text(json.dumps([front], allow_nan=False))
    progress(1, 1, "targets", "judge")
    said = {
        "hardware": target.hardware, "verdict": found.kind.value, "chosen": found.chosen,
        "runner_up": found.runner_up, "sentence": found.sentence, "infeasible": None,
        "metric": study.evaluator.metric, "values": values,
    }  # fmt: skip
    return {"outputs": [*outputs, "report.json", "report.html", "front.json"], "summary": {"verdicts": [said]}}


def _give_layers(document: dict[str, Any], chosen: str | None, metric: str) -> None:
    """The layers' precisions and reasons follow the winner, which the loss need not have put first."""
    precisions: dict[str, str] = next(
        (row["precisions"] for row in document["assemblies"] if row["name"] == chosen), {}
    )
    for layer in document["layers"]:
        precision = precisions.get(layer["name"], "fp32")
        if layer["group"] is not None and precision != layer["precision"]:
            layer["precision"], layer["reason"] = precision, f"part of {chosen}, chosen by its {metric}"
