"""Workbench: the assemblies of one target built, opened, timed and assessed, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from kernels.backends.base import Backend, LoadedModel
from kernels.backends.cuda import Cuda
from kernels.errors import NotMeasured
from kernels.latency_table import LatencyTable
from kernels.microbench import measure_interleaved
from kernels.precision import FP32
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
from search.evaluation.quality import Quality, assess, run_in_chunks
from search.evaluation.verdict import Evaluated
from search.latency.cuda_network import network_maker
from search.latency.measure import END_TO_END, random_inputs, runner
from search.loss.model_loss import ModelLoss
from search.planning.costs import TargetCosts
from search.planning.plan import PlannedAssembly
from search.simulation.simulator import Simulator
from search.study import Target

Progress = Callable[[int, int, str], None]
Arrays = Mapping[str, np.ndarray[Any, Any]]


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
    table: LatencyTable | None = None

    def __post_init__(self) -> None:
        self.assemblies: dict[str, Assembly] = {}
        self.bundles: dict[str, Bundle] = {}
        self.models: dict[str, LoadedModel] = {}
        self.chunk = chunk_size(self.costs.graph, self.splits.select)
        self._reference: dict[int, Arrays] = {}
        self._submitted: set[tuple[str, str | None]] = set()
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
        outputs = self._outputs(lambda chunk: self.simulator.run(chunk, assembly), data, self.chunk)
        if id(data) not in self._simulated:
            self._simulated[id(data)] = self._outputs(self.simulator.run, data, self.chunk)
        return float(self.loss.per_sample(self._simulated[id(data)], outputs, data.inputs).mean())

    def build(self, plan: PlannedAssembly) -> Evaluated:
        """The plan assembled, refitted on its own quantized upstream, written, audited and run on *select*.

        Its name gets a number where one of that name was built before: two rounds may tighten a limit alike.
        """
        plan = replace(plan, name=self._free_name(plan.name))
        graph, profile, point = self.costs.graph, self.costs.profile, self.target.point
        assembly = self.assemblies[plan.name] = self.assembly(plan)
        folder = self.folder / f"build_{self.index}_{len(self.bundles)}"
        bundle = write_bundle(folder, graph, assembly, profile, point)
        self.bundles[plan.name] = bundle
        discarded = None
        if isinstance(self.backend, Cuda):
            self.models[plan.name] = self._network(self.backend, assembly)
        elif self.backend is not None:
            discarded = self._audited(bundle, assembly)
            self.models[plan.name] = self.backend.load_model(bundle.model, point.threads, profile.session_options)
        outputs = self._outputs(self._runner(plan), self.splits.select, self._run_chunk(plan))
        return Evaluated(plan, bundle.size_bytes, None, self._assess(outputs, self.splits.select), discarded)

    def _free_name(self, name: str) -> str:
        numbered = (f"{name} ({number})" for number in count(2))
        return name if name not in self.bundles else next(free for free in numbered if free not in self.bundles)

    def _network(self, backend: Cuda, assembly: Assembly) -> LoadedModel:
        """What runs on a GPU: no file is loaded there, every layer is bound to the kernel its precision names."""
        if self.table is None:
            raise NotMeasured("no latency table names the kernels of this device", hint="measure the model on it first")
        clock, threads = backend.clock(self.target.point.threads), self.target.point.threads
        make = network_maker(self.costs.graph, self.costs.shapes, backend.device, clock, self.table, threads)
        return make(assembly)

    def _audited(self, bundle: Bundle, assembly: Assembly) -> str | None:
        """Why what runs is not what was exported; None when it is.

        What the submitted file's own quantizers do badly, in layers that are not ours to decide, is its own affair.
        """
        audit = audit_model(
            bundle.model,
            self.target.point.threads,
            self.costs.profile.session_options,
            expected={name: assembly.precision_of(name) for name in self._layers()},
            graph=self.costs.graph,
            runtime=self.costs.profile.runtime,
        )
        decided = set(self._layers())
        own = {(finding.code, finding.layer) for finding in audit.findings if finding.layer not in decided}
        if not assembly.candidates:
            self._submitted = own
        found = [each for each in audit.findings if (each.code, each.layer) not in own & self._submitted]
        return "; ".join(finding.sentence for finding in found) or None

    def _runner(self, plan: PlannedAssembly) -> Callable[[Arrays], Arrays]:
        """The built plan on its device, or simulated where that is not at hand."""
        if self.backend is not None:
            return self.models[plan.name].run
        assembly = self.assemblies[plan.name]
        return lambda chunk: self.simulator.run(chunk, assembly)

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
        return self._assess(self._outputs(self._runner(plan), data, self._run_chunk(plan)), data)

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
        """Dynamic ranges depend on the samples that share a batch, so those are assessed as they will be served; a
        CUDA graph has no other batch."""
        is_dynamic = any(name.endswith("-dynamic") for name in plan.precisions.values())
        return self.target.point.batch if is_dynamic or isinstance(self.backend, Cuda) else self.chunk

    def _outputs(self, run: Callable[[Arrays], Arrays], data: Dataset, size: int) -> dict[str, np.ndarray[Any, Any]]:
        return run_in_chunks(run, data, size, [scored.output for scored in self.loss.outputs])

    def _assess(self, outputs: Arrays, data: Dataset) -> Quality:
        if id(data) not in self._reference:
            # Where full precision runs in half it is no reference.
            is_exact = "fp32" in self.models and self.costs.profile.full_precision == FP32
            run = self.models["fp32"].run if is_exact else self.simulator.run
            self._reference[id(data)] = self._outputs(run, data, self.chunk)
        return assess(outputs, self._reference[id(data)], data, self.loss)

    def _timing_inputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """One batch of real samples where they have the operating point's shapes, seeded noise where not."""
        shapes = self.costs.shapes.tensor_shapes
        batch = self.target.point.batch
        data = self.splits.select
        real = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in data.inputs.items()}
        if all(array.shape == tuple(shapes[name]) for name, array in real.items()):
            return real
        return random_inputs(self.costs.graph, self.costs.shapes)
