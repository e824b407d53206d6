"""Saved traces: mean traces of a model kept as a file, so that every runtime and every shard's scan takes the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from search.data.fingerprint import add_chunks
from search.errors import BadSubmission
from search.loss.model_loss import ModelLoss
from search.onnx_import import Program
from search.sensitivity.hessian_trace import mean_traces
from search.sensitivity.traces import Traces
from search.simulation.simulator import Arrays

Progress = Callable[[int, int], None]
_VERSION = 1


def saved_traces(
    program: Program,
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    folder: Path | None,
    *,
    method: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Traces:
    """`mean_traces` of every layer that can be quantized, computed only where the folder does not hold them.

    Of every such layer, whichever a runtime has kernels for: probes are drawn in the layers' order.
    """
    layers = [layer.name for layer in program.graph.layers if layer.unquantized_reason is None]
    path = None
    if folder is not None:
        path = folder / f"traces_{_fingerprint(program, layers, loss, chunks, method, seed)[:32]}.json"
        try:
            return Traces.load(path)
        except BadSubmission:
            pass
    traces = mean_traces(program, layers, loss, chunks, method=method, seed=seed, progress=progress)
    if path is not None:
        partial = path.with_suffix(".partial")
        traces.save(partial)
        os.replace(partial, path)
    return traces


def _fingerprint(
    program: Program, layers: Sequence[str], loss: ModelLoss, chunks: Sequence[Arrays], method: str, seed: int
) -> str:
    digest = hashlib.sha256(f"{_VERSION}\0{program.graph.sha256}\0{method}\0{seed}\0".encode())
    digest.update(json.dumps([list(layers), loss.to_json()], sort_keys=True).encode())
    add_chunks(digest, chunks)
    return digest.hexdigest()
