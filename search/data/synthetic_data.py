"""Synthetic data: inputs for a model that came without any, matched to its BatchNorm statistics where it has them.

ZeroQ (Cai et al. 2020): inputs are optimised until the mean and standard deviation that reach every BatchNorm equal its
running ones. Most exports fold BatchNorm away; then inputs are Gaussian noise and token ids drawn evenly, which
finds clipping ranges of the right order and no more, and the dataset's notes say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from search.data.dataset import Dataset
from search.data.dataset_file import Array
from search.errors import UnsupportedOp
from search.graph import Graph, TensorInfo
from search.onnx_import import Program

Progress = Callable[[int, int], None]

STEPS = 80
LEARNING_RATE = 0.1
BATCH = 64
IMAGE_SIDE = 64
LENGTH = 16
_BELOW = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class _Statistics:
    """What a BatchNorm expects of tensor `tensor`: mean and standard deviation per channel (axis 1)."""

    tensor: str
    mean: Tensor
    deviation: Tensor


def synthesize(
    graph: Graph, count: int, seed: int, *, dims: Mapping[str, int] | None = None, progress: Progress | None = None
) -> Dataset:
    """`count` synthetic samples for the graph's inputs, rounded up to whole fixed batches; no labels, no groups.

    `dims` gives named dimensions their size; others are 64 for images and 16 elsewhere. The notes say what kind
    of data it is and that results on it claim less. Deterministic in `seed`.
    """
    batch = graph.fixed_batch or 1
    count += -count % batch
    generator = np.random.default_rng(seed)
    inputs = {info.name: _noise(graph, info, count, dims or {}, generator) for info in graph.inputs}
    floats = [name for name, array in inputs.items() if array.dtype.kind == "f"]
    statistics = _batch_norms(graph)
    program = _program(graph) if statistics and floats else None
    if program is None:
        note = (
            "No dataset was given: inputs are random noise. Sensitivities and losses on it say little about real data; "
            "bring 384 samples or more."
        )
        return Dataset(inputs, None, None, graph.fixed_batch, (note,))
    size = batch * max(1, BATCH // batch)
    for start in range(0, count, size):
        piece = {name: array[start : start + size] for name, array in inputs.items()}
        for name, values in _match(program, piece, floats, statistics, batch).items():
            inputs[name][start : start + size] = values
        if progress is not None:
            progress(min(start + size, count), count)
    note = (
        f"No dataset was given: inputs were optimised to match the statistics of {len(statistics)} BatchNorm layers "
        "(ZeroQ). Losses on them are indicative; bring real samples to decide."
    )
    return Dataset(inputs, None, None, graph.fixed_batch, (note,))


def _program(graph: Graph) -> Program | None:
    try:
        return Program(graph)
    except UnsupportedOp:
        return None


def _noise(
    graph: Graph, info: TensorInfo, count: int, dims: Mapping[str, int], generator: np.random.Generator
) -> Array:
    default = IMAGE_SIDE if len(info.shape) >= 4 else LENGTH
    shape = (count, *(d if isinstance(d, int) else dims.get(str(d), default) for d in info.shape[1:]))
    dtype = np.dtype(info.dtype)
    if dtype.kind == "f":
        return np.asarray(generator.normal(size=shape).astype(dtype))
    rows = _embedding_rows(graph, info.name)
    if dtype.kind in "iu" and rows is not None:
        return np.asarray(generator.integers(0, rows, size=shape).astype(dtype))
    # Masks, lengths and flags: one is valid wherever zero could mean "ignore everything".
    return np.ones(shape, dtype=dtype)


def _embedding_rows(graph: Graph, name: str) -> int | None:
    """Fewest rows of the constant tables that this input indexes."""
    reached = {name}
    rows = []
    for node in graph.nodes:
        if node.op_type in _BELOW and node.inputs and node.inputs[0] in reached:
            reached.update(node.outputs)
        if node.op_type == "Gather" and node.inputs[1] in reached and node.inputs[0] in graph.constants:
            axis = int(node.attributes.get("axis", 0))
            rows.append(int(graph.constants[node.inputs[0]].shape[axis]))
    return min(rows) if rows else None


def _batch_norms(graph: Graph) -> list[_Statistics]:
    found = []
    for node in graph.nodes:
        if node.op_type != "BatchNormalization" or not all(name in graph.constants for name in node.inputs[3:5]):
            continue
        mean, variance = (np.array(graph.constants[name], dtype=np.float32) for name in node.inputs[3:5])
        epsilon = float(node.attributes.get("epsilon", 1e-5))
        found.append(_Statistics(node.inputs[0], torch.from_numpy(mean), torch.from_numpy(np.sqrt(variance + epsilon))))
    return found


def _match(
    program: Program, piece: Mapping[str, Array], floats: list[str], statistics: list[_Statistics], batch: int
) -> dict[str, Array]:
    """The piece's float inputs after optimisation; statistics are those of the whole piece, whatever the batch."""
    leaves = {name: torch.from_numpy(piece[name].astype(np.float32)).requires_grad_() for name in floats}
    fixed = {name: torch.from_numpy(array) for name, array in piece.items() if name not in leaves}
    keep = sorted({each.tensor for each in statistics})
    optimizer = torch.optim.Adam(list(leaves.values()), lr=LEARNING_RATE)
    count = len(next(iter(piece.values())))
    step = batch if program.graph.fixed_batch else count
    for _ in range(STEPS):
        optimizer.zero_grad()
        runs = [
            program.run({name: t[start : start + step] for name, t in (leaves | fixed).items()}, keep=keep)
            for start in range(0, count, step)
        ]
        loss = torch.zeros(())
        for each in statistics:
            loss = loss + mismatch(torch.cat([run[each.tensor] for run in runs]), each.mean, each.deviation)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: leaf.detach().numpy().astype(piece[name].dtype) for name, leaf in leaves.items()}


def mismatch(values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """‖mean − μ‖² + ‖std − σ‖² per channel (axis 1), in units of σ so that every layer counts."""
    flat = values.movedim(1, 0).flatten(1)
    off = (flat.mean(1) - mean) / deviation
    # The small constant keeps the root's slope finite for a channel that a ReLU silenced.
    spread = (flat.var(1, unbiased=False) + 1e-6).sqrt() / deviation - 1.0
    return off.square().mean() + spread.square().mean()
