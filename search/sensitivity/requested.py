"""Scanning: every metric a study asks for, the forward scan that several share done once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from search.candidates.assemble import assemble
from search.candidates.candidate_set import CandidateSet
from search.groups import LayerGroup
from search.loss.model_loss import ModelLoss
from search.onnx_import import Program
from search.sensitivity.estimate import Sensitivity
from search.sensitivity.metrics import METRICS, Subject, measure, metric_for
from search.sensitivity.saved_traces import saved_traces
from search.sensitivity.scan import scan
from search.simulation.simulator import Arrays, Simulator, count_samples
from search.simulation.torch_simulator import TorchSimulator
from search.study import DEFAULT_METRICS

SHARED_SCAN = ("gauss_newton", "kl")
GRADIENT_SAMPLES = 64
"""Samples of the metrics that need derivatives one sample at a time; a trace within 10 to 30 % allocates as well."""
UNIFORM = "w8a8"


def computable(metrics: Sequence[str], simulator: Simulator) -> tuple[list[str], list[str]]:
    """The metrics that a scan will compute, and notes on default ones it leaves out for want of derivatives.

    Raises `BadSubmission` (`metric_unknown`) and, for a metric asked for by name, `UnsupportedOp`.
    """
    program = _program(simulator)
    if program is None and tuple(metrics) == DEFAULT_METRICS:
        dropped = [name for name in metrics if METRICS[name].needs_gradients]
        note = f"{', '.join(dropped)} left out: the graph holds an op we cannot differentiate."
        return [name for name in metrics if name not in dropped], [note]
    return [metric_for(name, program).name for name in metrics], []


def _program(simulator: Simulator) -> Program | None:
    return simulator.program if isinstance(simulator, TorchSimulator) else None


def scan_metrics(
    metrics: Sequence[str],
    simulator: Simulator,
    groups: Sequence[LayerGroup],
    candidates: CandidateSet,
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> tuple[dict[str, Sensitivity], tuple[str, ...]]:
    """Sensitivities by metric name in the order asked, and notes for the report.

    On a graph without derivatives the default metrics lose those that need them, with a note; a metric asked for by
    name is refused instead (`UnsupportedOp`). Rows of the forward scan and traces are kept in `folder` and taken from
    there.
    """
    program = _program(simulator)
    wanted, notes = computable(metrics, simulator)
    found: dict[str, Sensitivity] = {}
    if any(name in SHARED_SCAN for name in wanted):
        found.update(scan(simulator, groups, candidates, loss, chunks, progress, folder=folder))
    few = _first_samples(chunks, GRADIENT_SAMPLES)
    subject = Subject(simulator, program, groups, candidates, loss, few, seed, progress, folder)
    for name in wanted:
        if name not in found:
            found[name] = measure(name, subject)
    return {name: found[name] for name in wanted}, tuple(notes)


def save_traces(
    metrics: Sequence[str], simulator: Simulator, loss: ModelLoss, chunks: Sequence[Arrays], seed: int, folder: Path
) -> None:
    """Leave in `folder` the traces that `scan_metrics` will look for; nothing on a graph without derivatives."""
    methods = dict.fromkeys(METRICS[name].trace_method for name in metrics if name in METRICS)
    if isinstance(simulator, TorchSimulator):
        few = _first_samples(chunks, GRADIENT_SAMPLES)
        for method in filter(None, methods):
            saved_traces(simulator.program, loss, few, folder, method=method, seed=seed)


def normalised_loss(
    loss: ModelLoss,
    simulator: Simulator,
    groups: Sequence[LayerGroup],
    candidates: CandidateSet,
    chunks: Sequence[Arrays],
) -> ModelLoss:
    """The loss with each of several outputs divided by what uniform w8a8 (or the dearest precision) loses there."""
    if len(loss.outputs) < 2:
        return loss
    precisions = {name: _most_bits(candidates, name) for group in groups for name in group.layers}
    assembly = assemble(simulator.graph, precisions, candidates)
    parts = [loss.per_output(simulator.run(chunk), simulator.run(chunk, assembly), chunk) for chunk in chunks]
    return loss.normalised(
        {each.output: float(np.concatenate([part[each.output] for part in parts]).mean()) for each in loss.outputs}
    )


def _most_bits(candidates: CandidateSet, layer: str) -> str:
    offered = candidates.precisions(layer)
    return UNIFORM if UNIFORM in offered else offered[0]


def _first_samples(chunks: Sequence[Arrays], count: int) -> list[Arrays]:
    """The leading chunks that hold about `count` samples, whole so that fixed batches stay whole; at least one."""
    kept: list[Arrays] = []
    for chunk in chunks:
        if kept and sum(count_samples(each) for each in kept) >= count:
            break
        kept.append(chunk)
    return kept
