"""Curve: what a sum of costs amounts to, where the whole is a little more or less than its parts."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """A rising function of a sum, so that a bound on what it amounts to is a bound on the sum.

    total = summed + bend · summed² / scale for `bend` > 0, and summed = total + |bend| · total² / scale for `bend` < 0:
    two curves of opposite bends undo each other, and 0 is the sum itself. `scale` has the unit of the resource.
    """

    bend: float = 0.0
    scale: float = 1.0

    def total(self, summed: float) -> float:
        """What a sum of costs amounts to."""
        return self._up(summed) if self.bend >= 0 else self._down(summed)

    def summed(self, total: float) -> float:
        """The sum that amounts to `total`: a budget on the total as a budget on the sum."""
        return self._down(total) if self.bend >= 0 else self._up(total)

    def slope(self, total: float) -> float:
        """How fast the sum grows with the total, at a total."""
        root = 4 * abs(self.bend * total) / self.scale
        return 1 / math.sqrt(1 + root) if self.bend >= 0 else 1 + root / 2

    def _up(self, value: float) -> float:
        return value * (1 + abs(self.bend * value) / self.scale) if self.bend else value

    def _down(self, value: float) -> float:
        if not self.bend or math.isinf(value):
            return value
        # The root without cancellation: a bend may be as small as rounding.
        return 2 * value / (1 + math.sqrt(1 + 4 * abs(self.bend * value) / self.scale))


STRAIGHT = Curve()
