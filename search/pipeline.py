"""model + data → graph → finished candidates → sensitivity ∥ latency table → allocation → evaluation → report.

Five stages, each a function from a study's JSON and a folder of files to more files in it. They run in one process
(`python -m search`), or each in its own sandboxed child under a service; they know neither. What a stage finishes on
its way lies in the folder's `saved/`, each file whole: started again beside those files it computes only the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kernels.registry import backend_for
from search.allocation.solver import check_solver
from search.candidates.candidate_set import CandidateSet
from search.candidates.recipes import recipes_for, wanted_of
from search.evaluation.answers import why_not_compared
from search.evaluation.evaluate import evaluate_target
from search.evaluation.verdict import labels_missing
from search.graph import Graph
from search.judging import FINALISTS, PROVISIONAL
from search.latency.estimated import estimate_model
from search.latency.model import MeasuredModel, measure_model
from search.loss.inference import infer_losses
from search.onnx_import import operating_shapes
from search.planning.costs import TargetCosts, target_costs
from search.planning.pins import check_pins
from search.planning.plan import without_repeats
from search.planning.target import ask, plan_target
from search.report.document import report_document, target_document
from search.report.html import render_html
from search.scanning import (
    Scanning,
    decided_groups,
    first_samples,
    scan_sources,
    simulator_of,
    split_data,
)
from search.sensitivity.requested import computable, scan_metrics
from search.simulation.simulator import count_samples
from search.study import Study, Target, parse_study, require_goals
from search.study_folder import StudyFolder

Spec = Mapping[str, Any]
Progress = Callable[[int, int, str, str], None]
StageFunction = Callable[[Spec, Path, Progress], dict[str, Any]]
CHECKED_SAMPLES = 8


def _opened(spec: Spec, path: Path) -> tuple[StudyFolder, Graph, Study]:
    folder, study = StudyFolder(path), parse_study(spec)
    graph = folder.graph()
    return folder, graph, study.at_batch_of_export(graph.fixed_batch)


def check(spec: Spec, path: Path, progress: Progress) -> dict[str, Any]:
    """Model, data and request are read and fit together; a few samples tell what the outputs mean."""
    folder, graph, study = _opened(spec, path)
    data, _ = split_data(folder, graph, study)
    recipes = {}
    for target in study.targets:
        recipes[target.hardware] = recipes_for(graph, folder.profile(target.hardware), study.precisions)
        operating_shapes(graph, target.point)
    check_pins(study.pins, graph, recipes)
    first = first_samples(data, max(CHECKED_SAMPLES, graph.fixed_batch or 1))
    sample = first.chunks(CHECKED_SAMPLES)[0]
    simulator = simulator_of(graph)
    computable(study.metrics, simulator)
    check_solver(study.solver)
    answered = simulator.run(sample)
    loss = infer_losses(graph, answered, study.losses, samples=count_samples(sample), labels=data.labels)
    unused = None if first.labels is None else why_not_compared(loss, answered, first.labels)
    counts_answers = any(target.tolerance and target.tolerance.kind == "accuracy_drop" for target in study.targets)
    if counts_answers and (unused or first.labels is None):
        raise labels_missing(unused)
    document = {
        "sha256": graph.sha256,
        "opset": graph.opset,
        "notes": [*graph.notes, *loss.notes, *filter(None, [unused])],
        "samples": len(data),
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind.value,
                "weights": layer.weight_count,
                "unquantized_reason": layer.unquantized_reason,
            }
            for layer in graph.layers
        ],
        "unquantized": [vars(item) for item in graph.unquantized],
    }
    progress(1, 1, "model", "checked")
    return {
        "outputs": [folder.write_json("graph.json", document)],
        "summary": {"layers": len(graph.layers), "samples": len(data)},
    }


def scan(spec: Spec, path: Path, progress: Progress) -> dict[str, Any]:
    """Finished candidates and what each loses, for every precision any target runs. Independent of hardware speed.

    Keyed by recipe: targets that compute a precision by one recipe take the same candidate and the same rows, and those
    with equal recipes the same scan. What `saved/` holds of it, from shards or from an attempt that was interrupted, is
    not computed again.
    """
    folder, study = StudyFolder(path), parse_study(spec)
    scanning = Scanning.of(folder, study)
    outputs: list[str] = []
    notes: dict[str, None] = {}
    found = scanning.candidates(progress)
    for source, candidates in found.items():
        loss = scanning.normalised_loss(candidates)
        sensitivities, said = scan_metrics(
            study.metrics,
            scanning.simulator,
            decided_groups(scanning.graph, candidates),
            candidates,
            loss,
            scanning.chunks,
            seed=study.seed,
            progress=lambda done, total: progress(done, total, "candidates", "scan sensitivity"),
            folder=folder.saved,
        )
        outputs += folder.save_scan(source, candidates, sensitivities, loss)
        notes |= dict.fromkeys(said)
    return {
        "outputs": outputs,
        "summary": {
            "candidates": len(wanted_of(each.recipes for each in found.values())),
            "metrics": list(sensitivities),
            "samples": candidates.samples,
            "excluded": len({entry for each in found.values() for entry in each.excluded}),
            "notes": list(notes),
        },
    }


def measure(spec: Spec, path: Path, progress: Progress) -> dict[str, Any]:
    """The latency table's missing rows and the end-to-end fit, for each target whose device is this machine."""
    folder, graph, study = _opened(spec, path)
    outputs: list[str] = []
    summary: dict[str, Any] = {}
    for index, target in enumerate(study.targets):
        profile = folder.profile(target.hardware)
        if not profile.measurable_here and study.estimates:
            estimated = estimate_model(graph, profile, target.point, folder.latency_table(index))
            outputs += _save_latency(folder, index, estimated)
            summary[target.hardware] = {"rows": dict(estimated.fit.row_statuses), "caveat": estimated.fit.caveat}
            continue
        if not profile.measurable_here:
            summary[target.hardware] = "not at hand: no row was measured"
            continue
        measured = measure_model(
            graph,
            profile,
            backend_for(profile),
            target.point,
            table=folder.latency_table(index),
            seed=study.seed,
            progress=lambda done, total, what: progress(done, total, what, "measure"),
            checkpoint=lambda table, index=index: folder.save_partial_table(index, table),  # type: ignore[misc]
        )
        outputs += _save_latency(folder, index, measured)
        summary[target.hardware] = {
            "rows": len(measured.table.rows),
            "loo_mape": measured.fit.loo_mape,
            "loo_max": measured.fit.loo_max,
        }
    return {"outputs": outputs, "summary": summary}


def solve(spec: Spec, path: Path, progress: Progress) -> dict[str, Any]:
    """Allocations of every metric under the budgets, baselines, and the Pareto front, for each target."""
    folder, graph, study = _opened(spec, path)
    require_goals(study)
    sources = scan_sources(folder, graph, study)
    outputs: list[str] = []
    summary: dict[str, Any] = {}
    for index, target in enumerate(study.targets):
        sensitivities = folder.sensitivities(sources[index])
        costs = _costs(folder, graph, folder.candidates(sources[index]), index, target)
        question = ask(costs, sensitivities, study, _full_precision_us(folder, index))
        solved = plan_target(costs, question, target, study)
        plans, same_as = without_repeats(solved.plans)
        outputs.append(folder.save_plans(index, plans, {**solved.to_json(), "same_as": same_as}))
        outputs.append(folder.save_question(index, question))
        summary[target.hardware] = {"plans": len(plans), "infeasible": solved.infeasible is not None}
        progress(index + 1, len(study.targets), "targets", "solve")
    return {"outputs": outputs, "summary": summary}


def evaluate(spec: Spec, path: Path, progress: Progress) -> dict[str, Any]:
    """Finalists built, audited, run and timed; one chosen per target; the report and the artifacts.

    Where the study names an evaluator (one target then) nothing is chosen: `search.judging` does, from its numbers.
    """
    folder, graph, study = _opened(spec, path)
    data, splits = split_data(folder, graph, study)
    sources = scan_sources(folder, graph, study)
    simulator = simulator_of(graph)
    documents: list[dict[str, Any]] = []
    outputs: list[str] = []
    verdicts: list[dict[str, Any]] = []
    for index, target in enumerate(study.targets):
        source = sources[index]
        candidates, loss, sensitivities = folder.candidates(source), folder.loss(source), folder.sensitivities(source)
        costs = _costs(folder, graph, candidates, index, target)
        plans, solved = folder.plans(index)
        evaluation = evaluate_target(
            index,
            target,
            study,
            costs,
            plans,
            solved,
            simulator,
            candidates,
            sensitivities,
            loss,
            splits,
            folder.path,
            progress=lambda done, total, what: progress(done, total, "assemblies", what),
            table=folder.latency_table(index),
        )
        outputs += evaluation.files
        documents.append(
            target_document(evaluation, costs, folder.latency_fit(index), sensitivities, study, candidates, loss)
        )
        verdicts.append({"hardware": target.hardware, **evaluation.verdict_json()})
    report = report_document(graph, study, data, splits, folder.loss(0), documents)
    if study.evaluator is not None:
        outputs.append(folder.write_json(PROVISIONAL, report))
        outputs.append(folder.write_json(FINALISTS, [item.to_json() for item in evaluation.finalists]))
        return {"outputs": outputs, "summary": {"finalists": [item.summary() for item in evaluation.finalists]}}
    outputs.append(folder.write_json("report.json", report))
    (folder.path / "report.html").write_text(render_html(report))
    fronts = [{"hardware": d["hardware"], "front": d["front"], "assemblies": d["assemblies"]} for d in documents]
    outputs += ["report.html", folder.write_json("front.json", fronts)]
    return {"outputs": outputs, "summary": {"verdicts": verdicts}}


STAGES: Mapping[str, StageFunction] = {
    "check": check,
    "scan": scan,
    "measure": measure,
    "solve": solve,
    "evaluate": evaluate,
}
"""In the order of their arrows; `scan` and `measure` do not need each other."""


def _costs(folder: StudyFolder, graph: Graph, candidates: CandidateSet, index: int, target: Target) -> TargetCosts:
    return target_costs(
        graph,
        candidates,
        decided_groups(graph, candidates),
        folder.profile(target.hardware),
        target,
        folder.latency_fit(index),
    )


def _save_latency(folder: StudyFolder, index: int, measured: MeasuredModel) -> list[str]:
    return [
        folder.write_json(f"latency_table_{index}.json", measured.table.to_json()),
        folder.write_json(f"latency_fit_{index}.json", measured.fit.to_json()),
    ]


def _full_precision_us(folder: StudyFolder, index: int) -> float | None:
    fit = folder.latency_fit(index)
    return None if fit is None else next((run.median_us for run in fit.runs if not run.precisions), None)
