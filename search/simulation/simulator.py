"""Simulator: runs a graph, as submitted or with an assembly's quantization, and hands out any tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from search.assembly import Assembly
from search.graph import Graph

Arrays = Mapping[str, np.ndarray[Any, Any]]
"""A chunk of samples: arrays by input or output name, samples along the first axis of each."""


def count_samples(chunk: Arrays) -> int:
    return len(next(iter(chunk.values())))


class Simulator(Protocol):
    """One model that can be run forward in float32 with any assembly applied.

    Two implementations: `search.simulation.torch_simulator` (differentiable, re-runs only what follows a change) and
    `search.simulation.onnxruntime_simulator` (any op ONNX Runtime knows, forwards only). Both compute what
    `search.assembly.Assembly` describes; a contract suite holds them to it.
    """

    graph: Graph

    @property
    def is_differentiable(self) -> bool: ...

    def run(
        self, inputs: Arrays, assembly: Assembly | None = None, keep: Iterable[str] = ()
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Graph outputs, and the tensors named in `keep`, for one chunk of samples.

        With an assembly, a kept tensor that is `output_quantized` is the quantized-dequantized value.
        """
        ...

    def perturb(self, inputs: Arrays, assemblies: Iterable[Assembly]) -> Iterable[dict[str, np.ndarray[Any, Any]]]:
        """Graph outputs of each assembly in turn, for one chunk; shares the unperturbed prefix where it can."""
        ...
