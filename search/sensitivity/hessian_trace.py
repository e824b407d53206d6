"""Hessian-trace sensitivity: HAWQ-V2's Ω = (Tr(H_l)/n_l) · ‖ΔW_l‖² for weights, and its counterpart for activations.

Dong et al. 2020 (HAWQ-V2). Here with the factor ½, so that Ω is what it approximates, the expected loss
increase ½ ΔWᵀHΔW of an error without direction; rankings and allocations do not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from search.candidates.candidate_set import CandidateSet
from search.groups import LayerGroup
from search.loss.model_loss import ModelLoss
from search.onnx_import import Program
from search.sensitivity.estimate import LossIncrease, Sensitivity
from search.sensitivity.gauss_newton_trace import gauss_newton_traces
from search.sensitivity.hutchinson import hutchinson_traces
from search.sensitivity.quantization_noise import activation_changes, weight_changes
from search.sensitivity.scan import scan_keys
from search.sensitivity.traces import Traces
from search.simulation.simulator import Arrays

TRACE_METHODS = ("auto", "exact", "monte_carlo", "hutchinson")
Progress = Callable[[int, int], None]


def mean_traces(
    program: Program,
    layers: Sequence[str],
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    *,
    method: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Traces:
    """Mean traces of the layers by any of `TRACE_METHODS`; a value of model, data and loss alone, worth keeping.

    `hutchinson` gives weights only. `auto` is exact where the outputs have at most 32 entries per sample.
    """
    if method not in TRACE_METHODS:
        raise ValueError(f"{method!r} is not a trace method; known: {', '.join(TRACE_METHODS)}")
    if method == "hutchinson":
        return hutchinson_traces(program, layers, loss, chunks, seed=seed, progress=progress)
    return gauss_newton_traces(program, layers, loss, chunks, method=method, seed=seed, progress=progress)


def hessian_trace(
    program: Program,
    groups: Sequence[LayerGroup],
    candidates: CandidateSet,
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    *,
    method: str = "auto",
    traces: Traces | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sensitivity:
    """½ Σ over a group's layers of mean trace × ‖ΔW‖², plus the same at the activations that are quantized.

    `traces` computed before are taken as they are.
    """
    if traces is None:
        layers = [layer for group in groups for layer in group.layers]
        traces = mean_traces(program, layers, loss, chunks, method=method, seed=seed, progress=progress)
    return from_traces("hessian_trace", program, groups, candidates, loss, chunks, traces)


def from_traces(
    metric: str,
    program: Program,
    groups: Sequence[LayerGroup],
    candidates: CandidateSet,
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    traces: Traces,
) -> Sensitivity:
    """The sensitivity that given traces imply for finished candidates. Negative estimates count as 0."""
    changed = weight_changes(program.graph, candidates)
    noise = activation_changes(program, candidates, chunks) if traces.activations else {}
    members = {group.name: group.layers for group in groups}
    increases = {}
    for key in scan_keys(groups, candidates):
        value, variance, draws = 0.0, 0.0, math.inf
        for layer in members[key[0]]:
            terms = [(traces.weights[layer], changed[layer, key[1]])]
            if layer in traces.activations:
                read = traces.activations[layer]
                terms.append((read, noise[layer, key[1]] * read.count))
            for trace, squared in terms:
                value += 0.5 * trace.floored * squared
                variance += (0.5 * trace.standard_error * squared) ** 2 if squared else 0.0
                draws = min(draws, trace.draws)
        increases[key] = LossIncrease(value, math.sqrt(variance), int(draws))
    floored = tuple(
        f"Layer {name!r} has a negative mean trace ({trace.value:.3g}), counted as 0."
        for name, trace in traces.weights.items()
        if trace.value < 0
    )
    return Sensitivity(metric, loss.unit, increases, notes=(*traces.notes, *floored))
