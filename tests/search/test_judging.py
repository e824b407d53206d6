"""The user's own evaluator: finalists delivered before the verdict, and the verdict made from its numbers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import images, small_cnn

from search.errors import BadSubmission
from search.evaluation.finalists import Finalist, judge
from search.evaluation.verdict import VerdictKind
from search.judging import FINALISTS, verdict
from search.pipeline import STAGES
from search.study import Evaluator, parse_study

QUIET: Callable[..., None] = lambda *_: None  # noqa: E731
MAP = Evaluator("mAP")


def finalist(name: str, source: str, latency_ms: float, meets: bool = True) -> Finalist:
    return Finalist(name, source, {"artifact_0.onnx": f"{name}.onnx"}, meets, latency_ms, 100)


FOUR = [
    finalist("fp32", "full_precision", 4.0, meets=False),
    finalist("uniform w8a8", "uniform", 2.0),
    finalist("kl", "metric", 1.5),
    finalist("front", "front", 1.4),
]


def values(*found: float) -> dict[str, float]:
    return dict(zip((item.name for item in FOUR), found, strict=True))


def test_the_best_number_within_the_budgets_wins() -> None:
    found = judge(FOUR, MAP, values(0.50, 0.40, 0.45, 0.30))
    assert (found.kind, found.chosen, found.runner_up) == (VerdictKind.CHOSEN, "kl", "uniform w8a8")
    assert "0.45" in found.sentence
    lower = judge(FOUR, Evaluator("WER", higher_is_better=False), values(0.10, 0.12, 0.15, 0.11))
    assert lower.chosen == "front"
    assert judge(FOUR, MAP, values(0.5, 0.4, 0.4, 0.4)).chosen == "front", "equal numbers go to the faster"
    assert judge(FOUR, MAP, values(0.5, 0.49, 0.4, 0.4)).kind is VerdictKind.NO_GAIN


def test_with_a_tolerance_the_fastest_that_keeps_it_wins() -> None:
    within = Evaluator("mAP", tolerance=0.06)
    assert judge(FOUR, within, values(0.50, 0.49, 0.45, 0.30)).chosen == "kl"
    nothing = judge(FOUR, within, values(0.50, 0.40, 0.39, 0.30))
    assert (nothing.kind, nothing.chosen) == (VerdictKind.INFEASIBLE, None)
    assert "uniform w8a8 comes nearest" in nothing.sentence


def test_what_cannot_be_judged() -> None:
    with pytest.raises(BadSubmission) as missing:
        judge(FOUR, MAP, {"fp32": 0.5})
    assert missing.value.code == "evaluations_missing"
    assert judge(FOUR[:1], MAP, {"fp32": 0.5}).kind is VerdictKind.INFEASIBLE
    for wrong in ({"metric": ""}, {"metric": "mAP", "tolerance": -1}, {"metric": "mAP", "code": "x"}, "mAP"):
        with pytest.raises(BadSubmission):
            parse_study({"targets": [{"hardware": "fake"}], "evaluator": wrong})


def test_from_finalists_to_the_report_of_the_one_that_was_chosen(tmp_path: Path) -> None:
    onnx.save(small_cnn(width=32).model, tmp_path / "model.onnx")
    np.savez(tmp_path / "dataset.npz", **images(384))
    spec: dict[str, Any] = {
        "targets": [{"hardware": "fake", "budgets": {"size_bytes": "0.6x"}}],
        "options": {"scan_samples": 64, "front_points": 4, "metrics": ["kl"]},
        "evaluator": {"metric": "mAP"},
    }
    for stage in STAGES:
        done = STAGES[stage](spec, tmp_path, QUIET)
    finalists = done["summary"]["finalists"]
    assert 3 <= len(finalists) <= 8
    assert finalists[0]["name"] == "fp32"
    assert "verdicts" not in done["summary"]
    for each in finalists:
        assert onnx.load(tmp_path / each["file"]).graph.node
        assert each["file"] in done["outputs"]
    assert not (tmp_path / "report.json").exists()
    last = [each["name"] for each in finalists if each["meets_budgets"]][-1]
    posted = [
        {"finalist": each["name"], "metrics": {"mAP": 0.9 if each["name"] == last else 0.1}} for each in finalists
    ]
    judged = verdict({**spec, "evaluations": posted}, tmp_path, QUIET)
    assert judged["summary"]["verdicts"][0]["chosen"] == last
    (target,) = json.loads((tmp_path / "report.json").read_text())["targets"]
    assert target["verdict"]["chosen"] == last
    row = next(row for row in target["assemblies"] if row["name"] == last)
    assert row["evaluations"] == {"mAP": 0.9}
    for layer in target["layers"]:
        assert layer["precision"] == row["precisions"].get(layer["name"], "fp32")
    files = {item["name"]: item["files"] for item in json.loads((tmp_path / FINALISTS).read_text())}[last]
    assert (tmp_path / "artifact_0.onnx").read_bytes() == (tmp_path / files["artifact_0.onnx"]).read_bytes()
    assert "artifact_0.onnx" in judged["outputs"]
    assert last.replace("<", "&lt;") in (tmp_path / "report.html").read_text()
