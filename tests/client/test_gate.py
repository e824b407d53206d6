"""Gate and audit: what a report's measured figures say about thresholds, and what runs quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

import bitwright
from bitwright import Thresholds, audit_target, check_report
from bitwright.cli_shared import GATE_FAILED, INFEASIBLE, USER_ERROR
from service.settings import Settings
from tests.client.test_cli import cli
from tests.contracts.test_rest_api import publish


def assembly(name: str, source: str, ms: float, size: int, loss: float, accuracy: float) -> dict[str, Any]:
    return {
        "name": name, "also": [], "source": source, "size_bytes": size, "discarded": None, "precisions": {},
        "measured": {"median_ms": ms, "ci_low_ms": ms * 0.9, "ci_high_ms": ms * 1.1, "samples": 30},
        "predicted": {"latency_ms": ms}, "select": None,
        "report": {
            "loss": {"value": loss, "ci_low": loss / 2, "ci_high": loss * 2},
            "accuracy": {"value": accuracy, "ci_low": accuracy - 0.02, "ci_high": 1.0},
        },
    }  # fmt: skip


def target(kind: str = "chosen", ms: float = 1.0) -> dict[str, Any]:
    layers = [
        {"name": "a", "kind": "conv", "weights": 300, "precision": "w4a8", "reason": "saves most"},
        {"name": "b", "kind": "conv", "weights": 100, "precision": "fp32", "reason": "too sensitive"},
    ]
    return {
        "hardware": "tiny-cpu", "runtime": "tiny", "runtime_version": "1", "session_options": {"x": "y"},
        "verdict": {"kind": kind, "chosen": None if kind == "infeasible" else "gauss_newton"},
        "latency_fit": {"loo_mape": 0.04}, "layers": layers,
        "unquantized": [
            {"node": "b", "op_type": "conv", "reason": "again"},
            {"node": "s", "op_type": "Softmax", "reason": "float op"},
        ],
        "assemblies": [
            assembly("fp32", "full_precision", 2.0, 1000, 0.0, 0.95),
            {**assembly("gauss_newton", "metric", ms, 300, 0.01, 0.94), "also": ["kl"]},
            {**assembly("uniform w4a8", "uniform", 0.8, 200, 0.3, 0.7), "discarded": "ran conv1 in float"},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "holds"),
    [
        (Thresholds(latency_ms=1.1), True),
        (Thresholds(latency_ms=1.05), False),
        (Thresholds(latency_ms=1.05, at_median=True), True),
        (Thresholds(latency_ratio=0.55), True),
        (Thresholds(latency_ratio=0.54), False),
        (Thresholds(size_bytes=300), True),
        (Thresholds(size_ratio=0.29), False),
        (Thresholds(loss=0.02), True),
        (Thresholds(loss=0.019), False),
        (Thresholds(accuracy=0.9199), True),
        (Thresholds(accuracy=0.93), False),
        (Thresholds(accuracy_drop=0.0101), True),
        (Thresholds(accuracy_drop=0.005), False),
        (Thresholds(prediction_error=0.03), False),
        (Thresholds(chosen=True), True),
    ],
)
def test_thresholds(limits: Thresholds, holds: bool) -> None:
    (check,) = check_report(target(), limits)
    assert check.holds is holds, check


def test_what_is_not_measured_does_not_hold() -> None:
    blind = target()
    blind["assemblies"][1]["measured"] = None
    del blind["assemblies"][1]["report"]["accuracy"]
    checks = check_report(blind, Thresholds(latency_ms=100.0, accuracy=0.1, accuracy_drop=0.5))
    assert [(check.value, check.holds) for check in checks] == [(None, False)] * 3
    assert [
        check.name for check in check_report(target("infeasible"), Thresholds(size_bytes=1e9)) if not check.holds
    ] == [
        "verdict",
        "size_bytes",
    ]
    (no_gain,) = check_report(target("no_gain"), Thresholds(chosen=True))
    assert not no_gain.holds


def test_a_baseline_bounds_growth() -> None:
    checks = check_report(target(ms=1.04), Thresholds(regression=0.05), baseline=target())
    assert [(check.name, check.holds) for check in checks] == [
        ("latency_ms against the baseline", True),
        ("size_bytes against the baseline", True),
        ("loss against the baseline", True),
    ]
    slower = check_report(target(ms=1.06), Thresholds(regression=0.05), baseline=target())
    assert [check.holds for check in slower] == [False, True, True]
    (missing,) = check_report(target(), Thresholds(regression=0.05), baseline=None)
    assert not missing.holds


def test_an_audit_names_what_stays_in_float_once() -> None:
    found = audit_target(target())
    assert found["quantized_weight_share"] == 0.75
    assert found["precisions"] == {
        "w4a8": {"layers": 1, "weight_share": 0.75},
        "fp32": {"layers": 1, "weight_share": 0.25},
    }
    assert [(one["name"], one["reason"]) for one in found["in_float"]] == [("b", "too sensitive"), ("s", "float op")]
    assert found["discarded"] == [{"name": "uniform w4a8", "reason": "ran conv1 in float"}]


def test_the_commands(http: httpx.Client, model_file: Path, settings: Settings) -> None:
    with bitwright.Client(str(http.base_url)) as client:
        study = client.submit(model_file, hardware="tiny-cpu", budgets={"latency_ms": "0.6x"}).id
        model_file.write_bytes(b"\x08\x0aanother")
        worse = client.submit(model_file, hardware="tiny-cpu", budgets={"latency_ms": "0.7x"}).id
    assert cli(http, "gate", study).returncode == USER_ERROR, "a gate without thresholds is a mistake"
    assert cli(http, "gate", study, "--max-loss", "1", "--timeout", "0.2").returncode == 5
    publish(settings, study, {"report.json": json.dumps({"targets": [target()]}).encode()})
    publish(settings, worse, {"report.json": json.dumps({"targets": [target(ms=1.5)]}).encode()})
    passed = cli(http, "gate", study, "--max-latency-ratio", "0.6", "--min-accuracy", "0.9", "--json")
    assert passed.returncode == 0, passed.stderr
    assert json.loads(passed.stdout)["holds"] is True
    failed = cli(http, "gate", worse, "--baseline", study, "--json")
    assert failed.returncode == GATE_FAILED
    assert [check["holds"] for check in json.loads(failed.stdout)["checks"]] == [False, True, True]
    assert "fails" in cli(http, "gate", worse, "--max-latency-ms", "1").stdout
    audit = json.loads(cli(http, "audit", study, "--json").stdout)
    assert audit["chosen"] == "gauss_newton"
    assert "75.0 % of the weights" in cli(http, "audit", study).stdout
    rows = json.loads(cli(http, "compare", study, worse, "--json").stdout)
    assert [row["latency_ms"] for row in rows] == [1.0, 1.5]
    assert INFEASIBLE == 4
