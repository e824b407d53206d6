"""The report as one JSON document: everything the verdict rests on, versioned."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from kernels.hardware_profile import HardwareProfile
from kernels.stopwatch import Timing
from search.allocation.arrays import all_costs
from search.allocation.limits import LATENCY, US_PER_MS
from search.allocation.problem import AllocationProblem
from search.candidates.candidate_set import CandidateSet
from search.data.dataset import Dataset, Splits
from search.evaluation.evaluate import TargetEvaluation
from search.evaluation.quality import Quality
from search.evaluation.verdict import Evaluated
from search.graph import Graph
from search.latency.fit import LatencyFit
from search.loss.model_loss import ModelLoss
from search.planning.costs import TargetCosts
from search.planning.problem import build_problem
from search.report.numerics import precision_rows
from search.report.reasons import explain
from search.sensitivity.estimate import Sensitivity
from search.study import Study

SCHEMA_VERSION = 1
SLOWEST_OPS = 12
REPORTED_VERSIONS = ("bitwright-server", "torch", "onnx", "onnxruntime", "openvino", "pulp", "numpy")


def report_document(
    graph: Graph,
    study: Study,
    data: Dataset,
    splits: Splits,
    loss: ModelLoss,
    targets: Sequence[Mapping[str, Any]],
    name: str = "model.onnx",
) -> dict[str, Any]:
    """The whole study; `targets` come from `target_document`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "name": name,
            "sha256": graph.sha256,
            "opset": graph.opset,
            "layers": len(graph.layers),
            "parameters": sum(layer.weight_count for layer in graph.layers),
        },
        "seed": study.seed,
        "metrics": list(study.metrics),
        "data": {
            "samples": len(data),
            "calibrate": len(splits.calibrate),
            "select": len(splits.select),
            "report": len(splits.report),
            "content_hash": data.content_hash,
        },
        "loss": loss.to_json(),
        "notes": [*dict.fromkeys([*graph.notes, *splits.notes, *loss.notes, *_label_notes(data, targets)])],
        "targets": list(targets),
        "provenance": {
            "versions": {"python": platform.python_version(), **{name: version(name) for name in REPORTED_VERSIONS}}
        },
    }


def _label_notes(data: Dataset, targets: Sequence[Mapping[str, Any]]) -> list[str]:
    built = [item["select"] for target in targets for item in target["assemblies"] if item["select"]]
    if data.labels is None or not built or any(quality["accuracy"] for quality in built):
        return []
    return ["The labels do not fit what the model answers, so no accuracy is told."]


def target_document(
    evaluation: TargetEvaluation,
    costs: TargetCosts,
    fit: LatencyFit | None,
    sensitivities: Mapping[str, Sensitivity],
    study: Study,
    candidates: CandidateSet,
    loss: ModelLoss,
) -> dict[str, Any]:
    """One target: verdict, every assembly predicted and measured, the front, and each layer with its reason.

    `precisions` says by which recipe this target's runtime computes each; another target's may differ. So may `loss`,
    whose outputs are weighed by what the target's own w8a8 loses.
    """
    profile = costs.profile
    return {
        "hardware": evaluation.target.hardware,
        "device": profile.device.name,
        "runtime": profile.runtime,
        "runtime_version": profile.runtime_version,
        "session_options": dict(profile.session_options),
        "operating_point": evaluation.target.point.to_json(),
        "budgets": [
            {"resource": budget.resource, "asked": str(budget), "limit": evaluation.limits[budget.resource]}
            for budget in evaluation.target.budgets
        ],
        "verdict": {
            "kind": evaluation.verdict.kind.value,
            "chosen": evaluation.verdict.chosen,
            "runner_up": evaluation.verdict.runner_up,
            "sentence": evaluation.verdict.sentence,
            "loss_minus_runner_up": None
            if evaluation.against_runner_up is None
            else evaluation.against_runner_up.to_json(),
            "infeasible": evaluation.solved.get("infeasible"),
        },
        "latency_fit": _fit_document(fit, profile),
        "assemblies": [
            {
                **_assembly(item, evaluation.report.get(item.plan.name), evaluation.solved["same_as"], study.seed),
                "meets_budgets": item.meets(evaluation.limits),
            }
            for item in evaluation.evaluated
        ],
        "front": _front(evaluation.solved),
        "front_resource": evaluation.solved["front_resource"],
        "loss": loss.to_json(),
        "precisions": [asdict(row) for row in precision_rows(costs.graph, candidates)],
        "layers": _layers(evaluation, costs, sensitivities, study, candidates),
        "op_times": [{**asdict(op), "is_conspicuous": op.is_conspicuous} for op in evaluation.op_times[:SLOWEST_OPS]],
        "unquantized": _unquantized(costs, candidates),
        "artifacts": list(evaluation.files),
    }


def _fit_document(fit: LatencyFit | None, profile: HardwareProfile) -> dict[str, Any]:
    if fit is None:
        return {"sentence": f"No latency is known for {profile.slug}: nothing here is measured.", "runs": 0}
    if not fit.runs:
        return {"sentence": fit.caveat, "runs": 0, "rows": dict(fit.row_statuses), "notes": list(fit.notes)}
    checked = (
        f"{fit.accuracy}."
        if fit.loo_mape is None or fit.loo_max is None
        else f"left out one at a time, a run is predicted with a mean error of {100 * fit.loo_mape:.1f} %, at most "
        f"{100 * fit.loo_max:.1f} %."
    )
    return {
        "sentence": f"Predicted from {len(fit.terms.row_us)} table rows and {len(fit.runs)} end-to-end runs; {checked}",
        "runs": len(fit.runs),
        "loo_mape": fit.loo_mape,
        "loo_max": fit.loo_max,
        "table_version": fit.table_version,
        "notes": list(fit.notes),
    }


def _assembly(item: Evaluated, report: Quality | None, same_as: Mapping[str, str], seed: int) -> dict[str, Any]:
    plan = item.plan
    return {
        "name": plan.name,
        "also": [name for name, kept in same_as.items() if kept == plan.name],
        "source": plan.source.value,
        "metric": plan.metric,
        "precisions": dict(plan.precisions),
        "predicted": dict(plan.predicted),
        "measured": None if item.latency is None else _timing(item.latency),
        "size_bytes": item.size_bytes,
        "surrogate_loss": plan.surrogate_loss,
        "gap": plan.gap,
        "select": None if item.discarded else item.select.to_json(seed),
        "report": None if report is None else report.to_json(seed),
        "discarded": item.discarded,
    }


def _timing(timing: Timing) -> dict[str, Any]:
    return {
        "median_ms": timing.median_us / US_PER_MS,
        "ci_low_ms": timing.ci_low_us / US_PER_MS,
        "ci_high_ms": timing.ci_high_us / US_PER_MS,
        "samples": timing.samples,
    }


def _front(solved: Mapping[str, Any]) -> list[dict[str, Any]]:
    unit = US_PER_MS if solved["front_resource"] == LATENCY else 1.0
    return [
        {
            "cost": point["cost"] / unit,
            "loss": point["loss"],
            "exact": point["exact"],
            "precisions": dict(point["precisions"]),
        }
        for point in solved["front"]
    ]


def _layers(
    evaluation: TargetEvaluation,
    costs: TargetCosts,
    sensitivities: Mapping[str, Sensitivity],
    study: Study,
    candidates: CandidateSet,
) -> list[dict[str, Any]]:
    """Every layer with what each of its precisions loses and costs, and why it got the one it has."""
    recipes = candidates.recipes
    chosen = next((item for item in evaluation.evaluated if item.plan.name == evaluation.verdict.chosen), None)
    precisions = {} if chosen is None else chosen.plan.precisions
    metric = (chosen.plan.metric if chosen is not None else None) or next(iter(sensitivities))
    sensitivity = sensitivities[metric]
    problem = build_problem(costs, sensitivity, study.pins)
    reasons = {} if chosen is None else _reasons(problem, evaluation, precisions)
    group_of = {name: group for group in problem.groups for name in group.layers}
    rows = []
    for layer in costs.graph.layers:
        group = group_of.get(layer.name)
        op = costs.shapes.op_shapes.get(layer.name)
        rows.append(
            {
                "name": layer.name,
                "kind": layer.kind.value,
                "op_shape": None if op is None else op.signature,
                "macs": 0 if op is None else op.macs,
                "weights": layer.weight_count,
                "precision": precisions.get(layer.name, "fp32"),
                "group": None if group is None else group.name,
                "reason": layer.unquantized_reason or "this profile has no quantized kernel for it"
                if group is None
                else reasons.get(group.name, "no allocation was chosen"),
                "choices": []
                if group is None
                else [
                    {
                        "precision": choice.precision,
                        "recipe": recipes[layer.name, choice.precision].name
                        if (layer.name, choice.precision) in recipes
                        else None,
                        "loss": choice.loss,
                        "standard_error": _standard_error(sensitivity, group.name, choice.precision),
                        "costs": dict(choice.costs),
                    }
                    for choice in group.choices
                ],
            }
        )
    return rows


def _reasons(problem: AllocationProblem, evaluation: TargetEvaluation, precisions: Mapping[str, str]) -> dict[str, str]:
    by_group = {group.name: precisions.get(group.layers[0], "fp32") for group in problem.groups}
    totals = all_costs(problem, by_group)
    budgets = {
        row: limit * (US_PER_MS if row == LATENCY else 1.0)
        for row in totals
        for resource, limit in evaluation.solved["limits"].items()
        if row.split("@")[0] == (LATENCY if resource == "latency_ms" else resource)
    }
    return explain(replace(problem, budgets=budgets), by_group, totals)


def _standard_error(sensitivity: Sensitivity, group: str, precision: str) -> float | None:
    increase = sensitivity.increases.get((group, precision))
    return None if increase is None else increase.standard_error


def _unquantized(costs: TargetCosts, candidates: CandidateSet) -> list[dict[str, str]]:
    """Everything that stays in float, once per reason: ops, layers, and pairs that could not be made."""
    items = [
        *({"node": item.node, "op_type": item.op_type, "reason": item.reason} for item in costs.graph.unquantized),
        *(
            {"node": layer.name, "op_type": layer.kind.value, "reason": layer.unquantized_reason}
            for layer in costs.graph.layers
            if layer.unquantized_reason is not None
        ),
        *({"node": item.node, "op_type": item.op_type, "reason": item.reason} for item in candidates.excluded),
    ]
    return [dict(pairs) for pairs in dict.fromkeys(tuple(item.items()) for item in items)]
