"""Latency costs: a latency fit in the terms of an allocation problem, per group and choice, with boundary costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kernels.precision import FP32
from search.groups import LayerGroup
from search.latency.fit import LatencyFit

FLOAT_DOMAIN, INT8_DOMAIN = "float", "int8"


@dataclass(frozen=True)
class BoundaryCost:
    """Microseconds paid when the domains of two groups' choices differ; `second` None always computes in float."""

    first: str
    second: str | None
    cost_us: float


@dataclass(frozen=True)
class LatencyCosts:
    """What an allocation problem needs to bound latency: every number in microseconds.

    An allocation costs `constant_us` + its `choices` + the boundaries its `domains` make, which is
    `LatencyFit.predict`. Both mappings are keyed by (group name, precision name) and list full precision too. `caveat`
    is the fit's: a sentence for every answer that rests on estimates, empty for measured ones.
    """

    constant_us: float
    choices: Mapping[tuple[str, str], float]
    domains: Mapping[tuple[str, str], str]
    boundaries: tuple[BoundaryCost, ...]
    caveat: str = ""


def latency_costs(fit: LatencyFit, groups: Sequence[LayerGroup]) -> LatencyCosts:
    """The costs of every group's choices: precisions that all its layers with rows offer.

    Layers of the fit that are in no group stay in full precision and are part of the constant.
    """
    terms, coefficients = fit.terms, fit.coefficients
    group_of = {layer: group.name for group in groups for layer in group.layers}
    known = set(terms.layers)

    def layer_us(layer: str, precision: str) -> float:
        return coefficients.scale(terms.kernel_shape(layer, precision)) * terms.row_us[layer, precision]

    choices: dict[tuple[str, str], float] = {}
    domains: dict[tuple[str, str], str] = {}
    for group in groups:
        members = [layer for layer in group.layers if layer in known]
        offered = [set(terms.offered(layer)) for layer in members]
        for precision in terms.offered(members[0]) if members else (FP32.name,):
            if all(precision in names for names in offered):
                choices[group.name, precision] = sum(layer_us(layer, precision) for layer in members)
                reads = any((layer, precision) in terms.reading for layer in members)
                domains[group.name, precision] = INT8_DOMAIN if reads else FLOAT_DOMAIN
    return LatencyCosts(
        constant_us=coefficients.intercept_us
        + sum(layer_us(layer, FP32.name) for layer in terms.layers if layer not in group_of),
        choices=choices,
        domains=domains,
        boundaries=_boundaries(fit, group_of),
        caveat=fit.caveat,
    )


def _boundaries(fit: LatencyFit, group_of: Mapping[str, str]) -> tuple[BoundaryCost, ...]:
    elements: dict[tuple[str, str | None], float] = {}
    for edge in fit.terms.edges:
        ends = [group_of[layer] for layer in (edge.producer, edge.reader) if layer is not None and layer in group_of]
        if not ends or (len(ends) == 2 and ends[0] == ends[1]):
            continue
        key = (ends[0], ends[1] if len(ends) == 2 else None)
        elements[key] = elements.get(key, 0.0) + edge.elements
    price = fit.coefficients.us_per_element
    return tuple(BoundaryCost(*ends, price * count) for ends, count in elements.items() if price * count > 0)
