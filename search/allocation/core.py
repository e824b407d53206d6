"""The separable program solved: Lagrangian bound, greedy incumbent, then integer programs over what is still open.

A choice whose reduced cost exceeds incumbent − bound is in no better allocation, so it is fixed out; the small rest
(the core, Balas & Zemel 1980) goes to the solver. Every selection is re-added in plain arithmetic before it counts, and
one that is worse than the greedy incumbent never replaces it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from search.allocation.arrays import Arrays, Bools, Floats, Ints, drop_dominated
from search.allocation.bound import LARGEST_SCORE, Dual, Scaled, maximise, scale
from search.allocation.moves import greedy
from search.allocation.solver import Program, Selection, Status, run

_FIRST_CORE = 48
_EXACT_CELLS = 400
"""Below so many open choices the rest is solved at once; above, growing cores first bring the incumbent down."""

_REJECTIONS = 6
_TIGHTER = 1e-7
_AGREES = 1e-6
"""An optimum claimed by a solver counts as a bound when it is not beaten by more than this, relatively."""


@dataclass(frozen=True)
class Found:
    """Best selection in hand with its exactly re-added loss, and a lower bound in the same unit."""

    choice: Ints
    loss: float
    bound: float
    by: str


@dataclass(frozen=True)
class Clock:
    """A deadline handed down to every step that can stop early."""

    deadline: float

    @classmethod
    def of(cls, seconds: float) -> Clock:
        return cls(time.perf_counter() + seconds)

    @property
    def left_s(self) -> float:
        return self.deadline - time.perf_counter()


def relative_gap(loss: float, bound: float, smallest_loss: float) -> float:
    """(loss − bound) over the larger of |bound| and the smallest positive loss in the problem."""
    if loss <= bound:
        return 0.0
    return (loss - bound) / max(abs(bound), smallest_loss)


def smallest_positive(loss: Floats) -> float:
    real = loss[np.isfinite(loss) & (loss > 0)]
    return float(real.min()) if real.size else 1.0


def solve_separable(
    arrays: Arrays,
    *,
    solver: str,
    clock: Clock,
    gap: float,
    start: Ints | None = None,
    keep: Bools | None = None,
    multipliers: Floats | None = None,
) -> Found | None:
    """The best allocation of the separable objective, or None when it is proven that none meets the budgets.

    Stops at a proven relative `gap` or when the clock ends. `start` is a known feasible selection.
    Raises `Undecided` when the clock ends before any selection or proof.
    """
    return _Search(arrays, solver, clock, gap, start, keep, multipliers).result()


class Undecided(Exception):
    """The clock ended with neither a feasible selection nor a proof that there is none."""


class _Search:
    def __init__(
        self,
        arrays: Arrays,
        solver: str,
        clock: Clock,
        gap: float,
        start: Ints | None,
        keep: Bools | None,
        multipliers: Floats | None,
    ) -> None:
        self.arrays = drop_dominated(arrays, keep)
        self.solver, self.clock, self.gap = solver, clock, gap
        self.scaled = scale(self.arrays)
        self.smallest = smallest_positive(arrays.loss)
        self.dual: Dual = maximise(self.scaled, multipliers)
        self.bound = self.scaled.offset + self.dual.value * self.scaled.unit
        self.best: Ints | None = None
        self.loss = math.inf
        self.by = "none"
        if start is not None:
            self.offer(start, "start")

    def offer(self, choice: Ints, by: str) -> bool:
        """Take a selection that fits and is better than the one in hand."""
        loss = self.arrays.separable_loss(choice)
        if loss < self.loss and self.arrays.fits(choice):
            self.best, self.loss, self.by = choice, loss, by
            return True
        return False

    def result(self) -> Found | None:
        if self.dual.infeasible and self.best is None:
            return None
        self.offer(self.dual.choice, "lagrangian")
        mended = greedy(self.scaled, self.scaled.loss, self.dual.choice)
        if mended is not None:
            self.offer(mended, "greedy")
        core = _FIRST_CORE
        while not self._close_enough():
            open_choices = self._open()
            cells = int(open_choices[open_choices.sum(axis=1) > 1].sum())
            if cells == 0:
                self.bound = max(self.bound, self.loss)
                break
            everything = cells <= _EXACT_CELLS or core >= self.arrays.groups
            if everything:
                if self._solve_rest(open_choices):
                    return None
                break
            if self.clock.left_s <= 0:
                break
            self._solve_core(open_choices, core)
            core *= 4
        if self.best is None:
            raise Undecided
        return Found(self.best, self.loss, min(self.bound, self.loss), self.by)

    def _close_enough(self) -> bool:
        return self.best is not None and relative_gap(self.loss, self.bound, self.smallest) <= self.gap

    def _open(self) -> Bools:
        """Choices that an allocation better than the incumbent may still take (the incumbent's own included)."""
        if self.best is None:
            return self.arrays.allowed
        room = (self.loss - self.scaled.offset) / self.scaled.unit - self.dual.value
        room += 1e-9 * max(1.0, abs(self.dual.value))
        still = self.arrays.allowed & (self.dual.reduced <= room)
        still[np.arange(self.arrays.groups), self.best] = True
        return still

    def _solve_rest(self, open_choices: Bools) -> bool:
        """Solve over every open choice. True when that proves that no allocation meets the budgets."""
        base = self.dual.choice if self.best is None else self.best
        outcome = self._selection(open_choices, base, self.clock.left_s)
        if outcome.choice is not None:
            self.offer(outcome.choice, self.solver)
        if outcome.status is Status.OPTIMAL and outcome.choice is not None:
            claimed = self.arrays.separable_loss(outcome.choice)
            if relative_gap(claimed - self._allowed_gap(), self.loss, self.smallest) <= _AGREES:
                proven = self.loss - self._allowed_gap()
                self.bound = max(self.bound, proven)
        return outcome.status is Status.INFEASIBLE and self.best is None

    def _solve_core(self, open_choices: Bools, size: int) -> None:
        """Solve over the `size` groups whose second choice is nearest to free; the others keep the best in hand."""
        base = self.dual.choice if self.best is None else self.best
        ranked = np.where(open_choices, self.dual.reduced, np.inf)
        second = np.partition(ranked, 1, axis=1)[:, 1] if ranked.shape[1] > 1 else np.full(len(ranked), np.inf)
        chosen = np.argsort(second, kind="stable")[:size]
        core = np.zeros_like(open_choices)
        core[np.arange(len(base)), base] = True
        core[chosen] = open_choices[chosen]
        outcome = self._selection(core, base, min(self.clock.left_s, max(1.0, self.clock.left_s / 4)))
        if outcome.choice is not None:
            self.offer(outcome.choice, self.solver)

    def _allowed_gap(self) -> float:
        """What the solver may leave open, in units of the loss: half of what was asked for."""
        return 0.5 * self.gap * max(abs(self.bound), self.smallest)

    def _selection(self, open_choices: Bools, base: Ints, time_limit_s: float) -> Selection:
        """A selection over the open choices that fits when re-added; those that only nearly fit are cut off."""
        program, groups, unit = restrict(self.scaled, open_choices, base)
        clock = Clock.of(time_limit_s)
        allowed_gap = self._allowed_gap() / self.scaled.unit / unit
        for attempt in range(_REJECTIONS):
            outcome = run(program, solver=self.solver, time_limit_s=clock.left_s, gap_absolute=allowed_gap)
            if outcome.choice is None:
                # Tightened rows can only say that nothing fits with room to spare, which is no proof.
                tightened = attempt == _REJECTIONS - 1
                return Selection(Status.UNKNOWN) if tightened else outcome
            choice = base.copy()
            choice[groups] = outcome.choice
            if self.arrays.fits(choice):
                status = Status.FEASIBLE if attempt == _REJECTIONS - 1 else outcome.status
                return Selection(status, choice)
            program = replace(program, excluded=(*program.excluded, outcome.choice))
            if attempt == _REJECTIONS - 2:
                program = replace(program, limit=program.limit - _TIGHTER)
        return Selection(Status.UNKNOWN)


def restrict(scaled: Scaled, open_choices: Bools, base: Ints) -> tuple[Program, Ints, float]:
    """The program over groups with more than one open choice; the others keep `base`.

    Returns it with those groups and the factor from its objective to the scaled one. Rows are shifted by their least
    cost per group and divided by what is left of the limit, the objective by its largest spread.
    """
    several = open_choices.sum(axis=1) > 1
    groups = np.flatnonzero(several)
    taken = np.where(several, base, open_choices.argmax(axis=1))
    rows = np.arange(len(base))
    position = np.full(len(base), -1)
    position[groups] = np.arange(len(groups))
    cost = scaled.cost[:, groups].copy()
    fixed = scaled.cost[:, rows, taken][:, ~several]
    spent = [fixed[k].tolist() for k in range(len(fixed))]
    here = scaled.domain[rows, taken]
    kept: list[int] = []
    edges = scaled.edges
    crossed = edges.crossed(here)
    for e, (u, v) in enumerate(zip(edges.first.tolist(), edges.second.tolist(), strict=True)):
        if several[u] and several[v]:
            kept.append(e)
        elif several[u] or several[v]:
            free, other = (u, v) if several[u] else (v, u)
            inside = edges.domain[e]
            pays = (scaled.domain[free] == inside) != (here[other] == inside)
            cost[:, position[free]] += edges.cost[:, e, None] * pays[None, :]
        elif crossed[e]:
            for k in range(len(spent)):
                spent[k].append(float(edges.cost[k, e]))
    allowed = open_choices[groups]
    least = np.where(allowed, cost, np.inf).min(axis=2, initial=np.inf)
    limit = np.array(
        [math.fsum([float(scaled.limit[k]), *(-x for x in spent[k]), *(-least[k]).tolist()]) for k in range(len(spent))]
    )
    cost = np.where(allowed, cost - least[:, :, None], 0.0)
    open_edges = edges.only(np.array(kept, dtype=np.int64))
    spread = cost.max(axis=(1, 2), initial=0.0) + np.abs(open_edges.cost).sum(axis=1)
    row_unit = np.where(limit > 1e-6 * spread, limit, np.where(spread > 0, spread, 1.0))
    row_unit = np.where(np.isfinite(row_unit), row_unit, np.where(spread > 0, spread, 1.0))
    loss = np.where(allowed, scaled.loss[groups], 0.0)
    least_loss = np.where(allowed, loss, np.inf).min(axis=1, initial=np.inf)
    loss = np.where(allowed, loss - least_loss[:, None], 0.0)
    largest = float(loss.max(initial=0.0))
    unit = largest / LARGEST_SCORE if largest > 0 else 1.0
    program = Program(
        objective=loss / unit,
        allowed=allowed,
        cost=cost / row_unit[:, None, None],
        limit=limit / row_unit,
        domain=scaled.domain[groups],
        edges=replace(
            open_edges,
            first=position[open_edges.first],
            second=position[open_edges.second],
            cost=open_edges.cost / row_unit[:, None],
        ),
    )
    return program, groups, unit
