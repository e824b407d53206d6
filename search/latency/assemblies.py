"""Calibration assemblies: the few allocations that are built and timed end to end to fit a model's latency.

Uniform ones span the hull, mostly uniform ones hold it where the solver likes to go, seeded random ones fill it. Half
of the random ones are scattered (each group drawn by itself, many conversions) and half in runs (neighbours alike,
few), so that the price of a conversion can be told from the price of a precision.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from kernels.precision import FP32
from search.groups import LayerGroup
from search.latency.terms import LatencyTerms

LEAST, MOST = 8, 16
_RUNS_PER_COEFFICIENT = 3
_LONGEST_RUN_SHARE = 3
_MOSTLY = 0.8


@dataclass(frozen=True)
class CalibrationAssembly:
    """A named allocation; layers that are not in `precisions` stay in full precision."""

    name: str
    precisions: Mapping[str, str]


def calibration_assemblies(
    groups: Sequence[LayerGroup], terms: LatencyTerms, *, count: int | None = None, seed: int = 0
) -> list[CalibrationAssembly]:
    """Distinct allocations, the uniform ones first; fewer than `count` only where the model has no more.

    Without `count`: three per coefficient, between 8 and 16. Of precisions that run on the same kernel only the
    first is used: the others take the same time.
    """
    offers = {group.name: _one_per_kernel(group, terms) for group in groups}
    free = [group for group in groups if len(offers[group.name]) > 1]
    names = list(dict.fromkeys(name for group in free for name in offers[group.name]))
    wanted = count or min(MOST, max(LEAST, _RUNS_PER_COEFFICIENT * (len(names) + 2)))

    found: dict[frozenset[tuple[str, str]], CalibrationAssembly] = {}

    def add(name: str, choice: Mapping[str, str]) -> None:
        precisions = {
            layer: choice[group.name] for group in free for layer in group.layers if choice[group.name] != FP32.name
        }
        found.setdefault(frozenset(precisions.items()), CalibrationAssembly(name, precisions))

    for name in names:
        add(f"uniform-{name}", {g.name: name if name in offers[g.name] else FP32.name for g in free})
    generator = random.Random(seed)
    for name in names:
        add(f"mostly-{name}", _mostly(name, free, offers, generator))
    for attempt in range(20 * wanted):
        if len(found) >= wanted or not free:
            break
        draw = _scattered if attempt % 2 else _in_runs
        add(f"random-{attempt}", draw(free, offers, generator))
    return list(found.values())[:wanted]


def count_assemblies(groups: Sequence[LayerGroup], terms: LatencyTerms) -> int:
    """How many allocations there are whose times may differ."""
    return prod(len(_one_per_kernel(group, terms)) for group in groups)


def _one_per_kernel(group: LayerGroup, terms: LatencyTerms) -> list[str]:
    common = [set(terms.offered(layer)) for layer in group.layers]
    by_class: dict[str, str] = {}
    for precision in terms.offered(group.layers[0]):
        if all(precision in names for names in common):
            by_class.setdefault(terms.kernel_class[group.layers[0], precision], precision)
    return list(by_class.values())


def _mostly(
    name: str, groups: Sequence[LayerGroup], offers: Mapping[str, Sequence[str]], generator: random.Random
) -> dict[str, str]:
    """Four groups in five at one precision, the others drawn."""
    return {
        group.name: name
        if name in offers[group.name] and generator.random() < _MOSTLY
        else generator.choice(offers[group.name])
        for group in groups
    }


def _scattered(
    groups: Sequence[LayerGroup], offers: Mapping[str, Sequence[str]], generator: random.Random
) -> dict[str, str]:
    """Every group by itself; the share of full precision differs from draw to draw."""
    float_share = generator.random()
    return {
        group.name: FP32.name
        if generator.random() < float_share
        else generator.choice([name for name in offers[group.name] if name != FP32.name])
        for group in groups
    }


def _in_runs(
    groups: Sequence[LayerGroup], offers: Mapping[str, Sequence[str]], generator: random.Random
) -> dict[str, str]:
    """Neighbouring groups alike, up to a third of the model long."""
    names = list(dict.fromkeys(name for group in groups for name in offers[group.name]))
    choice: dict[str, str] = {}
    left, current = 0, ""
    for group in groups:
        if left == 0:
            left = generator.randint(1, max(1, len(groups) // _LONGEST_RUN_SHARE))
            current = generator.choice([name for name in names if name != current])
        choice[group.name] = current if current in offers[group.name] else generator.choice(offers[group.name])
        left -= 1
    return choice
