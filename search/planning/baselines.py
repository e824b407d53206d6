"""Baselines: the uniform assemblies every answer is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kernels.precision import FP32, Precision
from search.planning.costs import TargetCosts

LEAST_SHARE = 0.5
"""A precision makes a uniform baseline when at least this share of the weights can take it."""


def uniform_precisions(costs: TargetCosts, pins: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Uniform assemblies by name: layers that lack the precision take the nearest dearer one; pins are kept."""
    offers = {group.name: costs.offered(group) for group in costs.groups}
    weights = {group.name: sum(costs.graph.layer(name).weight_count for name in group.layers) for group in costs.groups}
    every = {name for offered in offers.values() for name in offered if name != FP32.name}
    found: dict[str, dict[str, str]] = {}
    for name in sorted(every, key=lambda name: (-Precision(name).weight_bits, name)):
        share = sum(weights[group] for group, offered in offers.items() if name in offered)
        if share < LEAST_SHARE * sum(weights.values()):
            continue
        precisions: dict[str, str] = {}
        for group in costs.groups:
            pinned = next((pins[key] for key in (group.name, *group.layers) if key in pins), None)
            precisions.update(dict.fromkeys(group.layers, pinned or _nearest(name, offers[group.name])))
        found[f"uniform {name}"] = precisions
    return found


def _nearest(wanted: str, offered: Sequence[str]) -> str:
    """`wanted` itself, else the offered precision with the fewest weight bits that are not fewer than its."""
    if wanted in offered:
        return wanted
    bits = Precision(wanted).weight_bits
    dearer = [Precision(name) for name in offered if Precision(name).weight_bits >= bits]
    return min(dearer, key=lambda p: (p.weight_bits, p.is_dynamic, p.name)).name if dearer else FP32.name
