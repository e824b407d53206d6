"""Quantization noise: how far finished candidates move weights, and their quantizers the activations they read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from search.assembly import Candidate
from search.candidates.candidate_set import CandidateSet
from search.graph import Graph
from search.onnx_import import Program, layer_weight
from search.quantizer.fake_quantize import Transform, activation_transform
from search.sensitivity.probed_run import pieces
from search.simulation.simulator import Arrays

Key = tuple[str, str]


def weight_changes(graph: Graph, candidates: CandidateSet) -> dict[Key, float]:
    """‖ΔW‖² of every candidate by (layer, precision), ΔW = what its codes stand for minus the original weight."""
    originals: dict[str, np.ndarray] = {}
    found = {}
    for key, candidate in candidates.candidates.items():
        if key[0] not in originals:
            originals = {key[0]: layer_weight(graph, graph.layer(key[0])).astype(np.float64)}
        change = candidate.weight.dequantize().astype(np.float64) - originals[key[0]]
        found[key] = float((change * change).sum())
    return found


def weight_energies(graph: Graph, candidates: CandidateSet) -> dict[str, float]:
    """‖W‖² of every layer that has a candidate."""
    layers = dict.fromkeys(layer for layer, _ in candidates.candidates)
    return {
        layer: float(np.square(layer_weight(graph, graph.layer(layer)), dtype=np.float64).sum()) for layer in layers
    }


def activation_changes(program: Program, candidates: CandidateSet, chunks: Sequence[Arrays]) -> dict[Key, float]:
    """Mean square change of what each candidate reads, per entry; 0 where it reads plain floats."""
    found: dict[Key, float] = {}
    transforms: dict[Key, tuple[str, Transform]] = {}
    for key, candidate in candidates.candidates.items():
        found[key] = 0.0
        transform = _transform(candidate, program.graph.layer(key[0]).input, candidates)
        if transform is not None:
            transforms[key] = (program.graph.layer(key[0]).input, transform)
    tensors = sorted({tensor for tensor, _ in transforms.values()})
    entries = dict.fromkeys(transforms, 0)
    with torch.no_grad():
        for inputs in pieces(program, chunks) if transforms else ():
            values = program.run(inputs, keep=tensors)
            for key, (tensor, transform) in transforms.items():
                read = values[tensor]
                if read.is_floating_point():
                    found[key] += float((transform(read) - read).double().square().sum())
                    entries[key] += read.numel()
    return {key: total / max(entries.get(key, 0), 1) for key, total in found.items()}


def _transform(candidate: Candidate, tensor: str, candidates: CandidateSet) -> Transform | None:
    numerics = candidate.recipe.activation
    quantizer = None if numerics is None else candidates.quantizers.get((tensor, numerics))
    return activation_transform(candidate.recipe, quantizer)
