"""Gauss–Newton traces from per-sample gradients: exact for narrow outputs, by Monte-Carlo Fisher for wide ones.

For the factor a of `search.loss.model_loss`, the Gauss–Newton matrix of sample i is Σ_k g_ik g_ikᵀ with
g_ik = ∂a_ik/∂w, so Tr = mean_i Σ_k ‖g_ik‖². Gradients must be taken sample by sample: the squared gradient of a
batch mean is not the mean of squared gradients. At the full-precision model the loss has no other
second-order term, so this is its Hessian trace too, and it is never negative.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from search.loss.model_loss import ModelLoss
from search.onnx_import import Program
from search.sensitivity.probed_run import ProbedProgram, gradients, pieces, single_threaded
from search.sensitivity.traces import MeanTrace, Traces, mean_trace
from search.simulation.simulator import Arrays, count_samples

EXACT_OUTPUTS = 32
_BATCHED_ELEMENTS = 1 << 26
Progress = Callable[[int, int], None]


def gauss_newton_traces(
    program: Program,
    layers: Sequence[str],
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    *,
    method: str = "auto",
    activations: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Traces:
    """Mean traces of the layers' weights and of what they read.

    `exact` sums over every entry of the factor, `monte_carlo` draws one label per sample from the model (Fisher);
    `auto` is exact up to 32 entries. Standard errors are over samples, draws included.
    """
    probed = ProbedProgram(program, layers)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[tuple[str, str], list[float]] = {}
    counts: dict[tuple[str, str], int] = {}
    total = sum(count_samples(chunk) for chunk in chunks)
    done = 0
    used = method
    for piece in pieces(probed.program, chunks, size=1):
        run = probed.run(piece, activations=activations)
        reference = run.reference
        rows = loss.factor_torch(reference, run.outputs, run.inputs)
        samples, width = rows.shape
        if method == "auto":
            used = "exact" if width <= EXACT_OUTPUTS else "monte_carlo"
        drawn = None if used == "exact" else loss.fisher_probe(reference, generator, run.inputs)
        leaves = {("weight", name): leaf for name, leaf in run.weights.items()}
        leaves |= {("activation", name): leaf for name, leaf in run.activations.items()}
        for index in range(samples):
            probes = torch.eye(width, dtype=rows.dtype) if drawn is None else drawn[index : index + 1]
            with single_threaded():
                norms = _squared_norms(rows[index], list(leaves.values()), probes)
            for key, value in zip(leaves, norms, strict=True):
                entry = sums.setdefault(key, [0.0, 0.0])
                entry[0] += value
                entry[1] += value * value
                counts[key] = leaves[key].numel() // (1 if key[0] == "weight" else samples)
        done += samples
        if progress is not None:
            progress(done, total)
    found = {key: mean_trace(first, second, done, counts[key]) for key, (first, second) in sums.items()}
    weights = {name: trace for (kind, name), trace in found.items() if kind == "weight"}
    read = {name: trace for (kind, name), trace in found.items() if kind == "activation"}
    return Traces(used, weights, read, _silent(weights))


def _silent(weights: dict[str, MeanTrace]) -> tuple[str, ...]:
    return tuple(
        f"Layer {name!r} does not reach a scored output: its trace is 0."
        for name, trace in weights.items()
        if trace.value == 0.0 and trace.standard_error == 0.0
    )


def _squared_norms(row: Tensor, leaves: list[Tensor], probes: Tensor) -> list[float]:
    """Σ_p ‖∂(probe_p · row)/∂leaf‖² per leaf, all probes in one backward where that fits in memory."""
    probes = probes.to(row.device)
    if len(probes) > 1 and len(probes) * sum(leaf.numel() for leaf in leaves) <= _BATCHED_ELEMENTS:
        with warnings.catch_warnings():
            # Ops without a batching rule fall back to a loop inside torch, which says so; the result is the same.
            warnings.filterwarnings("ignore", message=".*batching rule.*", category=UserWarning)
            found = gradients(row, leaves, probes, retain_graph=True, is_grads_batched=True)
        return [0.0 if grad is None else float(grad.double().square().sum()) for grad in found]
    totals = [0.0] * len(leaves)
    for probe in probes:
        for index, grad in enumerate(gradients(row, leaves, probe, retain_graph=True)):
            if grad is not None:
                totals[index] += float(grad.double().square().sum())
    return totals
