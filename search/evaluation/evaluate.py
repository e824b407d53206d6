"""Evaluating one target: build, audit, run and time every plan; *select* chooses, *report* is published."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kernels.backends.base import Backend, LoadedModel
from kernels.microbench import measure_interleaved
from kernels.registry import backend_for
from kernels.stopwatch import Timing
from search.artifact.audit import audit_model
from search.artifact.bundle import Bundle, write_bundle
from search.artifact.op_times import PROFILED_RUNTIMES, OpTime, op_times
from search.assembly import Assembly
from search.candidates.assemble import assemble
from search.candidates.candidate_set import CandidateSet
from search.candidates.refit import refit_sequentially
from search.data.chunking import chunk_size
from search.data.dataset import Dataset, Splits
from search.evaluation.estimate import Estimate, estimate_difference
from search.evaluation.finalists import Finalist, pick_finalists
from search.evaluation.quality import Quality, assess, run_in_chunks
from search.evaluation.verdict import Evaluated, Verdict, VerdictKind, decide, decide_within
from search.latency.measure import END_TO_END, random_inputs, runner
from search.loss.model_loss import LossKind, ModelLoss
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


@dataclass
class Workbench:
    """Builds and runs the assemblies of one target; keeps every loaded model until the timing is done."""

    index: int
    target: Target
    costs: TargetCosts
    simulator: Simulator
    candidates: CandidateSet
    loss: ModelLoss
    splits: Splits
    folder: Path
    backend: Backend | None

    def __post_init__(self) -> None:
        self.assemblies: dict[str, Assembly] = {}
        self.bundles: dict[str, Bundle] = {}
        self.models: dict[str, LoadedModel] = {}
        self.chunk = chunk_size(self.costs.graph, self.splits.select)
        self.classes = next(
            ((output.output, output.class_axis) for output in self.loss.outputs if output.kind is LossKind.SOFTMAX_KL),
            None,
        )
        self._reference: dict[int, Arrays] = {}
        self._simulated: dict[int, Arrays] = {}

    def assembly(self, plan: PlannedAssembly) -> Assembly:
        """The plan's assembly, refitted unless the refit loses more on the samples it was made from.

        At 8 bits what is left to correct can be smaller than the error of the correction.
        """
        finished = assemble(self.costs.graph, plan.precisions, self.candidates)
        if not finished.candidates:
            return finished
        refitted = refit_sequentially(self.simulator, finished, self.splits.calibrate.chunks(self.chunk))
        return min(refitted, finished, key=self._calibration_loss)

    def _calibration_loss(self, assembly: Assembly) -> float:
        data = self.splits.calibrate
        outputs = run_in_chunks(lambda chunk: self.simulator.run(chunk, assembly), data, self.chunk)
        if id(data) not in self._simulated:
            self._simulated[id(data)] = run_in_chunks(self.simulator.run, data, self.chunk)
        return float(self.loss.per_sample(self._simulated[id(data)], outputs, data.inputs).mean())

    def build(self, plan: PlannedAssembly) -> Evaluated:
        """The plan assembled, refitted on its own quantized upstream, written, audited and run on *select*."""
        graph, profile, point = self.costs.graph, self.costs.profile, self.target.point
        assembly = self.assemblies[plan.name] = self.assembly(plan)
        folder = self.folder / f"build_{self.index}_{len(self.bundles)}"
        bundle = write_bundle(folder, graph, assembly, profile, point)
        self.bundles[plan.name] = bundle
        discarded = None
        if self.backend is not None:
            audit = audit_model(
                bundle.model,
                point.threads,
                profile.session_options,
                expected={name: assembly.precision_of(name) for name in self._layers()},
                graph=graph,
                runtime=profile.runtime,
            )
            discarded = None if audit.ok else "; ".join(finding.sentence for finding in audit.findings)
            self.models[plan.name] = self.backend.load_model(bundle.model, point.threads, profile.session_options)
            outputs = run_in_chunks(self.models[plan.name].run, self.splits.select, self._run_chunk(plan))
        else:
            outputs = run_in_chunks(
                lambda chunk: self.simulator.run(chunk, assembly), self.splits.select, self._run_chunk(plan)
            )
        return Evaluated(plan, bundle.size_bytes, None, self._assess(outputs, self.splits.select), discarded)

    def time(self, names: Sequence[str], progress: Progress) -> dict[str, Timing]:
        """End-to-end latencies, all models taking turns in one run."""
        inputs = self._timing_inputs()

        assert self.backend is not None
        threads = self.target.point.threads
        return measure_interleaved(
            {name: runner(self.models[name], inputs) for name in names},
            threads=threads,
            protocol=self.backend.protocol or END_TO_END,
            clock=self.backend.clock(threads),
            anchor=self.backend.anchor,
            progress=lambda done, total: progress(done, total, "time end to end"),
        )

    def quality(self, plan: PlannedAssembly, data: Dataset) -> Quality:
        """Quality of an already built plan on another split."""
        if self.backend is not None:
            outputs = run_in_chunks(self.models[plan.name].run, data, self._run_chunk(plan))
        else:
            assembly = self.assemblies[plan.name]
            outputs = run_in_chunks(lambda chunk: self.simulator.run(chunk, assembly), data, self._run_chunk(plan))
        return self._assess(outputs, data)

    def op_times(self, name: str) -> tuple[OpTime, ...]:
        """Where a run of a built plan spends its time; nothing on a device that is not at hand or not real."""
        profile = self.costs.profile
        if self.backend is None or profile.runtime not in PROFILED_RUNTIMES:
            return ()
        model = self.bundles[name].model
        return op_times(
            model, profile.runtime, self.target.point.threads, profile.session_options, self._timing_inputs()
        )

    def close(self) -> None:
        for model in self.models.values():
            model.close()

    def _layers(self) -> list[str]:
        return [layer for group in self.costs.groups for layer in group.layers]

    def _run_chunk(self, plan: PlannedAssembly) -> int:
        """Dynamic ranges depend on the samples that share a batch, so those are assessed as they will be served."""
        is_dynamic = any(name.endswith("-dynamic") for name in plan.precisions.values())
        return self.target.point.batch if is_dynamic else self.chunk

    def _assess(self, outputs: Arrays, data: Dataset) -> Quality:
        if id(data) not in self._reference:
            run = self.models["fp32"].run if "fp32" in self.models else self.simulator.run
            self._reference[id(data)] = run_in_chunks(run, data, self.chunk)
        return assess(outputs, self._reference[id(data)], data, self.loss, self.classes)

    def _timing_inputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """One batch of real samples where they have the operating point's shapes, seeded noise where not."""
        shapes = self.costs.shapes.tensor_shapes
        count = self.target.point.batch
        data = self.splits.select
        real = {name: np.resize(array, (count, *array.shape[1:])) for name, array in data.inputs.items()}
        if all(array.shape == tuple(shapes[name]) for name, array in real.items()):
            return real
        return random_inputs(self.costs.graph, self.costs.shapes)


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
) -> TargetEvaluation:
    """Everything of one target from plans to verdict; artifacts of the chosen assembly are left in `folder`."""
    backend = backend_for(costs.profile) if costs.profile.measurable_here else None
    bench = Workbench(index, target, costs, simulator, candidates, loss, splits, folder, backend)
    try:
        evaluated: list[Evaluated] = []
        for done, plan in enumerate(plans):
            progress(done, len(plans), f"build {plan.name}")
            evaluated.append(bench.build(plan))
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
        caveat = "" if costs.latency is None else costs.latency.caveat
        if caveat:
            verdict = replace(verdict, sentence=f"{verdict.sentence} {caveat}")
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
        plan = tightened(bench.costs, sensitivity, study, limits, factor)
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
