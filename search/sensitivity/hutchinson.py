"""Hutchinson traces and top eigenvalues: Hessian-vector products layer by layer, as HAWQ and HAWQ-V2 take them.

Tr(H) = E[vᵀHv] for random signs v. Every layer has its own probes: reading all layers out of one whole-network probe is
unbiased too, but its variance is 12–18 times larger. Probing stops where a confidence interval says so, never where
a running mean stops moving.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

from search.loss.model_loss import ModelLoss
from search.onnx_import import Program
from search.sensitivity.probed_run import ProbedProgram, ProbedRun, gradients, pieces
from search.sensitivity.traces import MeanTrace, Traces, mean_trace
from search.simulation.simulator import Arrays, count_samples

FIRST_LOOK = 8
CAP = 256
RELATIVE_HALF_WIDTH = 0.10
_POWER_STEPS = 60
_POWER_TOLERANCE = 1e-3
Progress = Callable[[int, int], None]


def hutchinson_traces(
    program: Program,
    layers: Sequence[str],
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    *,
    seed: int = 0,
    half_width: float = RELATIVE_HALF_WIDTH,
    cap: int = CAP,
    progress: Progress | None = None,
) -> Traces:
    """Mean traces of the layers' weights, each until its 95 % t-interval is within ±`half_width` of the mean.

    The interval is looked at after 8, 16, 32, … probes only: looking every 4 cut its coverage from 95 % to below 91 %.
    Layers still wider at `cap` probes are named in the notes. `progress` counts layers that are finished.
    """
    probed = ProbedProgram(program, layers)
    draws: dict[str, list[float]] = {name: [] for name in layers}
    open_layers = list(layers)
    look = FIRST_LOOK
    while open_layers:
        for name, values in _quadratic_forms(probed, open_layers, loss, chunks, look, draws, seed).items():
            draws[name] += values
        open_layers = [name for name in open_layers if not is_settled(draws[name], half_width)]
        if progress is not None:
            progress(len(layers) - len(open_layers), len(layers))
        if look >= cap:
            break
        look = min(2 * look, cap)
    weights: dict[str, MeanTrace] = {}
    for name, values in draws.items():
        count = probed.weights[name].numel()
        weights[name] = mean_trace(sum(values), sum(value * value for value in values), len(values), count)
    notes = [
        f"Layer {name!r}: after {cap} probes its trace is still wider than ±{half_width:.0%}." for name in open_layers
    ]
    notes += [f"Layer {name!r} has a negative trace estimate." for name, each in weights.items() if each.value < 0]
    return Traces("hutchinson", weights, {}, tuple(notes))


def is_settled(values: Sequence[float], half_width: float = RELATIVE_HALF_WIDTH) -> bool:
    """Whether the 95 % t-interval of the mean is within ±`half_width` of it; all-zero values are settled."""
    k = len(values)
    mean = sum(values) / k
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (k - 1))
    return float(student_t.ppf(0.975, k - 1)) * spread / math.sqrt(k) <= half_width * abs(mean)


def _quadratic_forms(
    probed: ProbedProgram,
    layers: Sequence[str],
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    until: int,
    draws: dict[str, list[float]],
    seed: int,
) -> dict[str, list[float]]:
    """vᵀHv of new sign vectors v for each layer, H of the mean loss; the same v on every chunk."""
    forms = {name: [0.0] * (until - len(draws[name])) for name in layers}
    places = {name: index for index, name in enumerate(draws)}
    total = _samples(chunks)
    for piece in pieces(probed.program, chunks):
        run, slopes = _slopes(probed, layers, loss, piece, total)
        for name in layers:
            for index in range(len(forms[name])):
                # Drawn again for every chunk: 256 kept sign vectors would outweigh the model 256 times.
                v = _signs(run.weights[name], seed, places[name], len(draws[name]) + index)
                product = _product(slopes[name], run.weights[name], v)
                forms[name][index] += 0.0 if product is None else float((product.double() * v).sum())
    return forms


def top_eigenvalues(
    program: Program,
    layers: Sequence[str],
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Largest-magnitude Hessian eigenvalue in each layer's weights, by power iteration (HAWQ)."""
    probed = ProbedProgram(program, layers)
    generator = torch.Generator().manual_seed(seed)
    vectors = {name: torch.randn(probed.weights[name].shape, generator=generator).double() for name in layers}
    vectors = {name: vector / vector.norm() for name, vector in vectors.items()}
    values = dict.fromkeys(layers, 0.0)
    active = list(layers)
    for _ in range(_POWER_STEPS):
        products = {name: torch.zeros_like(vectors[name]) for name in active}
        for piece in pieces(probed.program, chunks):
            run, slopes = _slopes(probed, active, loss, piece, _samples(chunks))
            for name in active:
                v = vectors[name].to(run.weights[name])
                product = _product(slopes[name], run.weights[name], v)
                if product is not None:
                    products[name] += product.double().cpu()
        still = []
        for name, product in products.items():
            value, length = float((product * vectors[name]).sum()), float(product.norm())
            if length > 0:
                vectors[name] = product / length
            if abs(value - values[name]) > _POWER_TOLERANCE * abs(value):
                still.append(name)
            values[name] = value
        active = still
        if progress is not None:
            progress(len(layers) - len(active), len(layers))
        if not active:
            break
    return values


def _samples(chunks: Sequence[Arrays]) -> int:
    return sum(count_samples(chunk) for chunk in chunks)


def _signs(weight: Tensor, *seed: int) -> Tensor:
    """Random ±1 in the weight's shape, the same for the same seed."""
    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    generator = torch.Generator().manual_seed(mixed)
    return (torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1).to(weight)


def _slopes(
    probed: ProbedProgram, layers: Sequence[str], loss: ModelLoss, piece: dict[str, Tensor], total: int
) -> tuple[ProbedRun, dict[str, Tensor | None]]:
    """Gradients of this piece's share of the mean loss, themselves differentiable."""
    with twice_differentiable():
        run = probed.run(piece)
        mean = loss.per_sample_torch(run.reference, run.outputs, run.inputs).sum() / total
        found = gradients(mean, [run.weights[name] for name in layers], create_graph=True)
    return run, dict(zip(layers, found, strict=True))


def _product(slope: Tensor | None, weight: Tensor, v: Tensor) -> Tensor | None:
    if slope is None or not slope.requires_grad:
        return None
    return gradients(slope, [weight], v, retain_graph=True)[0]


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by its plain formula: the fused kernel has no second derivative on the CPU."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield
