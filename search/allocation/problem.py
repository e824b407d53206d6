"""Allocation problem and its answers, in plain numbers: nothing here knows ONNX, torch or a solver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from search.curve import Curve
from search.domain import FLOAT_DOMAIN, INT8_DOMAIN


@dataclass(frozen=True)
class Choice:
    """One precision a group may take: expected loss increase and cost per resource.

    Resources are free names; studies use `latency_us@<target>`, `size_bytes`, `bops`, `peak_memory_bytes@<step>`.
    `domain` says which arithmetic it computes in (`float`, `int8`, a kernel class); boundaries ask for it.
    """

    precision: str
    loss: float
    costs: Mapping[str, float]
    domain: str = FLOAT_DOMAIN


@dataclass(frozen=True)
class Group:
    """A unit of decision: exactly one of `choices` is taken for all `layers` together."""

    name: str
    layers: tuple[str, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Boundary:
    """An edge between two groups that costs `cost` of `resource` when just one of its ends is in `domain`.

    `second` None means the other end is fixed to domain `float` (a graph input or an op outside every group). With
    `int8` it prices a conversion; with a kernel's domain, a change into or out of that kernel.
    """

    resource: str
    first: str
    second: str | None
    cost: float
    domain: str = INT8_DOMAIN


@dataclass(frozen=True)
class Quadratic:
    """Interactions of choices: the objective gains `x' R x` off the diagonal, R = shrink * G of a sensitivity.

    `keys[i]` is (group, precision); the diagonal of R is never used, single losses stand in `Choice.loss`.
    """

    keys: tuple[tuple[str, str], ...]
    matrix: np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class AllocationProblem:
    """Minimise total loss with one choice per group under upper bounds on resources.

    `constants` are costs every allocation pays (layers outside, the latency fit's intercept). `budgets` are absolute
    upper bounds per resource. `pins` fix a group (by any of its layers' names, or its own) to a precision.
    Costs may be negative per choice (a fit may scale them), totals are what budgets bound. The total of a resource that
    has a curve is what the curve makes of the sum of its costs; every total here and in answers has been through it.
    """

    groups: tuple[Group, ...]
    budgets: Mapping[str, float]
    constants: Mapping[str, float] = field(default_factory=dict)
    boundaries: tuple[Boundary, ...] = ()
    pins: Mapping[str, str] = field(default_factory=dict)
    interactions: Quadratic | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)


@dataclass(frozen=True)
class Allocation:
    """A feasible answer. `loss` and `costs` are recomputed in plain arithmetic, never read from a solver.

    `bound` is a proven lower bound of the surrogate objective under the same budgets and `gap` is
    (loss − bound) / max(|bound|, smallest positive loss in the problem): how far the *surrogate* can still be from its
    optimum.
    """

    precisions: Mapping[str, str]
    loss: float
    costs: Mapping[str, float]
    bound: float
    gap: float
    solver: str
    seconds: float


@dataclass(frozen=True)
class Infeasible:
    """No allocation meets the budgets. A legal answer, not an error.

    `reachable` is the smallest value each budgeted resource can take alone; `nearest` meets the budgets scaled up
    together by the least factor `relaxation`; `binding` are the groups whose cheapest choice costs most of the violated
    budgets: (group, resource, that cost's share of the budget).
    """

    violated: tuple[str, ...]
    reachable: Mapping[str, float]
    relaxation: float
    nearest: Allocation | None
    binding: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class FrontPoint:
    """One Pareto point: no other allocation known has both less loss and less of `resource`.

    `exact`: its loss is proven least among allocations that cost no more; else it is within the relative `gap` of that.
    """

    resource: str
    cost: float
    loss: float
    precisions: Mapping[str, str]
    exact: bool
    gap: float = 0.0
