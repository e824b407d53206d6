"""Lagrangian bound of the separable program: what no allocation under the same budgets can beat.

Budgets move into the objective with multipliers λ ≥ 0. A boundary cost c_e·|i_u − i_v|, where i is 1 for an end in the
edge's domain and 0 for any other, is replaced by the transfer c_e·ω_e·(i_u − i_v) with |ω_e| ≤ 1, which never exceeds
it. Then

    L(λ, ω) = Σ_g min_b [c_gb + Σ_k λ_k (r_kgb ± Σ_e c_ke ω_e i_gb)] − Σ_k λ_k R_k  ≤  every feasible objective,

for any such λ and ω, so the bound is proven by evaluating it, however roughly it was maximised. For fixed ω it is
maximised over λ by tangents (exact for one budget: the lower convex hull), for fixed λ over ω edge by edge in closed
form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from search.allocation.arrays import Arrays, Bools, Edges, Floats, Ints

LARGEST_SCORE = 1e4
"""Largest objective coefficient after scaling: solver tolerances are absolute and sized for about this."""

_TANGENTS = 80
_ROUNDS = 12
_SWEEPS = 12
_SETTLED = 1e-8
_UNBOUNDED = 1e15


@dataclass(frozen=True)
class Scaled:
    """The program in solver units: per-group minima taken off the loss, its largest entry 1e4, rows over their limit.

    A loss in problem units is `offset + objective · unit`. `loss` holds inf where a choice is not allowed.
    """

    loss: Floats
    allowed: Bools
    cost: Floats
    limit: Floats
    row_unit: Floats
    edges: Edges
    domain: Ints
    domains: int
    offset: float
    unit: float


@dataclass(frozen=True)
class Dual:
    """A point of the dual: its value bounds every feasible scaled objective from below.

    `reduced` (L, B) ≥ 0 is what the bound rises by when that choice is forced; `choice` takes the zeros.
    `infeasible`: the bound exceeds the dearest allocation, so nothing meets the budgets.
    """

    multipliers: Floats
    transfers: Floats
    value: float
    reduced: Floats
    choice: Ints
    infeasible: bool = False


def scale(arrays: Arrays) -> Scaled:
    """The rules that keep solver tolerances harmless; exact under powers of two of the loss."""
    loss = np.where(arrays.allowed, arrays.loss, np.inf)
    least = loss.min(axis=1)
    above = loss - least[:, None]
    largest = float(np.max(above[arrays.allowed], initial=0.0))
    unit = largest / LARGEST_SCORE if largest > 0 else 1.0
    row_unit = np.empty(len(arrays.limit))
    for k, limit in enumerate(arrays.limit):
        spread = float(np.abs(arrays.cost[k]).sum())
        usable = np.isfinite(limit) and abs(limit) > 1e-9 * spread
        row_unit[k] = abs(limit) if usable else (spread or 1.0)
    return Scaled(
        loss=above / unit,
        allowed=arrays.allowed,
        cost=arrays.cost / row_unit[:, None, None],
        limit=(arrays.limit + arrays.tolerance) / row_unit,  # what `fits` accepts, so that the bound holds for it
        row_unit=row_unit,
        edges=arrays.edges.costing(arrays.edges.cost / row_unit[:, None]),
        domain=arrays.domain,
        domains=arrays.domains,
        offset=float(np.sum(least)),
        unit=unit,
    )


def maximise(scaled: Scaled, start: Floats | None = None) -> Dual:
    """The best dual point found; exact without boundaries for one budget, to 1e-8 for several."""
    rows = len(scaled.limit)
    positive = np.maximum(scaled.edges.cost, 0.0)
    limit = scaled.limit - np.minimum(scaled.edges.cost, 0.0).sum(axis=1)  # an edge that pays is assumed to pay always
    transfers = np.zeros(len(scaled.edges))
    multipliers = np.zeros(rows) if start is None else start.copy()
    ceiling = float(np.where(scaled.allowed, scaled.loss, -np.inf).max(axis=1).sum())
    search = _Multipliers(scaled.loss, limit, ceiling)
    cost = scaled.cost
    multipliers, value, unbounded = search.best(cost, multipliers)
    if rows and np.any(positive > 0) and not unbounded:
        colours = _colour(scaled.edges)
        for _ in range(_ROUNDS):
            before = value
            transfers = _move_transfers(scaled, positive, multipliers, transfers, colours)
            cost = _shifted(scaled, positive, transfers)
            multipliers, value, unbounded = search.best(cost, multipliers)
            if unbounded or value - before <= _SETTLED * max(abs(value), 1.0):
                break
    theta = scaled.loss + np.tensordot(multipliers, cost, axes=1)
    choice = theta.argmin(axis=1)
    least = theta[np.arange(len(theta)), choice]
    value = float(least.sum() - multipliers @ limit)
    return Dual(multipliers, transfers, value, theta - least[:, None], choice, unbounded or _exceeds(value, ceiling))


def _exceeds(value: float, ceiling: float) -> bool:
    return value > ceiling + 1e-6 * max(ceiling, 1.0)


class _Multipliers:
    """Maximises Σ_g min_b (loss + λ·cost) − λ·limit over λ ≥ 0 for given costs."""

    def __init__(self, loss: Floats, limit: Floats, ceiling: float) -> None:
        self.loss, self.limit, self.ceiling = loss, limit, ceiling
        self.rows = np.arange(len(loss))

    def tangent(self, cost: Floats, multipliers: Floats) -> tuple[float, Floats]:
        """Value and a supergradient."""
        theta = self.loss + np.tensordot(multipliers, cost, axes=1)
        choice = theta.argmin(axis=1)
        slope = cost[:, self.rows, choice].sum(axis=1) - self.limit
        return float(theta[self.rows, choice].sum() - multipliers @ self.limit), slope

    def best(self, cost: Floats, start: Floats) -> tuple[Floats, float, bool]:
        """(multipliers, value, whether the dual is unbounded: no selection meets the budgets)."""
        value, slope = self.tangent(cost, start)
        cuts = [(value - float(slope @ start), slope)]
        multipliers = start
        if len(self.limit) == 0:
            return multipliers, value, False
        for _ in range(1 if len(self.limit) == 1 else 2):
            for k in range(len(self.limit)):
                multipliers, value, unbounded = self._along(cost, multipliers, k, cuts)
                if unbounded:
                    return multipliers, value, True
        if len(self.limit) > 1:
            multipliers, value = self._tangent_planes(cost, multipliers, value, cuts)
        return multipliers, value, _exceeds(value, self.ceiling)

    def _along(
        self, cost: Floats, base: Floats, k: int, cuts: list[tuple[float, Floats]]
    ) -> tuple[Floats, float, bool]:
        """Exact maximum along one coordinate: intersect the tangents left and right of it until they meet."""

        def at(position: float) -> tuple[float, float]:
            point = base.copy()
            point[k] = position
            value, slope = self.tangent(cost, point)
            cuts.append((value - float(slope @ point), slope))
            return value, float(slope[k])

        def done(position: float, value: float, unbounded: bool = False) -> tuple[Floats, float, bool]:
            point = base.copy()
            point[k] = position
            return point, value, unbounded

        left, right = 0.0, max(float(base[k]), 1.0)
        left_value, left_slope = at(left)
        if left_slope <= 0:
            return done(left, left_value)
        right_value, right_slope = at(right)
        while right_slope > 0:
            left, left_value, left_slope = right, right_value, right_slope
            if right > _UNBOUNDED or _exceeds(right_value, self.ceiling):
                return done(right, right_value, True)
            right *= 8.0
            right_value, right_slope = at(right)
        best = (left, left_value) if left_value >= right_value else (right, right_value)
        for _ in range(_TANGENTS):
            crossing = (right_value - left_value + left_slope * left - right_slope * right) / (left_slope - right_slope)
            if not left < crossing < right:
                break
            value, slope = at(crossing)
            if value > best[1]:
                best = (crossing, value)
            if slope > 0:
                left, left_value, left_slope = crossing, value, slope
            else:
                right, right_value, right_slope = crossing, value, slope
            if slope == 0 or min(left_slope, -right_slope) == 0:
                break
        return done(*best)

    def _tangent_planes(
        self, cost: Floats, multipliers: Floats, value: float, cuts: list[tuple[float, Floats]]
    ) -> tuple[Floats, float]:
        """Kelley's method on the planes gathered so far, inside a box around the best point that follows it."""
        best, best_value = multipliers, value
        radius = np.maximum(best, best.max(initial=0.0) * 0.1 + 1e-9)
        for _ in range(_TANGENTS):
            low, high = np.maximum(best - radius, 0.0), best + radius
            candidate, promised = _highest(cuts, low, high)
            if promised - best_value <= _SETTLED * max(abs(best_value), 1.0):
                if not np.any((candidate >= high) | ((candidate <= low) & (low > 0))):
                    break
                radius *= 4.0
                if np.all(radius > _UNBOUNDED):
                    break
                continue
            value, slope = self.tangent(cost, candidate)
            cuts.append((value - float(slope @ candidate), slope))
            if value > best_value:
                if value - best_value > 0.5 * (promised - best_value):
                    radius *= 2.0
                best, best_value = candidate, value
            else:
                radius *= 0.5
            if _exceeds(best_value, self.ceiling):
                break
        return best, best_value


def _highest(cuts: Sequence[tuple[float, Floats]], low: Floats, high: Floats) -> tuple[Floats, float]:
    """Where the lower envelope of the planes is highest inside the box, and how high."""
    slopes = np.array([slope for _, slope in cuts])
    heights = np.array([height for height, _ in cuts])
    unit = np.maximum(high, 1e-12)
    scale = max(float(np.abs(heights).max()), 1.0)
    left = np.hstack([-slopes * unit / scale, np.ones((len(cuts), 1))])
    bounds = [*zip(low / unit, high / unit, strict=True), (None, None)]
    answer = linprog(np.r_[np.zeros(len(low)), -1.0], A_ub=left, b_ub=heights / scale, bounds=bounds, method="highs")
    if answer.x is None:
        middle = (low + high) / 2
        return middle, float((heights + slopes @ middle).min())
    point = np.clip(answer.x[:-1] * unit, low, high)
    return point, float((heights + slopes @ point).min())


def _colour(edges: Edges) -> list[Ints]:
    """Edges split into classes in which no group stands twice, so that a class moves at once."""
    used: list[set[int]] = []
    classes: list[list[int]] = []
    for e, (u, v) in enumerate(zip(edges.first.tolist(), edges.second.tolist(), strict=True)):
        colour = next((c for c, taken in enumerate(used) if u not in taken and v not in taken), len(used))
        if colour == len(used):
            used.append(set())
            classes.append([])
        used[colour].update((u, v))
        classes[colour].append(e)
    return [np.array(members, dtype=np.int64) for members in classes]


def _move_transfers(
    scaled: Scaled, positive: Floats, multipliers: Floats, transfers: Floats, colours: Sequence[Ints]
) -> Floats:
    """Coordinate ascent over ω for fixed λ: each edge's best transfer in closed form, a colour class at a time."""
    theta = scaled.loss + np.tensordot(multipliers, scaled.cost, axes=1)
    least = np.stack([np.where(scaled.domain == d, theta, np.inf).min(axis=1) for d in range(scaled.domains)], axis=1)
    worth = multipliers @ positive
    moved = transfers * worth
    np.add.at(least, (scaled.edges.first, scaled.edges.domain), moved)
    np.subtract.at(least, (scaled.edges.second, scaled.edges.domain), moved)
    parts = [(e, scaled.edges.first[e], scaled.edges.second[e], scaled.edges.domain[e], worth[e]) for e in colours]
    for _ in range(_SWEEPS):
        for e, u, v, inside, most in parts:
            own = moved[e]
            with np.errstate(invalid="ignore"):
                rise = _outside(least, u, inside) - (least[u, inside] - own)
                fall = (least[v, inside] + own) - _outside(least, v, inside)
                target = np.clip(np.nan_to_num((rise + fall) / 2, nan=0.0), -most, most)
            least[u, inside] += target - own
            least[v, inside] -= target - own
            moved[e] = target
    return np.where(worth > 0, moved / np.where(worth > 0, worth, 1.0), 0.0)


def _outside(least: Floats, group: Ints, inside: Ints) -> Floats:
    """The least of each group's domains other than `inside`."""
    others = least[group]
    others[np.arange(len(group)), inside] = np.inf
    found: Floats = others.min(axis=1)
    return found


def _shifted(scaled: Scaled, positive: Floats, transfers: Floats) -> Floats:
    """Costs (K, L, B) with every edge's transfers added to its ends."""
    rows, groups = scaled.cost.shape[:2]
    shift = np.zeros((groups, scaled.domains, rows))
    amount = (positive * transfers).T
    np.add.at(shift, (scaled.edges.first, scaled.edges.domain), amount)
    np.subtract.at(shift, (scaled.edges.second, scaled.edges.domain), amount)
    moved: Floats = scaled.cost + shift[np.arange(groups)[:, None], scaled.domain].transpose(2, 0, 1)
    return moved
