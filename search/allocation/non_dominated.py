"""Non-dominated totals of one resource and the loss, by dynamic programming: no allocation beats them in both.

The non-dominated partial sums of the first g groups contain every prefix of a Pareto allocation (Nemhauser & Ullmann
1969), so merging group by group and pruning finds them all. With boundaries, what a prefix will cost further on depends
on the domains of its open groups, those that still have a boundary ahead: sums are kept in one list per such domains,
and dominate each other within a list alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.allocation.arrays import ROUNDING, Arrays, Floats, Ints, drop_dominated
from search.allocation.core import Clock

_MOST_SUMS = 300_000
_MOST_LISTS = 256
_NOISE = 1e-13
"""Partial sums closer than this (relatively) differ by the order of addition only."""
_NOT_ASKED = -1


@dataclass(frozen=True)
class NonDominated:
    """Totals without constants by rising cost, and per group which sum each came from and with which choice."""

    cost: Floats
    loss: Floats
    steps: list[tuple[Ints, Ints]]

    def selections(self, which: Ints) -> Ints:
        """Choices (n, L) of the given totals."""
        chosen = np.empty((len(which), len(self.steps)), dtype=np.int64)
        for g in range(len(self.steps) - 1, -1, -1):
            parent, choice = self.steps[g]
            chosen[:, g] = choice[which]
            which = parent[which]
        return chosen


def non_dominated(arrays: Arrays, clock: Clock) -> NonDominated | None:
    """Every non-dominated total of the first resource within its limit; None when there are too many, or no time."""
    arrays = drop_dominated(arrays)
    boundaries = _Boundaries(arrays)
    limit = float(arrays.limit[0] + arrays.tolerance[0] + boundaries.rounding)
    behind = boundaries.least_behind()
    noise = _NOISE * float(np.abs(np.where(arrays.allowed, arrays.loss, 0.0)).max(axis=1).sum())
    lists: dict[tuple[int, ...], _Sums] = {(): _Sums(np.zeros(1), np.zeros(1), _NO_STEP, _NO_STEP)}
    open_groups: list[int] = []
    steps: list[tuple[Ints, Ints]] = []
    for g in range(arrays.groups):
        if clock.left_s <= 0:
            return None
        options = np.flatnonzero(arrays.allowed[g])
        labels = boundaries.domain[g, options]
        grown: dict[tuple[int, ...], list[_Sums]] = {}
        done = 0
        for domains, sums in lists.items():
            here = dict(zip(open_groups, domains, strict=True))
            cost = arrays.cost[0, g, options] + boundaries.paid(g, labels, here)
            parents = np.arange(done, done + len(sums.cost))
            done += len(sums.cost)
            for label in set(labels.tolist()):
                taken = labels == label
                key = tuple(inside for h, inside in {**here, g: label}.items() if boundaries.last[h] > g)
                more = sums.with_choices(parents, options[taken], cost[taken], arrays.loss[g, options[taken]])
                grown.setdefault(key, []).append(more)
        open_groups = [h for h in [*open_groups, g] if boundaries.last[h] > g]
        lists = {key: _Sums.joined(parts).pruned(limit - behind[g], noise) for key, parts in grown.items()}
        if sum(len(sums.cost) for sums in lists.values()) > _MOST_SUMS or len(lists) > _MOST_LISTS:
            return None
        whole = _Sums.joined([*lists.values()])
        steps.append((whole.parent, whole.choice))
    (last,) = lists.values()
    return NonDominated(last.cost, last.loss, steps)


class _Boundaries:
    """The boundaries of a problem, met in the order of its groups.

    `last[g]` is the last group that shares a boundary with g (or g itself). `domain` (L, B) is the domain of a choice
    where a boundary of its group asks for it, `_NOT_ASKED` for all others. `rounding` is what sums may be off.
    """

    def __init__(self, arrays: Arrays) -> None:
        self.arrays, edges = arrays, arrays.edges
        self.last = np.arange(arrays.groups)
        np.maximum.at(self.last, edges.first, edges.second)
        asked = np.zeros((arrays.groups, arrays.domains), dtype=np.bool_)
        asked[edges.first, edges.domain] = asked[edges.second, edges.domain] = True
        is_asked = asked[np.arange(arrays.groups)[:, None], arrays.domain]
        self.domain = np.where(is_asked, arrays.domain, _NOT_ASKED)
        self.rounding = ROUNDING * float(np.abs(arrays.cost[0]).sum() + np.abs(edges.cost[0]).sum())
        self._ending: list[list[int]] = [[] for _ in range(arrays.groups)]
        for e, later in enumerate(edges.second.tolist()):
            self._ending[later].append(e)

    def paid(self, group: int, domain: Ints, here: Mapping[int, int]) -> Floats:
        """What the boundaries to earlier groups, in the domains `here`, cost a group whose choices are in `domain`."""
        edges = self.arrays.edges
        total = np.zeros(len(domain))
        for e in self._ending[group]:
            inside = edges.domain[e]
            total += edges.cost[0, e] * ((domain == inside) != (here[int(edges.first[e])] == inside))
        return total

    def least_behind(self) -> Floats:
        """What the groups behind each group cost at least, (L,)."""
        least = np.where(self.arrays.allowed, self.arrays.cost[0], np.inf).min(axis=1)
        np.add.at(least, self.arrays.edges.second, np.minimum(self.arrays.edges.cost[0], 0.0))
        return np.append(np.cumsum(least[::-1])[::-1][1:], 0.0)


_NO_STEP: Ints = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True)
class _Sums:
    """Partial sums whose open groups are in the same domains: each with the one it came from and its last choice."""

    cost: Floats
    loss: Floats
    parent: Ints
    choice: Ints

    def with_choices(self, parents: Ints, options: Ints, cost: Floats, loss: Floats) -> _Sums:
        """Every sum with every option; `parents` are the numbers of the sums."""
        return _Sums(
            (self.cost[:, None] + cost[None, :]).ravel(),
            (self.loss[:, None] + loss[None, :]).ravel(),
            np.repeat(parents, len(options)),
            np.tile(options, len(parents)),
        )

    @classmethod
    def joined(cls, parts: Sequence[_Sums]) -> _Sums:
        columns = ([getattr(part, name) for part in parts] for name in ("cost", "loss", "parent", "choice"))
        return cls(*(np.concatenate(column) for column in columns))

    def pruned(self, limit: float, noise: float) -> _Sums:
        """By rising cost, without those over the limit and those that another beats."""
        order = np.lexsort((self.loss, self.cost))
        order = order[self.cost[order] <= limit]
        best_before = np.minimum.accumulate(np.concatenate(([np.inf], self.loss[order][:-1])))[: len(order)]
        order = order[self.loss[order] < best_before - np.where(np.isfinite(best_before), noise, 0.0)]
        return _Sums(self.cost[order], self.loss[order], self.parent[order], self.choice[order])
