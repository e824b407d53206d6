"""End-to-end runs: assemblies built, loaded and timed together on the device at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernels.backends.base import Backend, LoadedModel
from kernels.hardware_profile import HardwareProfile
from kernels.microbench import Protocol, measure_interleaved
from kernels.operating_point import OperatingPoint
from kernels.stopwatch import Timing
from search.graph import Graph, LayerKind, OperatingShapes, TensorInfo
from search.latency.assemblies import CalibrationAssembly
from search.latency.coefficients import EndToEndRun
from search.latency.pace import ALL, Shares, find_pace

Progress = Callable[[int, int], None]
Build = Callable[[Mapping[str, str]], bytes | LoadedModel]
_ANCHORS = 8
"""Runs timed again beside new ones; the first are uniform or mostly of one precision. A network timed twice differs by
1.5 %: with four anchors, whole rounds of new runs were off by 1.2 % on average, with eight by 0.8 %."""
END_TO_END = Protocol(
    long_turns=True, untimed_calls=6, block_rounds=3, sample_us=2_000.0, arm_seconds=2.0, max_samples=120
)
"""How whole models are timed: at the pace that they keep in service; short ones in samples of several calls. After
gigabytes of other models had run, 40 MB of weights took five to six calls to come back into the shared cache."""


def measure_runs(
    assemblies: Sequence[CalibrationAssembly],
    build: Build,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    backend: Backend,
    profile: HardwareProfile,
    point: OperatingPoint,
    known: Sequence[EndToEndRun] = (),
    *,
    shares: Callable[[Mapping[str, str]], Shares] | None = None,
    protocol: Protocol | None = None,
    progress: Progress | None = None,
) -> list[EndToEndRun]:
    """Build, load and time assemblies, all taking turns in one measurement; those in `known` are not timed again.

    A machine is some per cent faster or slower from minute to minute. So that new times can stand beside known ones,
    the first known runs are timed once more and the new times are scaled by what these lost or gained since, for each
    kernel class by itself where `shares` tells their parts of a network's time (see `search.latency.pace`).

    `build` turns the precisions of an assembly into the serialized model that would be deployed, or into a network that
    is ready to run (GPUs, see `search.latency.cuda_network`); it runs with the profile's session options on `inputs`,
    one batch of the operating point.
    """
    seen = {frozenset(run.precisions.items()) for run in known}
    distinct = {frozenset(each.precisions.items()): each for each in reversed(assemblies)}
    wanted = [each for each in reversed(distinct.values()) if frozenset(each.precisions.items()) not in seen]
    if not wanted:
        return list(known)
    anchors = known[:_ANCHORS]
    arms = [
        *((_anchor_name(run), run.precisions) for run in anchors),
        *((each.name, each.precisions) for each in wanted),
    ]
    loaded: dict[str, LoadedModel] = {}
    try:
        for name, precisions in arms:
            made = build(precisions)
            if not isinstance(made, LoadedModel):
                made = backend.load_model(made, point.threads, profile.session_options)
            loaded[name] = made
        timings = measure_interleaved(
            {name: runner(model, inputs) for name, model in loaded.items()},
            threads=point.threads,
            protocol=protocol or backend.protocol or END_TO_END,
            clock=backend.clock(point.threads),
            anchor=backend.anchor,
            progress=progress,
        )
    finally:
        for model in loaded.values():
            model.close()
    parts = shares or (lambda _: {ALL: 1.0})
    pace = find_pace([(parts(run.precisions), timings[_anchor_name(run)].median_us / run.median_us) for run in anchors])
    return [*known, *(_run(each, timings[each.name], pace.of(parts(each.precisions))) for each in wanted)]


def _anchor_name(run: EndToEndRun) -> str:
    return f"anchor {run.name}"


def _run(assembly: CalibrationAssembly, timing: Timing, slowdown: float) -> EndToEndRun:
    times = (each / slowdown for each in (timing.median_us, timing.ci_low_us, timing.ci_high_us))
    return EndToEndRun(assembly.name, dict(assembly.precisions), *times)


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


def runner(model: LoadedModel, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Callable[[], None]:
    """An arm to be timed: one inference of `inputs`, its outputs dropped."""

    def run() -> None:
        model.run(inputs)

    return run
