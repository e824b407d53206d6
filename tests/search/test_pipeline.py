"""The five stages on a small model and a deterministic device: from file to verdict, and every way it can end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import Builder, images, recurrent_cnn, small_cnn

import search.evaluation.workbench as workbench
from kernels.errors import KernelsError
from kernels.registry import load_profile
from search.artifact.audit import Audit, Finding
from search.errors import BadSubmission, SearchError
from search.evaluation.verdict import Evaluated
from search.pipeline import STAGES
from search.planning.plan import PlannedAssembly

QUIET: Callable[..., None] = lambda *_: None  # noqa: E731
BUDGETS = {"latency_ms": "0.9x", "size_bytes": "0.6x"}


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after `check`, `scan` and `measure`, which no budget changes."""
    folder = tmp_path_factory.mktemp("study")
    graph = small_cnn(width=32)
    onnx.save(graph.model, folder / "model.onnx")
    data = images(400)
    labels = np.random.default_rng(0).integers(0, 10, 400)
    np.savez(folder / "dataset.npz", **data, labels=labels)
    for stage in ("check", "scan", "measure"):
        STAGES[stage](spec(BUDGETS), folder, QUIET)
    return folder


def spec(budgets: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    target = {"hardware": "fake", "budgets": budgets or {}, **more}
    options = {"scan_samples": 128, "front_points": 4, "metrics": ["kl", "gauss_newton", "hessian_trace"]}
    return {"targets": [target], "seed": 1, "options": options}


def finish(folder: Path, tmp_path: Path, request: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Solve and evaluate in a copy of the scanned folder."""
    for path in filter(Path.is_file, folder.iterdir()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    STAGES["solve"](request, tmp_path, QUIET)
    STAGES["evaluate"](request, tmp_path, QUIET)
    return json.loads((tmp_path / "report.json").read_text()), tmp_path


def test_chosen_assembly_keeps_its_budgets_and_loses_no_more_than_any_uniform_one(
    scanned: Path, tmp_path: Path
) -> None:
    report, folder = finish(scanned, tmp_path, spec(BUDGETS))
    (target,) = report["targets"]
    rows = {row["name"]: row for row in target["assemblies"]}
    limits = {budget["resource"]: budget["limit"] for budget in target["budgets"]}
    chosen = rows[target["verdict"]["chosen"]]
    assert chosen["measured"]["median_ms"] <= limits["latency_ms"]
    assert chosen["size_bytes"] <= limits["size_bytes"]
    for row in rows.values():
        if row["meets_budgets"]:
            assert chosen["select"]["loss"]["value"] <= row["select"]["loss"]["value"]
    assert chosen["size_bytes"] == (folder / "artifact_0.onnx").stat().st_size
    assert chosen["size_bytes"] == pytest.approx(chosen["predicted"]["size_bytes"], rel=0.01)


def test_report_covers_every_layer_with_a_reason_and_the_page_runs_no_script(scanned: Path, tmp_path: Path) -> None:
    report, folder = finish(scanned, tmp_path, spec(BUDGETS))
    (target,) = report["targets"]
    assert [row["name"] for row in target["layers"]] == [layer.name for layer in small_cnn(width=32).layers]
    assert all(row["reason"] for row in target["layers"])
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert "http-equiv" in page
    assert page.count("<svg") == 3


def test_same_inputs_give_the_same_artifact(scanned: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    finish(scanned, first, spec(BUDGETS))
    finish(scanned, second, spec(BUDGETS))
    assert (first / "artifact_0.onnx").read_bytes() == (second / "artifact_0.onnx").read_bytes()


def test_unreachable_budget_is_an_answer_with_the_nearest_one(scanned: Path, tmp_path: Path) -> None:
    report, folder = finish(scanned, tmp_path, spec({"size_bytes": 100}))
    verdict = report["targets"][0]["verdict"]
    assert verdict["kind"] == "infeasible"
    assert verdict["infeasible"]["reachable"]["size_bytes"] > 100
    assert verdict["infeasible"]["binding"]
    assert not (folder / "artifact_0.onnx").exists()


def test_full_precision_within_every_budget_is_no_gain(scanned: Path, tmp_path: Path) -> None:
    report, _ = finish(scanned, tmp_path, spec({"size_bytes": "2x"}))
    assert report["targets"][0]["verdict"]["kind"] == "no_gain"


@pytest.mark.parametrize("budgets", [{"bops": {"relative": 0.3}}, {"peak_memory_bytes": "0.9x"}])
def test_counted_budgets_are_kept(scanned: Path, tmp_path: Path, budgets: dict[str, Any]) -> None:
    report, _ = finish(scanned, tmp_path, spec(budgets))
    (target,) = report["targets"]
    chosen = next(row for row in target["assemblies"] if row["name"] == target["verdict"]["chosen"])
    (budget,) = target["budgets"]
    assert chosen["predicted"][budget["resource"]] <= budget["limit"]


def test_tolerance_takes_the_fastest_that_keeps_it(scanned: Path, tmp_path: Path) -> None:
    report, _ = finish(scanned, tmp_path, spec(tolerance={"loss": 0.05}))
    (target,) = report["targets"]
    chosen = next(row for row in target["assemblies"] if row["name"] == target["verdict"]["chosen"])
    assert chosen["select"]["loss"]["ci_high"] <= 0.05


def test_assembly_that_fails_the_audit_is_discarded_with_its_reason(
    scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = workbench.audit_model

    def audit(model: bytes, *rest: Any, expected: dict[str, str], **named: Any) -> Audit:
        found = sound(model, *rest, expected=expected, **named)
        if set(expected.values()) != {"w8a8"}:
            return found
        return Audit(found.runtime, found.layers, (Finding("quantized_ran_float", None, "ran in float"),), found.ops)

    monkeypatch.setattr(workbench, "audit_model", audit)
    report, _ = finish(scanned, tmp_path, spec({"size_bytes": "0.5x"}))
    rows = {row["name"]: row for row in report["targets"][0]["assemblies"]}
    assert rows["uniform w8a8"]["discarded"] == "ran in float"
    assert report["targets"][0]["verdict"]["chosen"] != "uniform w8a8"


def test_what_the_submitted_quantizers_do_badly_discards_nothing(tmp_path: Path) -> None:
    """Its own 8-bit convolution runs in float, since nothing quantizes its output; the product behind is ours."""
    b = Builder(0)
    b.constant("s", np.float32(0.03))
    b.constant("z", np.uint8(128))
    b.constant("codes", b.random.integers(-127, 127, (16, 3, 3, 3)).astype(np.int8))
    b.constant("ws", np.full(16, 0.01, np.float32))
    b.constant("wz", np.zeros(16, np.int8))
    pair = b.node("DequantizeLinear", [b.node("QuantizeLinear", ["image", "s", "z"], "q"), "s", "z"], "d")
    weight = b.node("DequantizeLinear", ["codes", "ws", "wz"], "w", axis=0)
    pooled = b.node("GlobalAveragePool", [b.node("Conv", [pair, weight], "c")], "p")
    b.node("Gemm", [b.node("Flatten", [pooled], "f"), b.normal("g", 16, 10)], "logits")
    graph = b.graph({"image": (1, "N", 3, 10, 10)}, {"logits": (1, "N", 10)})
    onnx.save(graph.model, tmp_path / "model.onnx")
    np.savez(tmp_path / "dataset.npz", image=b.random.normal(size=(60, 3, 10, 10)).astype(np.float32))
    for stage in STAGES:
        STAGES[stage](spec({"size_bytes": "0.95x"}), tmp_path, QUIET)
    (target,) = json.loads((tmp_path / "report.json").read_text())["targets"]
    assert [row["discarded"] for row in target["assemblies"]] == [None] * len(target["assemblies"])
    assert target["verdict"]["kind"] != "infeasible"
    assert {item["reason"] for item in target["unquantized"]} >= {"already quantized in the submitted model"}


def test_every_assembly_discarded_is_an_answer(scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = workbench.audit_model

    def audit(model: bytes, *rest: Any, expected: dict[str, str], **named: Any) -> Audit:
        found = sound(model, *rest, expected=expected, **named)
        layer = next(iter(expected))
        return Audit(found.runtime, found.layers, (Finding("quantized_ran_float", layer, "ran in float"),), found.ops)

    monkeypatch.setattr(workbench, "audit_model", audit)
    report, _ = finish(scanned, tmp_path, spec({"size_bytes": "0.5x"}))
    verdict = report["targets"][0]["verdict"]
    assert verdict["kind"] == "infeasible"
    assert "discarded by the audit" in verdict["sentence"]


def test_latency_budget_without_any_measurement_is_refused(scanned: Path, tmp_path: Path) -> None:
    for path in filter(Path.is_file, scanned.iterdir()):
        if not path.name.startswith("latency"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BadSubmission) as refused:
        STAGES["solve"](spec({"latency_ms": 1.0}), tmp_path, QUIET)
    assert refused.value.code == "not_measured"


def test_device_that_is_not_here_is_planned_by_size_and_says_what_was_not_measured(
    scanned: Path, tmp_path: Path
) -> None:
    profile = load_profile("fake").to_json()
    profile["slug"], profile["runtime"] = "elsewhere", "onnxruntime_cpu"
    profile["device"]["name"] = "a board in another building"
    path = tmp_path / "elsewhere.json"
    path.write_text(json.dumps(profile))
    work = tmp_path / "work"
    work.mkdir()
    for source in filter(Path.is_file, scanned.iterdir()):
        if not source.name.startswith("latency"):
            (work / source.name).write_bytes(source.read_bytes())
    request = spec({"size_bytes": "0.5x"})
    request["targets"][0]["hardware"] = str(path)
    STAGES["measure"](request, work, QUIET)
    STAGES["solve"](request, work, QUIET)
    STAGES["evaluate"](request, work, QUIET)
    (target,) = json.loads((work / "report.json").read_text())["targets"]
    assert target["verdict"]["kind"] in ("chosen", "no_gain")
    assert "nothing here is measured" in target["latency_fit"]["sentence"]
    assert all(row["measured"] is None for row in target["assemblies"])


@pytest.mark.parametrize(
    "change, code",
    [
        ({"targets": [{"hardware": "fake", "budgets": {"size_bytes": 9}, "tolerance": {"loss": 1}}]}, "bad_study"),
        ({"targets": [{"hardware": "no-such-board", "budgets": {"size_bytes": 9}}]}, "hardware_unknown"),
        ({"options": {"pins": {"no such layer": "w8a8"}}}, "layer_unknown"),
        ({"options": {"metrics": ["kl", "omens"]}}, "metric_unknown"),
        ({"options": {"solver": "abacus"}}, "solver_unknown"),
        ({"options": {"front_points": 1}}, "bad_study"),
        ({"targets": [{"hardware": "fake", "operating_point": {"batch": 0}}]}, "bad_operating_point"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_computed(
    scanned: Path, change: dict[str, Any], code: str
) -> None:
    with pytest.raises((SearchError, KernelsError)) as refused:
        STAGES["check"]({**spec(BUDGETS), **change}, scanned, QUIET)
    assert refused.value.code == code


def test_a_file_over_the_size_limit_is_solved_again_under_a_lower_one(
    scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are counted to 1 %; here every file comes out larger than counted by so much that each limit is missed."""
    build = workbench.Workbench.build

    def larger(bench: workbench.Workbench, plan: PlannedAssembly) -> Evaluated:
        item = build(bench, plan)
        return replace(item, size_bytes=round(plan.predicted["size_bytes"] * 1.2))

    monkeypatch.setattr(workbench.Workbench, "build", larger)
    report, _ = finish(scanned, tmp_path, spec({"size_bytes": "0.28x"}))
    (target,) = report["targets"]
    again = [row for row in target["assemblies"] if "of the size budget" in row["name"]]
    assert again
    assert all(row["meets_budgets"] for row in again)
    over = [row for row in target["assemblies"] if row["source"] == "metric" and not row["meets_budgets"]]
    assert {row["metric"] for row in over} == {row["metric"] for row in again}


def test_assemblies_of_one_name_are_told_apart(scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that tighten a limit by the same factor name what they solve alike."""
    build = workbench.Workbench.build

    def shortened(bench: workbench.Workbench, plan: PlannedAssembly) -> Evaluated:
        return build(bench, plan if plan.name == "fp32" else replace(plan, name=plan.name[:3]))

    monkeypatch.setattr(workbench.Workbench, "build", shortened)
    report, _ = finish(scanned, tmp_path, spec(BUDGETS))
    (target,) = report["targets"]
    names = [row["name"] for row in target["assemblies"]]
    assert len(set(names)) == len(names)
    assert any(name.endswith(" (2)") for name in names)
    assert not list(tmp_path.glob("build_*"))


def test_model_that_nothing_can_quantize_is_refused_at_once_with_its_reasons(tmp_path: Path) -> None:
    b = Builder(0)
    b.node("MatMul", [b.normal("w", 4, 4), b.node("Transpose", ["x"], "turned", perm=[1, 0])], "product")
    b.node("Transpose", ["product"], "y", perm=[1, 0])
    onnx.save(b.graph({"x": (1, "n", 4)}, {"y": (1, "n", 4)}).model, tmp_path / "model.onnx")
    np.savez(tmp_path / "dataset.npz", x=np.zeros((32, 4), np.float32))
    with pytest.raises(BadSubmission) as refused:
        STAGES["check"](spec(BUDGETS), tmp_path, QUIET)
    assert (refused.value.code, refused.value.hint) == (
        "nothing_to_quantize",
        "1 × the constant is the left operand of MatMul",
    )


def test_data_that_cannot_be_split_is_refused_at_once(tmp_path: Path) -> None:
    onnx.save(small_cnn().model, tmp_path / "model.onnx")
    np.savez(tmp_path / "dataset.npz", **images(32), groups=np.arange(32) % 2)
    with pytest.raises(BadSubmission) as refused:
        STAGES["check"](spec(BUDGETS), tmp_path, QUIET)
    assert refused.value.code == "dataset_too_few_groups"


def test_tolerance_of_accuracy_with_labels_that_do_not_fit_is_refused_at_once(tmp_path: Path) -> None:
    onnx.save(small_cnn().model, tmp_path / "model.onnx")
    np.savez(tmp_path / "dataset.npz", **images(32), labels=np.zeros((32, 7), np.int64))
    done = STAGES["check"](spec(BUDGETS), tmp_path, QUIET)
    assert any("(n, 7)" in note for note in json.loads((tmp_path / done["outputs"][0]).read_text())["notes"])
    with pytest.raises(BadSubmission, match=r"\(n, 7\)") as refused:
        STAGES["check"](spec(tolerance={"accuracy_drop": 0.01}), tmp_path, QUIET)
    assert refused.value.code == "labels_missing"


def test_targets_without_a_goal_cannot_be_solved(scanned: Path) -> None:
    with pytest.raises(BadSubmission) as refused:
        STAGES["solve"](spec(), scanned, QUIET)
    assert refused.value.code == "bad_study"


def test_study_without_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadSubmission, match=r"model\.onnx"):
        STAGES["check"](spec(BUDGETS), tmp_path, QUIET)


def test_graph_with_an_op_we_cannot_differentiate_still_gets_its_verdict(tmp_path: Path) -> None:
    onnx.save(recurrent_cnn().model, tmp_path / "model.onnx")
    np.savez(tmp_path / "dataset.npz", **images(384))
    request = spec({"size_bytes": "0.6x"})
    del request["options"]["metrics"]
    for stage in STAGES:
        done = STAGES[stage](request, tmp_path, QUIET)
        if stage == "scan":
            assert done["summary"]["metrics"] == ["gauss_newton", "kl"]
            assert "hessian_trace" in done["summary"]["notes"][0]
    (target,) = json.loads((tmp_path / "report.json").read_text())["targets"]
    assert target["verdict"]["kind"] in ("chosen", "no_gain")
    assert any(item["op_type"] == "RNN" for item in target["unquantized"])


def test_fixed_batch_export_is_chunked_not_refused(tmp_path: Path) -> None:
    onnx.save(small_cnn(width=32, batch=4).model, tmp_path / "model.onnx")
    np.savez(tmp_path / "dataset.npz", **images(399))
    request = spec({"size_bytes": "0.6x"})
    for stage in STAGES:
        STAGES[stage](request, tmp_path, QUIET)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["targets"][0]["verdict"]["kind"] in ("chosen", "no_gain")
    assert report["targets"][0]["operating_point"]["batch"] == 4, "the request names none"
    assert sum(report["data"][part] for part in ("calibrate", "select", "report")) <= 399


def test_study_without_data_says_what_it_was_made_from(tmp_path: Path) -> None:
    onnx.save(small_cnn(width=32).model, tmp_path / "model.onnx")
    request = spec({"size_bytes": "0.6x"})
    for stage in STAGES:
        STAGES[stage](request, tmp_path, QUIET)
    report = json.loads((tmp_path / "report.json").read_text())
    assert any("noise" in note or "synthetic" in note.lower() for note in report["notes"])
