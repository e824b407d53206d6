"""Allocation with interactions: integer-program start, local search, and outer approximation for a proven bound.

The objective c·x + x'Rx (off the diagonal) equals lin·x + x'(R + Δ)x on one-hot x with lin = c − δ, Δ = diag(δ). With δ
just large enough that R + Δ is positive semidefinite, t ≥ 2(R + Δ)x_k·x − x_k'(R + Δ)x_k holds for every x (Kelley
1960; Duran & Grossmann 1986): min lin·x + t over such cuts bounds the objective from below. The single losses stay
linear; drawn into the cuts they loosen the bound by a fifth (measured).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from search.allocation.arrays import Arrays, Bools, Floats, Ints
from search.allocation.bound import LARGEST_SCORE, Scaled, scale
from search.allocation.core import Clock, Found, relative_gap, smallest_positive, solve_separable
from search.allocation.local_search import Interacting, descend
from search.allocation.moves import greedy
from search.allocation.problem import AllocationProblem
from search.allocation.solver import Program, Status, run

_STARTS = 6
_RELAXED_ROUNDS = 80
_STALLED_ROUNDS = 8
_AGREES = 1e-7


def interaction_of(problem: AllocationProblem, arrays: Arrays) -> Interacting | None:
    """The problem's interactions on its layout, or None where nothing interacts."""
    given = problem.interactions
    if given is None:
        return None
    position = {name: g for g, name in enumerate(arrays.names)}
    group = np.array([position[name] for name, _ in given.keys], dtype=np.int64)
    count = len(given.keys)
    whole = np.asarray(given.matrix, dtype=np.float64)
    whole = (whole + whole.T) / 2
    same = group[:, None] == group[None, :]
    between = np.where(same, 0.0, whole)
    if not np.any(between):
        return None
    matrix = np.zeros((count + 1, count + 1))
    matrix[:count, :count] = between
    index = np.full(arrays.loss.shape, count, dtype=np.int64)
    for row, (name, precision) in enumerate(given.keys):
        g = position[name]
        index[g, arrays.precisions[g].index(precision)] = row
    within = np.where(same, whole, 0.0)
    diagonal = np.diagonal(within).copy()
    np.fill_diagonal(within, 0.0)
    return Interacting(matrix, index, diagonal, within)


def solve_interacting(
    arrays: Arrays, interaction: Interacting, *, solver: str, clock: Clock, gap: float, start: Ints | None = None
) -> Found | None:
    """The best allocation found with its bound, or None when it is proven that none meets the budgets."""
    touched: Bools = interaction.index < len(interaction.matrix) - 1
    quick = Clock.of(min(clock.left_s / 4, 10.0))
    first = solve_separable(arrays, solver=solver, clock=quick, gap=max(gap, 1e-4), start=start, keep=touched)
    if first is None:
        return None
    scaled = scale(arrays)
    best, by = _best_descent(arrays, scaled, interaction, [first.choice] + ([] if start is None else [start]), clock)
    loss = interaction.loss(arrays, best)
    hull = _Outer(arrays, scaled, interaction, solver)
    smallest = smallest_positive(arrays.loss)
    hull.add_cut(hull.one_hot(best))
    bound = -math.inf
    stalled = 0
    for relaxed in [True] * _RELAXED_ROUNDS + [False] * 10_000:
        if relative_gap(loss, bound, smallest) <= max(gap, _AGREES) or clock.left_s <= 0:
            break
        if relaxed and stalled >= _STALLED_ROUNDS:
            continue
        status, point, value = hull.step(relaxed, clock.left_s)
        if point is None:
            break
        if status is Status.OPTIMAL:
            rise = value - bound
            stalled = stalled + 1 if rise <= 0.02 * abs(loss - value) else 0
            bound = max(bound, value)
        if relaxed:
            hull.add_cut(point)
            continue
        found = point.argmax(axis=1)
        improved = descend(arrays, scaled, interaction, found) if arrays.fits(found) else found
        if arrays.fits(improved) and interaction.loss(arrays, improved) < loss:
            best, loss, by = improved, interaction.loss(arrays, improved), "outer"
        if status is not Status.OPTIMAL:
            break
        if value >= hull.value(point) - _AGREES * max(abs(value), smallest) and arrays.fits(found):
            break  # the cuts are tight at the integer optimum: its value is the minimum
        hull.add_cut(point)
    if relative_gap(loss, bound, smallest) <= _AGREES:
        bound = loss
    return Found(best, loss, min(bound, loss), by)


def _best_descent(
    arrays: Arrays, scaled: Scaled, interaction: Interacting, starts: list[Ints], clock: Clock
) -> tuple[Ints, str]:
    """The best local optimum from the given starts and from greedy ones under randomly scaled losses (seed 0)."""
    generator = np.random.default_rng(0)
    best = descend(arrays, scaled, interaction, starts[0])
    for attempt in range(1, _STARTS + len(starts) - 1):
        if clock.left_s <= 0:
            break
        if attempt < len(starts):
            begin: Ints | None = starts[attempt]
        else:
            price = scaled.loss * np.exp(generator.normal(0.0, 1.0, scaled.loss.shape))
            begin = greedy(scaled, np.where(scaled.allowed, price, 0.0), best)
            kicked = best.copy()
            for g in generator.choice(arrays.groups, size=min(4, arrays.groups), replace=False):
                kicked[g] = generator.choice(np.flatnonzero(arrays.allowed[g]))
            begin = greedy(scaled, np.where(scaled.allowed, price, 0.0), kicked)
        if begin is None or not arrays.fits(begin):
            continue
        candidate = descend(arrays, scaled, interaction, begin)
        if arrays.fits(candidate) and interaction.loss(arrays, candidate) < interaction.loss(arrays, best):
            best = candidate
    return best, "local"


@dataclass
class _Step:
    status: Status
    point: Floats | None
    value: float


class _Outer:
    """min lin·x + t under the cuts gathered so far, in solver units; values are given back in units of the loss."""

    def __init__(self, arrays: Arrays, scaled: Scaled, interaction: Interacting, solver: str) -> None:
        self.arrays, self.solver = arrays, solver
        self.index = interaction.index
        self.quadratic, delta = _convex(interaction)
        loss = np.where(arrays.allowed, arrays.loss - delta[self.index], np.inf)
        self.linear = np.where(arrays.allowed, loss, 0.0)
        self.least = loss.min(axis=1)
        objective = np.where(arrays.allowed, loss - self.least[:, None], 0.0)
        largest = max(float(objective.max()), float(np.abs(self.quadratic).max()))
        self.unit = largest / LARGEST_SCORE if largest > 0 else 1.0
        self.program = Program(
            objective=objective / self.unit,
            allowed=arrays.allowed,
            cost=scaled.cost,
            limit=scaled.limit,
            domain=scaled.domain,
            edges=scaled.edges,
            weight=1.0,
        )
        self.cuts: list[tuple[Floats, float]] = []

    def one_hot(self, choice: Ints) -> Floats:
        point = np.zeros(self.arrays.loss.shape)
        point[np.arange(len(choice)), choice] = 1.0
        return point

    def _gathered(self, point: Floats) -> Floats:
        """x per row of the quadratic form."""
        x = np.zeros(len(self.quadratic))
        np.add.at(x, self.index.ravel(), point.ravel())
        return x

    def add_cut(self, point: Floats) -> None:
        x = self._gathered(point)
        slope = self.quadratic @ x
        self.cuts.append((2 * slope[self.index], float(x @ slope)))

    def value(self, point: Floats) -> float:
        """The convex objective at a point of the relaxation; on one-hot points the true one."""
        x = self._gathered(point)
        return float((self.linear * point).sum() + x @ self.quadratic @ x)

    def step(self, relaxed: bool, time_limit_s: float) -> tuple[Status, Floats | None, float]:
        """Minimise over the cuts: (status, point, lower bound of the objective when the status is OPTIMAL)."""
        scaled_cuts = tuple((coefficients / self.unit, constant / self.unit) for coefficients, constant in self.cuts)
        program = Program(**{**vars(self.program), "cuts": scaled_cuts})
        answer = run(program, solver=self.solver, time_limit_s=time_limit_s, relaxed=relaxed)
        point = answer.weights
        if answer.choice is not None:
            point = self.one_hot(answer.choice)
        if point is None:
            return answer.status, None, -math.inf
        envelope = max(0.0, *(float((c * point).sum()) - constant for c, constant in self.cuts))
        return answer.status, point, float((self.linear * point).sum()) + envelope


def _convex(interaction: Interacting) -> tuple[Floats, Floats]:
    """(positive semidefinite matrix, δ): the interactions with the least multiple of their diagonal that makes them so.

    Entries within a group cost nothing on one-hot points, so they are kept or dropped, whichever needs less.
    """
    count = len(interaction.matrix) - 1
    between = interaction.matrix[:count, :count]
    weight = np.abs(between).sum(axis=1)
    diagonal = np.where(interaction.diagonal > 1e-9 * weight, interaction.diagonal, weight)
    diagonal = np.where(diagonal > 0, diagonal, max(float(diagonal.max(initial=0.0)), 1.0) * 1e-9)
    root = 1.0 / np.sqrt(diagonal)
    options: list[tuple[float, Floats]] = []
    for candidate in (between, between + interaction.within):
        lowest = float(np.linalg.eigvalsh(candidate * root[:, None] * root[None, :])[0])
        options.append((max(0.0, -lowest) * (1 + 1e-9) + 1e-12, candidate))
    factor, matrix = min(options, key=lambda option: option[0])
    convex = np.zeros_like(interaction.matrix)
    convex[:count, :count] = matrix + np.diag(factor * diagonal)
    return convex, np.append(factor * diagonal, 0.0)
