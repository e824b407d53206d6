"""Calibration: one static quantizer per activation tensor, from statistics streamed over the calibration chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernels.recipe import Numerics
from search.assembly import ActivationQuantizer
from search.candidates.recipes import Wanted, static_formats
from search.errors import BadSubmission, NotEnoughData
from search.graph import Graph, Layer
from search.quantizer.clipping import ACTIVATION_RULES, Histogram, activation_range, range_error
from search.quantizer.uniform import SMALLEST_SCALE, range_parameters
from search.simulation.simulator import Arrays, Simulator, count_samples

Progress = Callable[[int, int], None]
Key = tuple[str, Numerics]

HISTOGRAM_BINS = 2048
_SMALLEST_WIDTH = 1e-30


@dataclass(frozen=True)
class Calibration:
    """Quantizers by (tensor, numerics), with the rule that won and its expected squared error relative to the power."""

    quantizers: Mapping[Key, ActivationQuantizer]
    rules: Mapping[Key, str]
    errors: Mapping[Key, float]
    samples: int


@dataclass
class _Range:
    low: float = np.inf
    high: float = -np.inf

    @property
    def is_constant(self) -> bool:
        """True when nothing was seen but one value, as far as float32 bins can tell."""
        return not self.high - self.low > _SMALLEST_WIDTH

    def add(self, tensor: str, values: np.ndarray[Any, Any]) -> None:
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadSubmission(
                f"tensor {tensor!r} holds NaN or infinity on the calibration data (smallest {low}, largest {high})",
                hint="check the data's range and preprocessing, and the model in full precision",
                code="activation_not_finite",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)


@dataclass
class _Counts:
    low: float
    high: float
    counts: np.ndarray[Any, np.dtype[np.int64]] = field(default_factory=lambda: np.zeros(HISTOGRAM_BINS, np.int64))

    def add(self, values: np.ndarray[Any, Any]) -> None:
        position = (values.ravel() - np.float32(self.low)) * np.float32(HISTOGRAM_BINS / (self.high - self.low))
        bins = np.clip(position, 0, HISTOGRAM_BINS - 1).astype(np.int32)
        self.counts += np.bincount(bins, minlength=HISTOGRAM_BINS)


def quantized_tensors(graph: Graph, wanted: Iterable[Wanted]) -> list[Key]:
    """The tensors that these candidates quantize statically with their numerics, each pair once.

    Runtimes differ in how they quantize a tensor, so one may be listed in several formats.
    """
    pairs = (key for each in wanted for key in static_formats(graph, each.layer, each.recipe).items())
    return list(dict.fromkeys(pairs))


def absorbed_limits(graph: Graph) -> dict[str, tuple[float, float]]:
    """Per tensor behind an absorbed Relu or Clip: the limits its quantized range must lie inside."""
    limits: dict[str, tuple[float, float]] = {}
    for layer in graph.layers:
        if layer.activation_node is not None and layer.activation_output is not None:
            limits[layer.activation_output] = _node_limits(graph, layer)
    return limits


def _node_limits(graph: Graph, layer: Layer) -> tuple[float, float]:
    assert layer.activation_node is not None
    node = graph.nodes[layer.activation_node]
    if node.op_type == "Relu":
        return 0.0, np.inf

    def limit(position: int, attribute: str, default: float) -> float:
        if attribute in node.attributes:
            return float(node.attributes[attribute])
        if len(node.inputs) > position and node.inputs[position]:
            return float(np.asarray(graph.constants[node.inputs[position]]).reshape(()))
        return default

    return limit(1, "min", -np.inf), limit(2, "max", np.inf)


def quantizer_for_range(
    tensor: str, low: float, high: float, numerics: Numerics, limits: tuple[float, float] = (-np.inf, np.inf)
) -> ActivationQuantizer:
    """The quantizer of a tensor whose values lie in [low, high] and whose absorbed activation clips to `limits`.

    The represented range (code_min - zero_point) * scale .. (code_max - zero_point) * scale is kept inside the
    limits, in float32 too: runtimes absorb a Clip(0, 6) only if 255 * scale <= 6, a Relu only if the zero point is
    the smallest code.
    """
    low, high = max(low, limits[0]), min(high, limits[1])
    scales, points = range_parameters(np.array([low]), np.array([high]), numerics)
    scale, point = np.float32(scales[0]), int(points[0])
    if limits[0] >= 0 and not numerics.symmetric:
        point = numerics.code_min
    for reach, limit in ((numerics.code_max - point, limits[1]), (point - numerics.code_min, -limits[0])):
        if reach > 0 and 0 < limit < np.inf:
            while np.float32(reach) * scale > np.float32(limit):
                scale = np.nextafter(min(scale, np.float32(limit / reach)), np.float32(0))
    return ActivationQuantizer(tensor, float(max(scale, SMALLEST_SCALE)), point, numerics)


def calibrate(
    simulator: Simulator,
    chunks: Sequence[Arrays],
    wanted: Iterable[Wanted],
    rules: Sequence[str] = ACTIVATION_RULES,
    progress: Progress | None = None,
) -> Calibration:
    """Quantizers for every tensor the candidates quantize statically; two forward passes over the chunks.

    The first pass finds ranges, the second fills histograms; each rule proposes a range and the one with the least
    expected squared error wins. Raises `NotEnoughData` (`calibration_empty`) without chunks and `BadSubmission`
    (`activation_not_finite`) naming a tensor that holds NaN or infinity.
    """
    graph = simulator.graph
    if not chunks:
        raise NotEnoughData("calibration got no samples", hint="bring 128 or more samples", code="calibration_empty")
    asked = quantized_tensors(graph, wanted)
    histograms = collect_histograms(simulator, chunks, sorted({tensor for tensor, _ in asked}), progress)
    limits = absorbed_limits(graph)
    quantizers: dict[Key, ActivationQuantizer] = {}
    best_rules: dict[Key, str] = {}
    errors: dict[Key, float] = {}
    for tensor, numerics in asked:
        histogram = histograms[tensor]
        ranges = {rule: activation_range(histogram, numerics, rule) for rule in rules}
        lows, highs = (np.array(ends) for ends in zip(*ranges.values(), strict=True))
        expected = range_error(histogram, lows, highs, numerics)
        best = int(np.argmin(expected))
        rule = list(ranges)[best]
        quantizers[tensor, numerics] = quantizer_for_range(
            tensor, *ranges[rule], numerics, limits.get(tensor, (-np.inf, np.inf))
        )
        best_rules[tensor, numerics] = rule
        power = float(np.square(histogram.centers) @ histogram.counts / max(histogram.counts.sum(), 1))
        errors[tensor, numerics] = float(expected[best] / power) if power > 0 else 0.0
    samples = sum(count_samples(chunk) for chunk in chunks)
    return Calibration(quantizers, best_rules, errors, samples)


def collect_histograms(
    simulator: Simulator, chunks: Sequence[Arrays], tensors: Sequence[str], progress: Progress | None = None
) -> dict[str, Histogram]:
    """Histograms of tensors over all chunks, each over its own observed range; nothing else is kept in memory."""
    ranges = {tensor: _Range() for tensor in tensors}
    passes = 2 * len(chunks)
    for done, chunk in enumerate(chunks):
        for tensor, values in _tensors(simulator, chunk, tensors):
            ranges[tensor].add(tensor, values)
        if progress is not None:
            progress(done + 1, passes)
    counts = {tensor: _Counts(*_open_range(seen)) for tensor, seen in ranges.items()}
    for done, chunk in enumerate(chunks, start=len(chunks)):
        for tensor, values in _tensors(simulator, chunk, tensors):
            counts[tensor].add(values)
        if progress is not None:
            progress(done + 1, passes)
    return {
        tensor: _constant_histogram(ranges[tensor])
        if ranges[tensor].is_constant
        else Histogram(found.low, found.high, found.counts)
        for tensor, found in counts.items()
    }


def _tensors(
    simulator: Simulator, chunk: Arrays, tensors: Sequence[str]
) -> list[tuple[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    kept = simulator.run(chunk, keep=tensors) if tensors else {}
    return [
        (tensor, np.asarray(chunk[tensor] if tensor not in kept else kept[tensor], dtype=np.float32))
        for tensor in tensors
    ]


def _open_range(seen: _Range) -> tuple[float, float]:
    return (0.0, 1.0) if seen.is_constant else (seen.low, seen.high)


def _constant_histogram(seen: _Range) -> Histogram:
    """A tensor with one value (or none): all mass on it."""
    value = seen.low if np.isfinite(seen.low) else 0.0
    return Histogram(value, value, np.ones(1, dtype=np.int64))
