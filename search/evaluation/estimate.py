"""Estimate: a mean with the interval that says how far it can be trusted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over `samples` samples in `clusters` independent groups, with a 95 % percentile bootstrap interval."""

    value: float
    ci_low: float
    ci_high: float
    samples: int
    clusters: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate_mean(values: Floats, groups: np.ndarray[Any, Any] | None = None, seed: int = 0) -> Estimate:
    """The mean of per-sample values; samples of one group are resampled together, since they are not independent."""
    values = np.asarray(values, dtype=np.float64)
    means = _resampled_means(values[:, None], groups, seed)[:, 0]
    return _estimate(values, means, groups)


def estimate_difference(
    first: Floats, second: Floats, groups: np.ndarray[Any, Any] | None = None, seed: int = 0
) -> Estimate:
    """The mean of `first - second`, paired by sample."""
    return estimate_mean(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), groups, seed)


def _estimate(values: Floats, means: Floats, groups: np.ndarray[Any, Any] | None) -> Estimate:
    low, high = np.quantile(means, [0.025, 0.975])
    clusters = len(values) if groups is None else len(np.unique(groups))
    return Estimate(float(values.mean()), float(low), float(high), len(values), clusters)


def _resampled_means(values: Floats, groups: np.ndarray[Any, Any] | None, seed: int) -> Floats:
    """Bootstrap means, shape (RESAMPLES, columns): clusters are drawn with replacement by multinomial counts."""
    if groups is None:
        sums, counts = values, np.ones(len(values))
    else:
        _, index = np.unique(groups, return_inverse=True)
        counts = np.bincount(index).astype(np.float64)
        sums = np.stack([np.bincount(index, weights=column) for column in values.T], axis=1)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    return np.asarray((drawn @ sums) / (drawn @ counts)[:, None], dtype=np.float64)
