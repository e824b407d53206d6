"""One-group moves over an allocation: what each would cost, and the greedy repair and fill built on them."""

from __future__ import annotations

import numpy as np

from search.allocation.arrays import Edges, Floats, Ints
from search.allocation.bound import Scaled

_SLACK = 1e-13
"""Rounding allowed in running sums of rows that were divided by their limit; totals are re-added before they count."""

_FILL_STEPS = 300


def move_costs(cost: Floats, edges: Edges, domain: Ints, domains: int, choice: Ints) -> Floats:
    """Change of every resource, (K, L, B), when one group alone moves to choice b; boundaries included."""
    rows = np.arange(len(choice))
    change = cost - cost[:, rows, choice][:, :, None]
    if len(edges) == 0:
        return change
    here = domain[rows, choice]
    shift = np.zeros((len(choice), len(cost), domains))
    now = edges.crossed(here).astype(np.float64)
    inside = np.arange(domains)[None, :] == edges.domain[:, None]
    for near, far in ((edges.first, edges.second), (edges.second, edges.first)):
        then = (inside != (here[far] == edges.domain)[:, None]).astype(np.float64)
        np.add.at(shift, near, edges.cost.T[:, :, None] * (then - now[:, None])[:, None, :])
    index = np.broadcast_to(domain[:, None, :], (len(choice), len(cost), domain.shape[1]))
    return change + np.take_along_axis(shift, index, axis=2).transpose(1, 0, 2)


def totals(scaled: Scaled, choice: Ints) -> Floats:
    """Resources used, (K,), in scaled rows and float64 sums (for steering; results are re-added exactly)."""
    rows = np.arange(len(choice))
    crossed = scaled.edges.crossed(scaled.domain[rows, choice])
    used: Floats = scaled.cost[:, rows, choice].sum(axis=1) + scaled.edges.cost[:, crossed].sum(axis=1)
    return used


def greedy(scaled: Scaled, price: Floats, start: Ints) -> Ints | None:
    """From `start`: the moves that mend the budgets at the least `price` (L, B), then those that gain most loss.

    None when no single move reduces the excess any further.
    """
    choice = start.copy()
    rows = np.arange(len(choice))
    for _ in range(4 * len(choice)):
        excess = totals(scaled, choice) - scaled.limit
        if np.all(excess <= _SLACK):
            return _fill(scaled, choice)
        change = move_costs(scaled.cost, scaled.edges, scaled.domain, scaled.domains, choice)
        over = np.maximum(excess, 0.0)[:, None, None]
        mended = (over - np.maximum(excess[:, None, None] + change, 0.0)).sum(axis=0)
        useful = scaled.allowed & (mended > _SLACK)
        if not useful.any():
            return None
        worse = np.maximum(price - price[rows, choice][:, None], 0.0)
        rate = np.where(useful, (worse + 1e-12) / np.where(useful, mended, 1.0), np.inf)
        group, taken = np.unravel_index(int(rate.argmin()), rate.shape)
        choice[group] = taken
    return None


def _fill(scaled: Scaled, choice: Ints) -> Ints:
    rows = np.arange(len(choice))
    for _ in range(_FILL_STEPS):
        slack = scaled.limit - totals(scaled, choice)
        change = move_costs(scaled.cost, scaled.edges, scaled.domain, scaled.domains, choice)
        gain = scaled.loss - scaled.loss[rows, choice][:, None]
        possible = scaled.allowed & (gain < 0) & np.all(change <= slack[:, None, None] + _SLACK, axis=0)
        if not possible.any():
            break
        group, taken = np.unravel_index(int(np.where(possible, gain, np.inf).argmin()), gain.shape)
        choice[group] = taken
    return choice
