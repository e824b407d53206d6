"""Sensitivity: expected loss increase per (layer group, precision), with its spread and sample count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LossIncrease:
    """Expected increase of the loss (≥ 0, larger is worse) with its standard error over `samples` samples."""

    value: float
    standard_error: float
    samples: int


@dataclass(frozen=True)
class Interactions:
    """Pairwise second-order terms: adding choices i and j costs `2 * shrink * matrix[i, j]` beyond their sum.

    `keys[i]` is the (group, precision) of row i. `matrix` is symmetric positive semidefinite, float64, in the loss's
    unit: the Gauss–Newton Gram matrix ½·E[zᵀ(diag p − ppᵀ)z′] of the logit changes z.
    """

    keys: tuple[tuple[str, str], ...]
    matrix: np.ndarray[Any, np.dtype[np.float64]]
    shrink: float


@dataclass(frozen=True)
class Sensitivity:
    """One metric's answer for every (group, precision). Full precision is 0 by definition and not listed.

    `group` is the name of a `search.groups.LayerGroup`: the layers that must share a precision, measured jointly.
    """

    metric: str
    unit: str
    increases: Mapping[tuple[str, str], LossIncrease]
    interactions: Interactions | None = None
    notes: tuple[str, ...] = field(default=())
