"""Guided assemblies: allocations a solver would choose, timed too, so that the fit is bent where it is used.

Random assemblies fill the space; a solver goes to its edge, where a small error of one coefficient is repeated in
every layer. What a study will lose per layer is not known while its device is measured, so losses are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kernels.precision import FP32, Precision
from search.allocation import Allocation, AllocationProblem, Boundary, Choice, Group, reachable_range, solve
from search.groups import LayerGroup
from search.latency.assemblies import CalibrationAssembly
from search.latency.costs import latency_costs
from search.latency.fit import LatencyFit

LATENCY = "latency_us"
SHARES = (0.05, 0.15, 0.35, 0.55, 0.8)
"""Parts of the way from the fastest predicted allocation to full precision."""


def guided_assemblies(groups: Sequence[LayerGroup], fit: LatencyFit, seed: int = 0) -> list[CalibrationAssembly]:
    """Optima under budgets spread over the reachable range, each for losses of its own; fewer where none is as fast."""
    found: list[CalibrationAssembly] = []
    for share in SHARES:
        problem = drawn_problem(groups, fit, random.Random(f"guided {seed} {share}"))
        fastest_us, _ = reachable_range(problem, LATENCY)
        limit_us = fastest_us + share * (fit.predict({}) - fastest_us)
        precisions = solve_within(problem, groups, limit_us)
        if precisions is not None:
            found.append(CalibrationAssembly(f"guided-{seed}-{share}", precisions))
    return found


def drawn_problem(groups: Sequence[LayerGroup], fit: LatencyFit, generator: random.Random) -> AllocationProblem:
    """Latency as fitted with drawn losses: layers differ by a factor of a hundred, each bit less costs fourfold."""
    costs = latency_costs(fit, groups)
    made = []
    for group in groups:
        weight = 10 ** generator.uniform(-2, 0)
        names = [name for owner, name in costs.choices if owner == group.name]
        choices = tuple(
            Choice(
                name,
                _drawn_loss(name, weight, generator),
                {LATENCY: costs.choices[group.name, name]},
                costs.domains[group.name, name],
            )
            for name in names
        )
        made.append(Group(group.name, group.layers, choices))
    return AllocationProblem(
        groups=tuple(made),
        budgets={},
        constants={LATENCY: costs.constant_us},
        boundaries=tuple(
            Boundary(LATENCY, edge.first, edge.second, edge.cost_us, edge.domain) for edge in costs.boundaries
        ),
        curves={LATENCY: costs.curve},
    )


def solve_within(problem: AllocationProblem, groups: Sequence[LayerGroup], limit_us: float) -> Mapping[str, str] | None:
    """Precisions per layer, full precision left out; None when nothing is that fast."""
    answer = solve(replace(problem, budgets={LATENCY: limit_us}), gap=1e-3, time_limit_s=10.0)
    if not isinstance(answer, Allocation):
        return None
    return {
        layer: answer.precisions[group.name]
        for group in groups
        for layer in group.layers
        if answer.precisions[group.name] != FP32.name
    }


def _drawn_loss(name: str, weight: float, generator: random.Random) -> float:
    if name == FP32.name:
        return 0.0
    return float(weight * 4.0 ** (8 - Precision(name).weight_bits) * generator.uniform(0.5, 2.0))
