"""A study for a GPU that nobody has at hand: refused by default, answered with estimates when asked, never unmarked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import images, small_cnn

from kernels.latency_table import LatencyTable, RowStatus
from search.errors import BadSubmission
from search.pipeline import STAGES

QUIET: Callable[..., None] = lambda *_: None  # noqa: E731


def spec(estimates: bool, **options: Any) -> dict[str, Any]:
    target = {"hardware": "t4", "budgets": {"latency_ms": {"relative": 0.5}}, "operating_point": {"batch": 8}}
    return {
        "targets": [target],
        "seed": 1,
        "options": {"scan_samples": 64, "front_points": 4, "metrics": ["kl"], "estimates": estimates, **options},
    }


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    onnx.save(small_cnn(width=32).model, folder / "model.onnx")
    np.savez(folder / "dataset.npz", **images(400))
    for stage in ("check", "scan"):
        STAGES[stage](spec(True), folder, QUIET)
    return folder


def copied(folder: Path, to: Path) -> Path:
    for path in folder.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_latency_budget_needs_a_measurement_or_the_wish_for_estimates(scanned: Path, tmp_path: Path) -> None:
    folder = copied(scanned, tmp_path)
    STAGES["measure"](spec(False), folder, QUIET)
    assert not (folder / "latency_fit_0.json").exists()
    with pytest.raises(BadSubmission) as caught:
        STAGES["solve"](spec(False), folder, QUIET)
    assert caught.value.code == "not_measured"


def test_an_estimated_verdict_says_so_everywhere(scanned: Path, tmp_path: Path) -> None:
    folder = copied(scanned, tmp_path)
    summary = STAGES["measure"](spec(True), folder, QUIET)["summary"]["t4"]
    table = LatencyTable.loads((folder / "latency_table_0.json").read_text())
    assert {row.status for row in table.rows} == {RowStatus.ESTIMATED}
    assert summary["rows"] == {"estimated": len(table.rows)}
    STAGES["solve"](spec(True), folder, QUIET)
    verdict = STAGES["evaluate"](spec(True), folder, QUIET)["summary"]["verdicts"][0]
    assert verdict["verdict"] in ("chosen", "no_gain")
    assert "are estimates, nothing was run there" in verdict["sentence"]
    assert "not yet run on Tesla T4" in verdict["sentence"]
    (target,) = json.loads((folder / "report.json").read_text())["targets"]
    assert target["latency_fit"]["runs"] == 0
    assert target["latency_fit"]["sentence"] in verdict["sentence"]
    assert all(row["measured"] is None for row in target["assemblies"])
    chosen = next(row for row in target["assemblies"] if row["name"] == verdict["chosen"])
    full = next(row for row in target["assemblies"] if row["name"] == "fp32")
    (budget,) = target["budgets"]
    assert chosen["predicted"]["latency_ms"] <= budget["limit"] < full["predicted"]["latency_ms"]
    assert "are estimates, nothing was run there" in (folder / "report.html").read_text()
    assert (folder / "artifact_0.onnx").exists()


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_the_wish_is_a_yes_or_no(value: Any) -> None:
    with pytest.raises(BadSubmission) as caught:
        STAGES["check"](spec(value), Path("nowhere"), QUIET)
    assert caught.value.code == "bad_study"


def test_activations_of_several_widths_are_not_offered_together(scanned: Path, tmp_path: Path) -> None:
    folder = copied(scanned, tmp_path)
    with pytest.raises(BadSubmission) as caught:
        STAGES["scan"](spec(True, precisions=["w8a8", "w4a4"]), folder, QUIET)
    assert caught.value.code == "activation_bits_mixed"
