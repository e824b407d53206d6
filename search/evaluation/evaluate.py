"""Evaluating one target: build, audit, run and time every plan; *select* chooses, *report* is published."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kernels.latency_table import LatencyTable
from kernels.precision import FP32
from kernels.registry import backend_for
from search.artifact.op_times import OpTime
from search.candidates.candidate_set import CandidateSet
from search.data.dataset import Splits
from search.evaluation.estimate import Estimate, estimate_difference
from search.evaluation.finalists import Finalist, pick_finalists
from search.evaluation.quality import Quality
from search.evaluation.verdict import Evaluated, Verdict, VerdictKind, decide, decide_within
from search.evaluation.workbench import Workbench
from search.loss.model_loss import ModelLoss
from search.planning.costs import TargetCosts
from search.planning.plan import PlannedAssembly, Source
from search.planning.target import tightened
from search.sensitivity.estimate import Sensitivity
from search.simulation.simulator import Simulator
from search.study import Study, Target

Progress = Callable[[int, int, str], None]
Arrays = Mapping[str, np.ndarray[Any, Any]]
ROUNDS = 3
"""How often allocations are solved again with a tighter latency limit when none meets it as measured."""
MARGIN = 0.99


@dataclass(frozen=True)
class TargetEvaluation:
    """All that was built for one target and what became of it.

    `report` holds qualities on the report split by plan name; `against_runner_up` is the paired difference of losses,
    chosen minus the best plain assembly. `op_times` are the ops of the chosen model, slowest first. `files` are the
    artifacts delivered, by name in the study's folder. `finalists` wait for the user's own evaluator.
    """

    target: Target
    limits: Mapping[str, float]
    evaluated: tuple[Evaluated, ...]
    report: Mapping[str, Quality]
    verdict: Verdict
    against_runner_up: Estimate | None
    solved: Mapping[str, Any]
    op_times: tuple[OpTime, ...]
    files: tuple[str, ...]
    measured: bool
    finalists: tuple[Finalist, ...] = ()

    def verdict_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict.kind.value,
            "chosen": self.verdict.chosen,
            "runner_up": self.verdict.runner_up,
            "sentence": self.verdict.sentence,
            "infeasible": self.solved.get("infeasible"),
        }


def evaluate_target(
    index: int,
    target: Target,
    study: Study,
    costs: TargetCosts,
    plans: Sequence[PlannedAssembly],
    solved: Mapping[str, Any],
    simulator: Simulator,
    candidates: CandidateSet,
    sensitivities: Mapping[str, Sensitivity],
    loss: ModelLoss,
    splits: Splits,
    folder: Path,
    progress: Progress,
    table: LatencyTable | None = None,
) -> TargetEvaluation:
    """Everything of one target from plans to verdict; artifacts of the chosen assembly are left in `folder`.

    `table` names the kernels of a GPU, where no file is loaded but the layers are run by those.
    """
    backend = backend_for(costs.profile) if costs.profile.measurable_here else None
    bench = Workbench(index, target, costs, simulator, candidates, loss, splits, folder, backend, table)
    try:
        evaluated: list[Evaluated] = []
        for done, plan in enumerate(plans):
            progress(done, len(plans), f"build {plan.name}")
            evaluated.append(bench.build(plan))
        evaluated = _within_size(bench, evaluated, solved["limits"], sensitivities, study)
        evaluated, limits = _timed(bench, evaluated, target, solved["limits"], progress)
        for _ in range(ROUNDS):
            again = _solved_again(bench, evaluated, limits, sensitivities, study)
            if not again:
                break
            evaluated += [bench.build(plan) for plan in again]
            evaluated, limits = _timed(bench, evaluated, target, solved["limits"], progress)
        if target.tolerance is None:
            verdict = decide(evaluated, limits, loss.unit)
        else:
            verdict = decide_within(evaluated, target.tolerance, loss.unit)
        verdict = replace(verdict, sentence=" ".join([verdict.sentence, *_caveats(costs)]))
        report = {
            item.plan.name: bench.quality(item.plan, splits.report) for item in evaluated if item.discarded is None
        }
        difference = None
        if verdict.kind is VerdictKind.CHOSEN and verdict.chosen and verdict.runner_up:
            first, second = report[verdict.chosen], report[verdict.runner_up]
            difference = estimate_difference(first.losses, second.losses, first.groups, study.seed)
        slowest = () if verdict.chosen is None else bench.op_times(verdict.chosen)
        finalists: tuple[Finalist, ...] = ()
        if study.evaluator is None:
            files = _deliver(bench, verdict, folder, index)
        else:
            finalists = _deliver_finalists(bench, pick_finalists(evaluated, limits), limits, folder)
            files = tuple(name for item in finalists for name in item.files.values())
    finally:
        bench.close()
    return TargetEvaluation(
        target, limits, tuple(evaluated), report, verdict, difference, solved, slowest, files, backend is not None,
        finalists,
    )  # fmt: skip


def _caveats(costs: TargetCosts) -> list[str]:
    """What a reader of the verdict must know of the target: rows that are estimates, full precision that is none."""
    caveats = [] if costs.latency is None or not costs.latency.caveat else [costs.latency.caveat]
    if (served := costs.profile.full_precision) != FP32:
        caveats.append(f"{costs.profile.slug} computes layers left in fp32 in {served}; losses are against true fp32.")
    return caveats


def _within_size(
    bench: Workbench,
    evaluated: Sequence[Evaluated],
    limits: Mapping[str, float],
    sensitivities: Mapping[str, Sensitivity],
    study: Study,
) -> list[Evaluated]:
    """All that was built, and for metrics whose file came out over the size limit what they choose under a lower one.

    The bytes counted differ from those on disk by less than 1 %, which is enough to miss a limit.
    """
    found = list(evaluated)
    for sensitivity in sensitivities.values() if "size_bytes" in limits else ():
        own = [item for item in found if item.plan.source is Source.METRIC and item.plan.metric == sensitivity.metric]
        for _ in range(ROUNDS):
            if not own or any(item.size_bytes <= limits["size_bytes"] for item in own):
                break
            factor = min(item.plan.predicted["size_bytes"] / item.size_bytes for item in own)
            plan = tightened(bench.costs, sensitivity, study, limits, "size_bytes", factor)
            if plan is None or any(plan.precisions == item.plan.precisions for item in found):
                break
            own.append(bench.build(plan))
            found.append(own[-1])
    return found


def _timed(
    bench: Workbench,
    evaluated: Sequence[Evaluated],
    target: Target,
    limits: Mapping[str, float],
    progress: Progress,
) -> tuple[list[Evaluated], dict[str, float]]:
    """All assemblies with their latency from one interleaved run, and limits that are multiples of that run's fp32."""
    resolved = dict(limits)
    if bench.backend is None:
        return list(evaluated), resolved
    names = [item.plan.name for item in evaluated if item.discarded is None]
    if not names:
        return list(evaluated), resolved
    timings = bench.time(names, progress)
    for budget in target.budgets:
        if budget.resource == "latency_ms" and budget.times is not None and "fp32" in timings:
            resolved["latency_ms"] = budget.times * timings["fp32"].median_us / 1000
    return [replace(item, latency=timings.get(item.plan.name)) for item in evaluated], resolved


def _solved_again(
    bench: Workbench,
    evaluated: Sequence[Evaluated],
    limits: Mapping[str, float],
    sensitivities: Mapping[str, Sensitivity],
    study: Study,
) -> list[PlannedAssembly]:
    """New plans under a tighter latency limit, when no mixed assembly meets the limit as measured."""
    if "latency_ms" not in limits or bench.backend is None:
        return []
    mixed = [item for item in evaluated if item.plan.source in (Source.METRIC, Source.FRONT) and not item.discarded]
    if not mixed or any(item.meets(limits) for item in mixed):
        return []
    known = {frozenset(item.plan.precisions.items()) for item in evaluated}
    nearest = min(mixed, key=lambda item: item.effort)
    factor = MARGIN * min(1.0, nearest.plan.predicted["latency_ms"] / nearest.cost("latency_ms"))
    found = []
    for sensitivity in sensitivities.values():
        plan = tightened(bench.costs, sensitivity, study, limits, "latency_ms", factor)
        if plan is not None and frozenset(plan.precisions.items()) not in known:
            known.add(frozenset(plan.precisions.items()))
            found.append(plan)
    return found


def _deliver_finalists(
    bench: Workbench, picked: Sequence[Evaluated], limits: Mapping[str, float], folder: Path
) -> tuple[Finalist, ...]:
    """Every finalist's files as `finalist_<n>_<what>`, for the user's own evaluator."""
    finalists: list[Finalist] = []
    for number, item in enumerate(picked):
        bundle = bench.bundles[item.plan.name]
        files: dict[str, str] = {}
        for name in bundle.files:
            stem, dot, suffix = name.partition(".")
            what = "artifact" if stem == "model" else stem
            kept = files[f"{what}_0{dot}{suffix}"] = f"finalist_{number}_{what}{dot}{suffix}"
            (bundle.folder / name).rename(folder / kept)
        finalists.append(
            Finalist(
                item.plan.name, item.plan.source.value, files, item.meets(limits), item.latency_ms, item.size_bytes
            )
        )
    for bundle in bench.bundles.values():
        shutil.rmtree(bundle.folder)
    return tuple(finalists)


def _deliver(bench: Workbench, verdict: Verdict, folder: Path, index: int) -> tuple[str, ...]:
    """The chosen bundle's files under flat names; the folders of all builds are removed."""
    files: list[str] = []
    if verdict.chosen is not None:
        bundle = bench.bundles[verdict.chosen]
        for name in bundle.files:
            stem, dot, suffix = name.partition(".")
            kept = f"{'artifact' if stem == 'model' else stem}_{index}{dot}{suffix}"
            (bundle.folder / name).rename(folder / kept)
            files.append(kept)
    for bundle in bench.bundles.values():
        shutil.rmtree(bundle.folder)
    return tuple(files)
