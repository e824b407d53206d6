"""Latency costs: a latency fit in the terms of an allocation problem, per group and choice, with boundary costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kernels.precision import FP32
from search.curve import STRAIGHT, Curve
from search.domain import FLOAT_DOMAIN, INT8_DOMAIN
from search.groups import LayerGroup
from search.latency.fit import LatencyFit


@dataclass(frozen=True)
class BoundaryCost:
    """Microseconds paid when just one of two groups' choices is in `domain`; `second` None always computes in float."""

    first: str
    second: str | None
    domain: str
    cost_us: float


@dataclass(frozen=True)
class LatencyCosts:
    """What an allocation problem needs to bound latency: every number in microseconds.

    An allocation costs what `curve` makes of `constant_us` + its `choices` + the boundaries its `domains` make; that is
    `LatencyFit.predict`. Both mappings are keyed by (group name, precision name) and list full precision too. `caveat`
    is the fit's: a sentence for every answer that rests on estimates, empty for measured ones.
    """

    constant_us: float
    choices: Mapping[tuple[str, str], float]
    domains: Mapping[tuple[str, str], str]
    boundaries: tuple[BoundaryCost, ...]
    curve: Curve = STRAIGHT
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
                found = [terms.domain(layer, precision) for layer in members]
                domains[group.name, precision] = INT8_DOMAIN if INT8_DOMAIN in found else (found or [FLOAT_DOMAIN])[0]
    return LatencyCosts(
        constant_us=coefficients.intercept_us
        + sum(layer_us(layer, FP32.name) for layer in terms.layers if layer not in group_of),
        choices=choices,
        domains=domains,
        boundaries=_boundaries(fit, group_of),
        curve=coefficients.curve,
        caveat=fit.caveat,
    )


def _boundaries(fit: LatencyFit, group_of: Mapping[str, str]) -> tuple[BoundaryCost, ...]:
    prices: dict[tuple[str, str | None, str], float] = {}

    def add(ends: Iterable[str | None], domain: str, cost_us: float) -> None:
        inside = [group_of[layer] for layer in ends if layer is not None and layer in group_of]
        if cost_us > 0 and inside and not (len(inside) == 2 and inside[0] == inside[1]):
            key = (inside[0], inside[1] if len(inside) == 2 else None, domain)
            prices[key] = prices.get(key, 0.0) + cost_us

    for edge in fit.terms.edges:
        add((edge.producer, edge.reader), INT8_DOMAIN, fit.coefficients.us_per_element * edge.elements)
        if edge.source is not None:
            add((edge.source, edge.reader), INT8_DOMAIN, fit.coefficients.us_per_unfused_element * edge.elements)
    # Between the float ops that begin and end a model every switch into a domain is followed by one out of it.
    in_order = [None, *fit.terms.layers, None]
    for domain, price_us in fit.coefficients.us_per_switch.items():
        for pair in pairwise(in_order):
            add(pair, domain, price_us / 2)
    return tuple(BoundaryCost(*ends, cost_us) for ends, cost_us in prices.items())
