"""Pace: how much slower a device is now than when earlier runs were timed, for each kernel class.

On a shared machine the minutes differ, and not by one factor: when other programs take memory bandwidth, networks in
full precision have been seen to lose 19 % and 8-bit ones 7 %. So a few earlier runs, most of them of one class, are
timed again beside new ones, and what each class lost is read off them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NOISE = 0.017
"""Relative standard deviation of the ratio of two timings of one network, beside what the pace does."""
CLASS_SPREAD = 0.05
"""Relative standard deviation of a class's slowdown around that of all."""
DISTURBED = 0.2
"""A network that lost this much more or less than the median of all was disturbed in one of its timings."""

ALL = ""

Shares = Mapping[str, float]
"""Part of a network's time by kernel class; they add up to 1."""


@dataclass(frozen=True)
class Pace:
    """Slowdown by kernel class, `ALL` for classes that nothing is known of."""

    slowdowns: Mapping[str, float]

    def of(self, shares: Shares) -> float:
        """The slowdown of a network: the mean over its time."""
        return sum(part * self.slowdowns.get(name, self.slowdowns[ALL]) for name, part in shares.items())


def find_pace(networks: Sequence[tuple[Shares, float]]) -> Pace:
    """The pace that explains the slowdowns (new time over old) of whole networks; 1 throughout without any.

    Ridge regression towards the median slowdown, so that a class that no network holds has that.
    """
    if not networks:
        return Pace({ALL: 1.0})
    classes = sorted({name for shares, _ in networks for name in shares})
    centre = float(np.median([slowdown for _, slowdown in networks]))
    networks = [each for each in networks if abs(each[1] / centre - 1) <= DISTURBED]
    measured = np.array([slowdown for _, slowdown in networks])
    parts = np.array([[shares.get(name, 0.0) for name in classes] for shares, _ in networks])
    system = np.vstack([parts / NOISE, np.eye(len(classes)) / CLASS_SPREAD])
    wanted = np.concatenate([(measured - centre) / NOISE, np.zeros(len(classes))])
    found = np.linalg.lstsq(system, wanted, rcond=None)[0]
    return Pace({ALL: centre} | {name: centre + float(value) for name, value in zip(classes, found, strict=True)})
