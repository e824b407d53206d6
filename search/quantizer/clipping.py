"""Clipping rules: how far a quantizer reaches. Min-max, percentile, MSE and entropy, for weights and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.recipe import Numerics
from search.assembly import QuantizedWeight
from search.quantizer.uniform import WeightRows, encode, quantize_rows, range_parameters, weight_rows

Array = np.ndarray[Any, Any]

WEIGHT_RULES = ("min-max", "mse", "percentile-99", "percentile-99.9", "entropy")
ACTIVATION_RULES = ("min-max", "mse", "percentile-99.9", "percentile-99.99", "entropy")

# Scales tried by the MSE rule, as a share of the one that reaches the largest magnitude at the edge of the last code.
MSE_SHARES = np.linspace(0.3, 1.15, 35)
# Range ends tried by the MSE rule of activations, as a share of the observed minimum and maximum; single outliers can
# reach a hundred times further than the rest. Then each end alone, as a share of where the search stands.
_RANGE_SHARES = np.geomspace(0.01, 1.0, 48)
_END_SHARES = np.append(np.geomspace(0.6, 1.7, 16), 1.0)
_END_ROUNDS = 2
_ENTROPY_THRESHOLDS = 64


def quantize_weight(weight: Array, numerics: Numerics, channel_axis: int, rule: str) -> QuantizedWeight:
    """The weight quantized with one clipping rule per scale; raises `UnsupportedPrecision` as `weight_rows` does."""
    rows = weight_rows(weight, numerics, channel_axis)
    return quantize_rows(rows, *weight_parameters(rows, rule))


def weight_parameters(rows: WeightRows, rule: str) -> tuple[Array, Array]:
    """Scale and zero point per row by a clipping rule; raises `ValueError` for an unknown rule."""
    values, numerics = rows.values.astype(np.float64), rows.numerics
    if rule == "min-max":
        return range_parameters(values.min(1), values.max(1), numerics)
    if rule == "mse":
        return _mse_rows(values, numerics)
    if rule.startswith("percentile-"):
        share = float(rule.removeprefix("percentile-"))
        if numerics.symmetric:
            reach = np.percentile(np.abs(values), share, axis=1)
            return range_parameters(-reach, reach, numerics)
        return range_parameters(
            np.percentile(values, 100 - share, axis=1), np.percentile(values, share, axis=1), numerics
        )
    if rule == "entropy":
        ends = [_entropy_range(histogram_of(row), numerics) for row in values]
        low, high = np.array(ends).T
        if numerics.symmetric:
            low, high = np.minimum(low, -high), np.maximum(high, -low)
        return range_parameters(low, high, numerics)
    raise ValueError(f"unknown clipping rule {rule!r}; known: {', '.join(WEIGHT_RULES)}")


def _mse_rows(values: Array, numerics: Numerics) -> tuple[Array, Array]:
    low, high = np.minimum(values.min(1), 0), np.maximum(values.max(1), 0)
    best_scale, best_point = range_parameters(low, high, numerics)
    best_error = np.full(len(values), np.inf)
    for share in MSE_SHARES:
        if numerics.symmetric:
            # share 1 puts the largest magnitude on the outer edge of the lowest code's rounding interval.
            reach = np.maximum(high, -low) * share
            scale = np.asarray(reach / (0.5 - numerics.code_min), dtype=np.float32)
            scale, point = np.where(scale > 0, scale, 1).astype(np.float32), np.zeros(len(values), dtype=np.int32)
        else:
            scale, point = range_parameters(low * share, high * share, numerics)
        read_back = (encode(values, scale[:, None], point[:, None], numerics) - point[:, None]) * scale[:, None]
        error = np.square(read_back - values).sum(1)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale).astype(np.float32)
        best_point = np.where(better, point, best_point)
    return best_scale, best_point


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins between `low` and `high`; mergeable when the ends agree."""

    low: float
    high: float
    counts: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def centers(self) -> Array:
        width = (self.high - self.low) / len(self.counts)
        return self.low + width * (np.arange(len(self.counts)) + 0.5)

    def quantile(self, share: float) -> float:
        """The value below which `share` of the mass lies, interpolated within a bin."""
        mass = np.concatenate([[0], np.cumsum(self.counts)])
        edges = np.linspace(self.low, self.high, len(mass))
        return float(np.interp(share * mass[-1], mass, edges))


def histogram_of(values: Array, bins: int = 512) -> Histogram:
    """The histogram of one array over its own range; a constant array gets a range of width 1 around it."""
    low, high = float(values.min()), float(values.max())
    if not high > low:
        low, high = low - 0.5, high + 0.5
    return Histogram(low, high, np.histogram(values, bins=bins, range=(low, high))[0])


def activation_range(histogram: Histogram, numerics: Numerics, rule: str) -> tuple[float, float]:
    """The range [low, high] that a clipping rule gives a tensor with this histogram, within the observed one.

    Raises `ValueError` for an unknown rule.
    """
    if rule == "min-max":
        return histogram.low, histogram.high
    if rule.startswith("percentile-"):
        tail = 1 - float(rule.removeprefix("percentile-")) / 100
        return histogram.quantile(tail), histogram.quantile(1 - tail)
    if rule == "mse":
        return _mse_range(histogram, numerics)
    if rule == "entropy":
        return _entropy_range(histogram, numerics)
    raise ValueError(f"unknown clipping rule {rule!r}; known: {', '.join(ACTIVATION_RULES)}")


def range_error(histogram: Histogram, low: Array, high: Array, numerics: Numerics) -> Array:
    """Expected squared error of the quantizer of each range [low, high], shape (k,), from bin centres."""
    low, high = np.atleast_1d(low), np.atleast_1d(high)
    scale, point = (part[:, None] for part in range_parameters(low, high, numerics))
    centers = histogram.centers[None, :]
    read_back = (encode(centers, scale, point, numerics) - point) * scale.astype(np.float64)
    # Rounding inside one bin is invisible at its centre: add the uniform error of the steps the range allows.
    width = (histogram.high - histogram.low) / len(histogram.counts)
    inside = np.minimum(width, scale[:, 0].astype(np.float64)) ** 2 / 12
    mass = histogram.counts / max(histogram.counts.sum(), 1)
    return np.asarray(np.square(read_back - centers) @ mass + inside)


def _mse_range(histogram: Histogram, numerics: Numerics) -> tuple[float, float]:
    """Both ends by one share of what was observed, or by one magnitude; then each end alone around what was found."""
    observed = min(histogram.low, 0.0), max(histogram.high, 0.0)
    reach = max(-observed[0], observed[1]) * _RANGE_SHARES
    lows = np.concatenate([observed[0] * _RANGE_SHARES, np.maximum(-reach, observed[0])])
    highs = np.concatenate([observed[1] * _RANGE_SHARES, np.minimum(reach, observed[1])])
    low, high = _best(histogram, numerics, lows, highs)
    if numerics.symmetric or observed[0] == 0 or observed[1] == 0:
        return low, high
    for _ in range(_END_ROUNDS):
        low, high = _best(histogram, numerics, np.maximum(low * _END_SHARES, observed[0]), high)
        low, high = _best(histogram, numerics, low, np.minimum(high * _END_SHARES, observed[1]))
    return low, high


def _best(histogram: Histogram, numerics: Numerics, lows: Array | float, highs: Array | float) -> tuple[float, float]:
    lows, highs = np.broadcast_arrays(np.asarray(lows), np.asarray(highs))
    best = int(np.argmin(range_error(histogram, lows, highs, numerics)))
    return float(lows[best]), float(highs[best])


def _entropy_range(histogram: Histogram, numerics: Numerics) -> tuple[float, float]:
    """The range whose quantized distribution has the least KL divergence from the clipped one.

    Migacz, "8-bit inference with TensorRT" (GTC 2017): the mass beyond the range is added to the clipped
    distribution's last bin but not to the quantized one, so cutting too much costs.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    best = (np.inf, low, high)
    for share in np.linspace(1.0 / _ENTROPY_THRESHOLDS, 1.0, _ENTROPY_THRESHOLDS)[::-1]:
        divergence = _clipped_divergence(histogram, low * share, high * share, numerics)
        if divergence < best[0]:
            best = (divergence, low * share, high * share)
    return float(best[1]), float(best[2])


def _clipped_divergence(histogram: Histogram, low: float, high: float, numerics: Numerics) -> float:
    counts, centers = histogram.counts.astype(np.float64), histogram.centers
    inside = np.flatnonzero((centers >= low) & (centers <= high))
    if inside.size == 0:
        return float(np.inf)
    first, last = inside[0], inside[-1] + 1
    kept = counts[first:last].copy()
    reference = kept.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    scale, point = range_parameters(np.array([low]), np.array([high]), numerics)
    codes = encode(centers[first:last], scale, point, numerics) - numerics.code_min
    levels = numerics.code_max - numerics.code_min + 1
    mass = np.bincount(codes, weights=kept, minlength=levels)
    filled = np.bincount(codes, weights=(kept > 0).astype(np.float64), minlength=levels)
    quantized = np.where(kept > 0, mass[codes] / np.maximum(filled[codes], 1), 0)
    p, q = reference / reference.sum(), quantized / max(quantized.sum(), 1e-300)
    support = p > 0
    # A bin that holds only clipped mass has q = 0; one part in 1e9 keeps the divergence finite and comparable.
    return float(np.sum(p[support] * np.log(p[support] / np.maximum(q[support], 1e-9))))
