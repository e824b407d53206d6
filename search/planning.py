"""Planning: from sensitivities and costs to the assemblies worth building for one target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kernels.hardware_profile import HardwareProfile
from kernels.precision import FP32, Precision
from search.allocation.problem import AllocationProblem, Boundary, Choice, FrontPoint, Group, Quadratic
from search.graph import Graph, OperatingShapes
from search.groups import LayerGroup
from search.latency.costs import FLOAT_DOMAIN, LatencyCosts
from search.memory import FLOAT_BYTES, MemoryStep
from search.sensitivity.estimate import Sensitivity

LATENCY, SIZE, BOPS, MEMORY = "latency_us", "size_bytes", "bops", "peak_memory_bytes"
BUDGET_RESOURCES = {"latency_ms": LATENCY, "size_bytes": SIZE, "bops": BOPS, "peak_memory_bytes": MEMORY}
US_PER_MS = 1000.0
LayerPrecision = tuple[str, str]
BELOW_BUDGET = (0.97, 0.93, 0.88)
"""Shares of the latency budget at which front points are built too: should the fit be too kind, one still meets it."""


@dataclass(frozen=True)
class TargetCosts:
    """What every (layer, precision) costs on one target, full precision included.

    `sizes` in bytes on disk; `fixed_size_bytes` is the rest of the file. `latency` is None where none is known: then
    only the other budgets can be kept.
    """

    graph: Graph
    shapes: OperatingShapes
    profile: HardwareProfile
    groups: tuple[LayerGroup, ...]
    sizes: Mapping[LayerPrecision, int]
    fixed_size_bytes: int
    latency: LatencyCosts | None
    memory: Sequence[MemoryStep] = ()

    def offered(self, group: LayerGroup) -> list[str]:
        """Precisions that every layer of the group has a candidate and, where latency is known, a price for."""
        names = [name for layer, name in self.sizes if layer == group.layers[0]]
        return [
            name
            for name in names
            if all((layer, name) in self.sizes for layer in group.layers)
            and (self.latency is None or (group.name, name) in self.latency.choices)
        ]


def build_problem(
    costs: TargetCosts, sensitivity: Sensitivity, pins: Mapping[str, str] | None = None
) -> AllocationProblem:
    """The allocation problem of one target under one metric, without budgets."""
    groups = tuple(
        Group(
            group.name,
            group.layers,
            tuple(_choice(costs, sensitivity, group, precision) for precision in costs.offered(group)),
        )
        for group in costs.groups
    )
    offered = {(group.name, choice.precision) for group in groups for choice in group.choices}
    return AllocationProblem(
        groups=groups,
        budgets={},
        constants=_constants(costs),
        boundaries=_boundaries(costs),
        pins=dict(pins or {}),
        interactions=_interactions(sensitivity, offered),
    )


def _choice(costs: TargetCosts, sensitivity: Sensitivity, group: LayerGroup, precision: str) -> Choice:
    increase = sensitivity.increases.get((group.name, precision))
    macs = sum(costs.shapes.op_shapes[layer].macs for layer in group.layers)
    spent = {
        SIZE: float(sum(costs.sizes[layer, precision] for layer in group.layers)),
        BOPS: float(macs * Precision(precision).bops_per_mac),
    }
    domain = FLOAT_DOMAIN
    if costs.latency is not None:
        spent[LATENCY] = costs.latency.choices[group.name, precision]
        domain = costs.latency.domains[group.name, precision]
    for index, step in enumerate(costs.memory):
        spent[f"{MEMORY}@{index}"] = sum(_resident_bytes(costs, step, layer, precision) for layer in group.layers)
    return Choice(precision, 0.0 if increase is None else increase.value, spent, domain)


def _resident_bytes(costs: TargetCosts, step: MemoryStep, layer: str, precision: str) -> float:
    """Weights (4-bit ones are unpacked where an 8-bit kernel runs them) and the layer's live output at one step."""
    kind = costs.graph.layer(layer).op_kind
    support = costs.profile.support.get((kind, precision))
    bits = Precision(precision).weight_bits
    if support is not None and support.via == "via_int8":
        bits = 8
    recipe = costs.profile.recipes.get((kind, precision))
    width = 1 if recipe is not None and recipe.output_quantized else FLOAT_BYTES
    return costs.graph.layer(layer).weight_count * bits / 8 + step.elements.get(layer, 0) * width


def _constants(costs: TargetCosts) -> dict[str, float]:
    """What every allocation pays: the rest of the file, the fit's constant, layers that nothing is offered for."""
    allocated = {layer for group in costs.groups for layer in group.layers}
    outside = [layer for layer in costs.graph.layers if layer.name not in allocated]
    macs = sum(costs.shapes.op_shapes[layer.name].macs for layer in outside if layer.name in costs.shapes.op_shapes)
    constants = {SIZE: float(costs.fixed_size_bytes), BOPS: float(macs * FP32.bops_per_mac)}
    if costs.latency is not None:
        constants[LATENCY] = costs.latency.constant_us
    weights = sum(layer.weight_count * FLOAT_BYTES for layer in outside)
    for index, step in enumerate(costs.memory):
        live = sum(step.elements.get(layer.name, 0) * FLOAT_BYTES for layer in outside)
        constants[f"{MEMORY}@{index}"] = float(step.fixed_bytes + weights + live)
    return constants


def _boundaries(costs: TargetCosts) -> tuple[Boundary, ...]:
    if costs.latency is None:
        return ()
    return tuple(Boundary(LATENCY, edge.first, edge.second, edge.cost_us) for edge in costs.latency.boundaries)


def _interactions(sensitivity: Sensitivity, offered: set[LayerPrecision]) -> Quadratic | None:
    pairs = sensitivity.interactions
    if pairs is None:
        return None
    kept = [index for index, key in enumerate(pairs.keys) if key in offered]
    return Quadratic(tuple(pairs.keys[i] for i in kept), pairs.shrink * pairs.matrix[kept][:, kept])


def uniform_precisions(costs: TargetCosts, pins: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Uniform assemblies by name: each precision wherever a group offers it, the nearest dearer one elsewhere."""
    every = {name for group in costs.groups for name in costs.offered(group) if name != FP32.name}
    found: dict[str, dict[str, str]] = {}
    for name in sorted(every, key=lambda name: (-Precision(name).weight_bits, name)):
        precisions: dict[str, str] = {}
        for group in costs.groups:
            pinned = next((pins[key] for key in (group.name, *group.layers) if key in pins), None)
            taken = pinned or _nearest(name, costs.offered(group))
            precisions.update(dict.fromkeys(group.layers, taken))
        found[f"uniform {name}"] = precisions
    return found


def _nearest(wanted: str, offered: Sequence[str]) -> str:
    """`wanted` itself, else the offered precision with the fewest weight bits that are not fewer than its."""
    if wanted in offered:
        return wanted
    bits = Precision(wanted).weight_bits
    dearer = [Precision(name) for name in offered if Precision(name).weight_bits >= bits]
    return min(dearer, key=lambda p: (p.weight_bits, p.is_dynamic, p.name)).name if dearer else FP32.name


def by_layer(groups: Iterable[LayerGroup], precisions: Mapping[str, str]) -> dict[str, str]:
    """Precision per layer from precision per group, full precision left out."""
    return {
        layer: precisions[group.name]
        for group in groups
        for layer in group.layers
        if precisions[group.name] != FP32.name
    }


def front_below_budget(front: Sequence[FrontPoint], limit: float | None) -> list[FrontPoint]:
    """The best front points a little below the limit; without one, three spread over the front."""
    if not front:
        return []
    if limit is None:
        picked = [front[len(front) // 4], front[len(front) // 2], front[3 * len(front) // 4]]
    else:
        picked = []
        for share in BELOW_BUDGET:
            below = [point for point in front if point.cost <= share * limit]
            if below:
                picked.append(min(below, key=lambda point: point.loss))
    return list({id(point): point for point in picked}.values())
