"""Metrics by name: what each needs and how it is computed, so that a study can ask for any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from search.candidates.candidate_set import CandidateSet
from search.errors import BadSubmission, UnsupportedOp
from search.groups import LayerGroup
from search.loss.model_loss import ModelLoss
from search.onnx_import import Program
from search.sensitivity.estimate import LossIncrease, Sensitivity
from search.sensitivity.hessian_trace import from_traces
from search.sensitivity.hutchinson import top_eigenvalues
from search.sensitivity.quantization_noise import weight_changes, weight_energies
from search.sensitivity.saved_traces import saved_traces
from search.sensitivity.scan import scan, scan_keys
from search.simulation.simulator import Arrays, Simulator

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Subject:
    """What a metric is computed on. `program` is None where the graph holds an op that has no derivative here.

    Traces are taken from `folder` and left there, where there is one.
    """

    simulator: Simulator
    program: Program | None
    groups: Sequence[LayerGroup]
    candidates: CandidateSet
    loss: ModelLoss
    chunks: Sequence[Arrays]
    seed: int = 0
    progress: Progress | None = None
    folder: Path | None = None

    @property
    def layers(self) -> list[str]:
        return [layer for group in self.groups for layer in group.layers]


@dataclass(frozen=True)
class Metric:
    """A sensitivity metric: one sentence on it, and whether it needs derivatives and data.

    `trace_method` names the mean traces it weighs errors with, which depend on no candidate.
    """

    name: str
    summary: str
    needs_gradients: bool
    needs_data: bool
    compute: Callable[[Subject], Sensitivity]
    trace_method: str | None = None


def measure(name: str, subject: Subject) -> Sensitivity:
    """The metric's sensitivity of every (group, precision).

    Raises `BadSubmission` (`metric_unknown`) for a name not in `METRICS` and `UnsupportedOp` for a metric that needs
    derivatives of a graph without them.
    """
    return metric_for(name, subject.program).compute(subject)


def metric_for(name: str, program: Program | None) -> Metric:
    """The metric of a name on a model with or without derivatives; raises what `measure` does."""
    if name not in METRICS:
        raise BadSubmission(
            f"{name!r} is not a sensitivity metric", hint=f"known: {', '.join(METRICS)}", code="metric_unknown"
        )
    metric = METRICS[name]
    if metric.needs_gradients and program is None:
        forward_only = ", ".join(other.name for other in METRICS.values() if not other.needs_gradients)
        raise UnsupportedOp(f"metric {name!r} needs derivatives of this model", hint=f"these do not: {forward_only}")
    return metric


def _scanned(name: str) -> Callable[[Subject], Sensitivity]:
    def compute(subject: Subject) -> Sensitivity:
        found = scan(
            subject.simulator, subject.groups, subject.candidates, subject.loss, subject.chunks, subject.progress
        )
        return found[name]

    return compute


def _from_traces(name: str, summary: str, method: str) -> Metric:
    def compute(subject: Subject) -> Sensitivity:
        assert subject.program is not None
        traces = saved_traces(
            subject.program, subject.loss, subject.chunks, subject.folder,
            method=method, seed=subject.seed, progress=subject.progress,
        )  # fmt: skip
        return from_traces(
            name, subject.program, subject.groups, subject.candidates, subject.loss, subject.chunks, traces
        )

    return Metric(name, summary, True, True, compute, method)


def _hessian_eigenvalue(subject: Subject) -> Sensitivity:
    """HAWQ's λ_l ‖ΔW_l‖² (Dong et al. 2019), halved: an upper bound of ½ ΔWᵀHΔW."""
    assert subject.program is not None
    eigenvalues = top_eigenvalues(
        subject.program, subject.layers, subject.loss, subject.chunks, seed=subject.seed, progress=subject.progress
    )
    changed = weight_changes(subject.program.graph, subject.candidates)
    scores = {key: 0.5 * max(eigenvalues[key[0]], 0.0) * squared for key, squared in changed.items()}
    return _summed("hessian_eigenvalue", subject.loss.unit, subject, scores)


def _weight_error(subject: Subject) -> Sensitivity:
    """‖ΔW‖²/‖W‖², without data."""
    graph = subject.simulator.graph
    energies = weight_energies(graph, subject.candidates)
    changed = weight_changes(graph, subject.candidates)
    scores = {key: squared / energies[key[0]] if energies[key[0]] else 0.0 for key, squared in changed.items()}
    return _summed("weight_error", "relative weight error", subject, scores)


def _summed(name: str, unit: str, subject: Subject, scores: Mapping[tuple[str, str], float]) -> Sensitivity:
    members = {group.name: group.layers for group in subject.groups}
    increases = {
        key: LossIncrease(sum(scores[layer, key[1]] for layer in members[key[0]]), 0.0, 0)
        for key in scan_keys(subject.groups, subject.candidates)
    }
    return Sensitivity(name, unit, increases)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric(
                "gauss_newton",
                "Measured loss of each choice plus all pairwise interactions.",
                False,
                True,
                _scanned("gauss_newton"),
            ),
            Metric("kl", "Measured loss of each choice alone.", False, True, _scanned("kl")),
            _from_traces("hessian_trace", "HAWQ-V2: mean Gauss–Newton trace × squared error.", "auto"),
            _from_traces("hessian_trace_hutchinson", "HAWQ-V2 with Hutchinson's random probes.", "hutchinson"),
            Metric(
                "hessian_eigenvalue", "HAWQ: top Hessian eigenvalue × squared error.", True, True, _hessian_eigenvalue
            ),
            # Zandonati et al. 2022 (FIT): Fisher traces, labels drawn from the model.
            _from_traces("fisher", "FIT: Fisher trace × squared error, weights and activations.", "monte_carlo"),
            Metric("weight_error", "Relative squared weight error; needs no data.", False, False, _weight_error),
        )
    }
)
