"""Planning: from sensitivities and costs to the assemblies worth building for one target."""

from __future__ import annotations

from collections.abc import Mapping

from kernels.precision import FP32, Precision
from search.allocation.limits import BOPS, LATENCY, MEMORY, SIZE
from search.allocation.problem import AllocationProblem, Boundary, Choice, Group, Quadratic
from search.domain import FLOAT_DOMAIN
from search.groups import LayerGroup
from search.planning.costs import TargetCosts
from search.planning.memory import FLOAT_BYTES, MemoryStep
from search.sensitivity.estimate import Sensitivity

LayerPrecision = tuple[str, str]


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
        curves={} if costs.latency is None else {LATENCY: costs.latency.curve},
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
    return tuple(
        Boundary(LATENCY, edge.first, edge.second, edge.cost_us, edge.domain) for edge in costs.latency.boundaries
    )


def _interactions(sensitivity: Sensitivity, offered: set[LayerPrecision]) -> Quadratic | None:
    pairs = sensitivity.interactions
    if pairs is None:
        return None
    kept = [index for index, key in enumerate(pairs.keys) if key in offered]
    return Quadratic(tuple(pairs.keys[i] for i in kept), pairs.shrink * pairs.matrix[kept][:, kept])
