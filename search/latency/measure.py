"""Measuring a model on the device at hand: missing table rows, end-to-end runs of assemblies, and the fit of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernels.backends.base import Backend, LoadedModel
from kernels.hardware_profile import HardwareProfile
from kernels.latency_table import LatencyTable
from kernels.microbench import DEFAULT, Protocol, measure_interleaved, measure_rows
from kernels.operating_point import OperatingPoint
from search.graph import Graph, LayerKind, OperatingShapes, TensorInfo
from search.latency.assemblies import CalibrationAssembly
from search.latency.fit import EndToEndRun
from search.latency.rows import Pair

Progress = Callable[[int, int], None]
Build = Callable[[Mapping[str, str]], bytes]
PAIRS_PER_CHECKPOINT = 8


def empty_table(profile: HardwareProfile) -> LatencyTable:
    """A table without rows for a profile."""
    return LatencyTable(profile.slug, profile.device, profile.runtime, profile.runtime_version)


def measure_missing(
    pairs: Sequence[Pair],
    backend: Backend,
    profile: HardwareProfile,
    threads: int,
    table: LatencyTable | None = None,
    *,
    progress: Progress | None = None,
    checkpoint: Callable[[LatencyTable], None] | None = None,
) -> LatencyTable:
    """The table with every pair measured; pairs it already holds are not timed again.

    Pairs are timed a few at a time, op by op, and `checkpoint` gets the table after each portion: a run that is cut
    off goes on from the last one. `progress(done, total)` counts pairs.
    """
    current = table or empty_table(profile)
    left = [(op, precision) for op, precision in dict.fromkeys(pairs) if not current.has(op, precision, threads)]
    done = 0
    for portion in _portions(left):
        current = measure_rows(backend, profile, portion, threads, current)
        done += len(portion)
        if checkpoint is not None:
            checkpoint(current)
        if progress is not None:
            progress(done, len(left))
    return current


def measure_runs(
    assemblies: Sequence[CalibrationAssembly],
    build: Build,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    backend: Backend,
    profile: HardwareProfile,
    point: OperatingPoint,
    known: Sequence[EndToEndRun] = (),
    *,
    protocol: Protocol = DEFAULT,
    progress: Progress | None = None,
) -> list[EndToEndRun]:
    """Build, load and time assemblies, all taking turns in one measurement; those in `known` are not timed again.

    `build` turns the precisions of an assembly into the serialized model that would be deployed; it runs with the
    profile's session options on `inputs`, one batch of the operating point.
    """
    seen = {frozenset(run.precisions.items()) for run in known}
    wanted = [a for a in assemblies if frozenset(a.precisions.items()) not in seen]
    if not wanted:
        return list(known)
    loaded: dict[str, LoadedModel] = {}
    try:
        for assembly in wanted:
            loaded[assembly.name] = backend.load_model(
                build(assembly.precisions), point.threads, profile.session_options
            )
        timings = measure_interleaved(
            {name: _runner(model, inputs) for name, model in loaded.items()},
            threads=point.threads,
            protocol=protocol,
            progress=progress,
        )
    finally:
        for model in loaded.values():
            model.close()
    return [
        *known,
        *(
            EndToEndRun(a.name, dict(a.precisions), timing.median_us, timing.ci_low_us, timing.ci_high_us)
            for a in wanted
            for timing in [timings[a.name]]
        ),
    ]


def random_inputs(graph: Graph, shapes: OperatingShapes, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """One batch of seeded noise at the operating point: normal floats, valid indices, masks of ones."""
    generator = np.random.default_rng(seed)
    return {info.name: _random_input(graph, info, shapes.tensor_shapes[info.name], generator) for info in graph.inputs}


def _random_input(
    graph: Graph, info: TensorInfo, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    if info.dtype.kind == "f":
        return generator.standard_normal(shape).astype(info.dtype)
    tables = [
        layer.weight_shape[0]
        for layer in graph.layers
        if layer.kind is LayerKind.EMBEDDING and layer.input == info.name
    ]
    if info.dtype.kind in "iu" and tables:
        return generator.integers(0, min(tables), shape).astype(info.dtype)
    return np.ones(shape, info.dtype)


def _runner(model: LoadedModel, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Callable[[], None]:
    def run() -> None:
        model.run(inputs)

    return run


def _portions(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pairs in portions of about `PAIRS_PER_CHECKPOINT`; all precisions of one op stay in one portion."""
    by_op: dict[str, list[Pair]] = {}
    for op, precision in pairs:
        by_op.setdefault(op.signature, []).append((op, precision))
    portions: list[list[Pair]] = [[]]
    for group in by_op.values():
        if len(portions[-1]) >= PAIRS_PER_CHECKPOINT:
            portions.append([])
        portions[-1] += group
    return [portion for portion in portions if portion]
