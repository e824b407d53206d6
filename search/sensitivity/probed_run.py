"""Probed run: a program whose layers read leaf tensors, so that gradients in weights and activations can be taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.graph import Layer
from search.onnx_import import Program, layer_weight
from search.simulation.simulator import Arrays


@dataclass(frozen=True)
class ProbedRun:
    """One forward with gradient leaves: `weights[layer]` and `activations[layer]` (a zero added to what it reads)."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    weights: dict[str, Tensor]
    activations: dict[str, Tensor]

    @property
    def reference(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.outputs.items()}


class ProbedProgram:
    """A program and the layers whose curvature is wanted. Layers without a floating-point input have no activation."""

    def __init__(self, program: Program, layers: Sequence[str]) -> None:
        self.program = program
        self.layers: dict[str, Layer] = {name: program.graph.layer(name) for name in layers}
        self.weights: dict[str, Tensor] = {
            name: torch.tensor(layer_weight(program.graph, layer), dtype=program.dtype, device=program.device)
            for name, layer in self.layers.items()
        }

    def run(self, inputs: dict[str, Tensor], *, activations: bool = False) -> ProbedRun:
        weights = {name: weight.clone().requires_grad_() for name, weight in self.weights.items()}
        found: dict[str, Tensor] = {}
        reads: dict[tuple[int, int], Tensor | Callable[[Tensor], Tensor]] = {
            (layer.node, layer.weight_position): weights[name] for name, layer in self.layers.items()
        }
        if activations:
            for name, layer in self.layers.items():
                reads[layer.node, layer.input_position] = _leaf_adder(name, found)
        outputs = self.program.run(inputs, reads=reads)
        return ProbedRun(inputs, outputs, weights, found)


def pieces(program: Program, chunks: Sequence[Arrays], size: int | None = None) -> Iterator[dict[str, Tensor]]:
    """The chunks' samples as tensors: by the graph's fixed batch, else `size` at a time, else whole chunks.

    A tail shorter than the fixed batch is left out; datasets cut to whole batches have none.
    """
    batch = program.graph.fixed_batch
    for chunk in chunks:
        count = len(next(iter(chunk.values())))
        step = batch or size or count
        for start in range(0, count - count % batch if batch else count, step):
            yield {
                name: torch.as_tensor(np.asarray(array[start : start + step]), device=program.device)
                for name, array in chunk.items()
            }


def _leaf_adder(name: str, found: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def add(values: Tensor) -> Tensor:
        if not values.is_floating_point():
            return values
        found[name] = torch.zeros_like(values, requires_grad=True)
        return values + found[name]

    return add


def gradients(
    row: Tensor, leaves: Sequence[Tensor], weights: Tensor | None = None, **options: Any
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` that answers None for leaves the row does not depend on."""
    if not leaves or not row.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(row, list(leaves), weights, allow_unused=True, **options)


@contextmanager
def single_threaded() -> Iterator[None]:
    """One compute thread inside: backward passes of single samples are too small to share, four times slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
