"""Descent over allocations whose choices interact: the best change of one group, or of two at once, until none helps.

Two at once covers the swaps that keep a tight budget. All changes are evaluated together from the field h = R·x:
one group moving i → j changes the objective by c_j − c_i + 2(h_j − h_i), two add 2(R_jj′ − R_ji′ − R_ij′ + R_ii′).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from search.allocation.arrays import Arrays, Floats, Ints
from search.allocation.bound import Scaled
from search.allocation.moves import move_costs, totals

_LARGEST_PAIR_TABLE = 1500
"""Moves considered in pairs, the most promising ones: the table of pairs is their square."""

_ROUNDING = 1e-13


@dataclass(frozen=True)
class Interacting:
    """Off-diagonal interactions on the layout of `Arrays`: choice (g, b) is row `index[g, b]` of `matrix`.

    Row and column −1 are zeros for choices that interact with nothing; entries within a group are zero, for its choices
    are never taken together. `diagonal` (V,) is what the given matrix held there: a hint for convexity, never a cost.
    `within` (V, V) holds its entries within groups, for the same purpose.
    """

    matrix: Floats
    index: Ints
    diagonal: Floats
    within: Floats

    def loss(self, arrays: Arrays, choice: Ints) -> float:
        """Objective of a selection: single losses and x'Rx."""
        rows = self.index[np.arange(len(choice)), choice]
        return arrays.separable_loss(choice) + float(self.matrix[np.ix_(rows, rows)].sum())


def descend(arrays: Arrays, scaled: Scaled, interaction: Interacting, start: Ints, rounds: int = 500) -> Ints:
    """A selection within the budgets that no change of one or two groups improves (or after `rounds` changes)."""
    choice = start.copy()
    groups = np.arange(arrays.groups)
    matrix, index = interaction.matrix, interaction.index
    for _ in range(rounds):
        taken = index[groups, choice]
        field = matrix[:, taken].sum(axis=1)
        loss = np.where(arrays.allowed, arrays.loss, np.inf)
        change = loss - loss[groups, choice][:, None] + 2 * (field[index] - field[taken][:, None])
        change[groups, choice] = np.inf
        spent = move_costs(scaled.cost, scaled.edges, scaled.domain, scaled.domains, choice)
        slack = scaled.limit - totals(scaled, choice) + _ROUNDING
        fits = np.all(spent <= slack[:, None, None], axis=0)
        single = np.where(fits, change, np.inf)
        least = float(single.min())
        moves = [divmod(int(single.argmin()), single.shape[1])]
        pair = _best_pair(scaled, interaction, choice, change, spent, slack)
        if pair is not None and pair[0] < least:
            least, moves = pair
        scale = float(np.abs(loss[np.isfinite(loss)]).max(initial=0.0))
        if not least < -1e-13 * max(scale, float(np.abs(matrix).max(initial=0.0))):
            break
        for group, to in moves:
            choice[group] = to
    return choice


def _best_pair(
    scaled: Scaled, interaction: Interacting, choice: Ints, change: Floats, spent: Floats, slack: Floats
) -> tuple[float, list[tuple[int, int]]] | None:
    cells = np.argwhere(np.isfinite(change))
    if len(cells) < 2:
        return None
    alone = change[cells[:, 0], cells[:, 1]]
    if len(cells) > _LARGEST_PAIR_TABLE:
        cells = cells[np.argsort(alone, kind="stable")[:_LARGEST_PAIR_TABLE]]
        alone = change[cells[:, 0], cells[:, 1]]
    group, to = cells[:, 0], cells[:, 1]
    matrix, index = interaction.matrix, interaction.index
    new, old = index[group, to], index[group, choice[group]]
    cross = matrix[np.ix_(new, new)] - matrix[np.ix_(new, old)] - matrix[np.ix_(old, new)] + matrix[np.ix_(old, old)]
    both = alone[:, None] + alone[None, :] + 2 * cross
    both[group[:, None] == group[None, :]] = np.inf
    for k in range(len(slack)):
        cost = spent[k][group, to]
        together = cost[:, None] + cost[None, :]
        _correct_neighbours(scaled, k, choice, group, to, together)
        both[together > slack[k]] = np.inf
    first, second = np.unravel_index(int(both.argmin()), both.shape)
    least = float(both[first, second])
    return None if not np.isfinite(least) else (least, [(int(group[m]), int(to[m])) for m in (first, second)])


def _correct_neighbours(scaled: Scaled, k: int, choice: Ints, group: Ints, to: Ints, together: Floats) -> None:
    """Where two moving groups share a boundary its cost is not the sum of the two single changes: mend in place."""
    edges, domain = scaled.edges, scaled.domain
    here = domain[np.arange(len(choice)), choice]
    goes = domain[group, to]
    crossed = edges.crossed(here)
    ends = zip(edges.first.tolist(), edges.second.tolist(), edges.domain.tolist(), strict=True)
    for e, (u, v, inside) in enumerate(ends):
        cost = float(edges.cost[k, e])
        mine, theirs = np.flatnonzero(group == u), np.flatnonzero(group == v)
        if cost == 0 or not mine.size or not theirs.size:
            continue
        new_u, new_v = (goes[mine] == inside)[:, None], (goes[theirs] == inside)[None, :]
        old_u, old_v = here[u] == inside, here[v] == inside
        change = (new_u != new_v) - (new_u != old_v).astype(float) - (old_u != new_v).astype(float)
        extra = cost * (change + float(crossed[e]))
        together[np.ix_(mine, theirs)] += extra
        together[np.ix_(theirs, mine)] += extra.T
