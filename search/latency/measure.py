"""End-to-end runs: assemblies built, loaded and timed together on the device at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
_ANCHORS = 16
"""Runs timed again beside new ones; the first are uniform or mostly of one precision. A network timed twice differs by
1.5 %: with four anchors, whole rounds of new runs were off by 1.2 % on average, with eight by 0.8 %. In a noisy hour
fits to four rounds left 1.8 % with eight, 1.65 % with sixteen and 1.6 % with their timings averaged."""
_AGREED = 0.06
"""Second times of a run that are further off say that one of the two was disturbed; which, the fit will tell."""
END_TO_END = Protocol(
    long_turns=True, untimed_calls=6, block_rounds=3, sample_us=2_000.0, arm_seconds=2.0, max_samples=90
)
"""How whole models are timed: at the pace that they keep in service; short ones in samples of several calls. After
gigabytes of other models had run, 40 MB of weights took five to six calls to come back into the shared cache."""


def _one_class(precisions: Mapping[str, str]) -> Shares:
    return {ALL: 1.0}


@dataclass(frozen=True)
class NetworkTimer:
    """Builds, loads and times assemblies of one model on the device at hand, all taking turns in one measurement.

    `build` turns the precisions of an assembly into the serialized model that would be deployed, or into a network that
    is ready to run (GPUs, see `search.latency.cuda_network`); it runs with the profile's session options on `inputs`,
    one batch of the operating point. `shares` tells the parts of a network's time by kernel class.

    A machine is some per cent faster or slower from minute to minute. So that new times can stand beside known ones,
    the first known runs are timed once more, and the new times are scaled by what these lost or gained since, for each
    kernel class by itself (see `search.latency.pace`). Scaled so, their own second times count as well.
    """

    build: Build
    inputs: Mapping[str, np.ndarray[Any, Any]]
    backend: Backend
    profile: HardwareProfile
    point: OperatingPoint
    shares: Callable[[Mapping[str, str]], Shares] = _one_class
    protocol: Protocol | None = None
    progress: Progress | None = None

    def measure(
        self, assemblies: Sequence[CalibrationAssembly], known: Sequence[EndToEndRun] = ()
    ) -> list[EndToEndRun]:
        """The known runs, some of them timed once more, and then the runs of all other assemblies."""
        seen = {frozenset(run.precisions.items()) for run in known}
        distinct = {frozenset(each.precisions.items()): each for each in reversed(assemblies)}
        wanted = [each for each in reversed(distinct.values()) if frozenset(each.precisions.items()) not in seen]
        if not wanted:
            return list(known)
        anchors, new = self._beside(known[:_ANCHORS], wanted)
        return [*anchors, *known[_ANCHORS:], *new]

    def _beside(
        self, anchors: Sequence[EndToEndRun], wanted: Sequence[CalibrationAssembly]
    ) -> tuple[list[EndToEndRun], list[EndToEndRun]]:
        """The anchors with what they took now, and what is wanted, at the pace the device had for the anchors first."""
        arms = [
            *((_anchor_name(run), run.precisions) for run in anchors),
            *((each.name, each.precisions) for each in wanted),
        ]
        loaded: dict[str, LoadedModel] = {}
        try:
            for name, precisions in arms:
                made = self.build(precisions)
                if not isinstance(made, LoadedModel):
                    made = self.backend.load_model(made, self.point.threads, self.profile.session_options)
                loaded[name] = made
            timings = measure_interleaved(
                {name: runner(model, self.inputs) for name, model in loaded.items()},
                threads=self.point.threads,
                protocol=self.protocol or self.backend.protocol or END_TO_END,
                clock=self.backend.clock(self.point.threads),
                anchor=self.backend.anchor,
                progress=self.progress,
            )
        finally:
            for model in loaded.values():
                model.close()
        pace = find_pace(
            [(self.shares(run.precisions), timings[_anchor_name(run)].median_us / run.median_us) for run in anchors]
        )

        def run(name: str, precisions: Mapping[str, str], timing: Timing) -> EndToEndRun:
            slowdown = pace.of(self.shares(precisions))
            median_us, low_us, high_us = (
                each / slowdown for each in (timing.median_us, timing.ci_low_us, timing.ci_high_us)
            )
            return EndToEndRun(name, dict(precisions), median_us, low_us, high_us)

        second = [run(each.name, each.precisions, timings[_anchor_name(each)]) for each in anchors]
        again = [
            one.with_another(two) if abs(two.median_us / one.median_us - 1) <= _AGREED else one
            for one, two in zip(anchors, second, strict=True)
        ]
        return again, [run(each.name, each.precisions, timings[each.name]) for each in wanted]


def _anchor_name(run: EndToEndRun) -> str:
    return f"anchor {run.name}"


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
