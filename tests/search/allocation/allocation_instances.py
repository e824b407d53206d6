"""Random allocation problems and the brute force they are checked against."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from search.allocation import AllocationProblem, Boundary, Choice, Group, Quadratic
from search.curve import Curve

PRECISIONS = ("fp32", "w8a8", "w4a8", "w4a16", "w2a16")
DOMAINS = {"fp32": "float", "w8a8": "int8", "w4a8": "int8", "w4a16": "float", "w2a16": "half"}
ASKED = ("int8", "int8", "half", "float", "nowhere")
"""What boundaries ask for: every domain, and one that no choice is in."""


@dataclass(frozen=True)
class Every:
    """All allocations of a small problem that keep its pins: selections (n, L), losses (n,) and totals per resource."""

    selections: np.ndarray
    losses: np.ndarray
    totals: dict[str, np.ndarray]

    def fitting(self, budgets: dict[str, float]) -> np.ndarray:
        fits = np.ones(len(self.losses), dtype=bool)
        for resource, budget in budgets.items():
            fits &= self.totals[resource] <= budget * (1 + 1e-12)
        return fits


def enumerate_all(problem: AllocationProblem) -> Every:
    """Brute force, written from the problem's own words and nothing of the package's arrays."""
    owner = {layer: group.name for group in problem.groups for layer in group.layers} | {
        group.name: group.name for group in problem.groups
    }
    pins = {owner[name]: precision for name, precision in problem.pins.items()}
    options = [
        [b for b, choice in enumerate(group.choices) if pins.get(group.name, choice.precision) == choice.precision]
        for group in problem.groups
    ]
    selections = np.array(list(itertools.product(*options)))
    count = len(problem.groups)
    rows = np.arange(len(selections))
    losses = np.zeros(len(selections))
    position = {group.name: g for g, group in enumerate(problem.groups)}
    names = set(problem.budgets) | set(problem.constants) | {b.resource for b in problem.boundaries}
    names |= {resource for group in problem.groups for choice in group.choices for resource in choice.costs}
    totals = {name: np.full(len(selections), problem.constants.get(name, 0.0)) for name in names}
    domains = np.empty((len(selections), count), dtype=object)
    taken = np.empty((len(selections), count), dtype=object)
    for g, group in enumerate(problem.groups):
        column = selections[:, g]
        losses += np.array([choice.loss for choice in group.choices])[column]
        domains[:, g] = np.array([choice.domain for choice in group.choices], dtype=object)[column]
        taken[:, g] = np.array([choice.precision for choice in group.choices], dtype=object)[column]
        for name in names:
            totals[name] += np.array([choice.costs.get(name, 0.0) for choice in group.choices])[column]
    for boundary in problem.boundaries:
        other = "float" if boundary.second is None else domains[:, position[boundary.second]]
        inside = domains[:, position[boundary.first]] == boundary.domain
        totals[boundary.resource] += boundary.cost * (inside != (other == boundary.domain))
    for name, curve in problem.curves.items():
        totals[name] = _curved(totals[name], curve.bend, curve.scale)
    if problem.interactions is not None:
        keys, matrix = problem.interactions.keys, problem.interactions.matrix
        present = np.stack([taken[:, position[name]] == precision for name, precision in keys], axis=1).astype(float)
        off_diagonal = matrix - np.diag(np.diagonal(matrix))
        losses += np.einsum("ni,ij,nj->n", present, off_diagonal, present)
    assert rows.size
    return Every(selections, losses, totals)


def _curved(summed: np.ndarray, bend: float, scale: float) -> np.ndarray:
    """A positive bend adds bend x sum^2 / scale; a negative one is what such a curve makes this sum of."""
    size = np.abs(summed)
    if bend > 0:
        return np.sign(summed) * (size + bend * size**2 / scale)
    share = -bend / scale
    return np.sign(summed) * (np.sqrt(1 + 4 * share * size) - 1) / (2 * share)


def random_problem(
    seed: int,
    *,
    groups: int | None = None,
    boundaries: bool | None = None,
    interactions: bool = False,
    resources: int | None = None,
    tightness: float | None = None,
) -> AllocationProblem:
    """A small problem with ties, sometimes pins, constants, boundaries of both signs, several budgets, curves."""
    rng = np.random.default_rng(seed)
    count = groups if groups is not None else int(rng.integers(2, 9 if not interactions else 7))
    kinds = resources if resources is not None else int(rng.integers(1, 4))
    names = ("latency_us@cpu", "size_bytes", "peak_memory_bytes@3")[:kinds]
    made = []
    for g in range(count):
        offered = [PRECISIONS[i] for i in sorted(rng.permutation(5)[: int(rng.integers(1, 5 if count > 6 else 6))])]
        scale = math.exp(rng.normal(0, 2))
        choices = tuple(
            Choice(
                precision,
                0.0 if precision == "fp32" else float(scale * rng.random() ** 3),
                {
                    name: float(rng.integers(1, 40) if name == "size_bytes" else rng.random() * math.exp(rng.normal()))
                    for name in names
                },
                DOMAINS[precision],
            )
            for precision in offered
        )
        made.append(Group(f"g{g}", tuple(f"layer{g}.{i}" for i in range(int(rng.integers(1, 3)))), choices))
    edges = []
    if boundaries if boundaries is not None else rng.random() < 0.5:
        for g in range(count):
            if rng.random() < 0.2:
                inside = ASKED[int(rng.integers(len(ASKED)))]
                edges.append(Boundary(names[0], f"g{g}", None, float(rng.random() * 0.3), inside))
            for other in range(g):
                if rng.random() < 0.3:
                    cost = float(rng.random() * 0.5) * (-1 if rng.random() < 0.15 else 1)
                    resource, inside = names[int(rng.integers(kinds))], ASKED[int(rng.integers(len(ASKED)))]
                    edges.append(Boundary(resource, f"g{other}", f"g{g}", cost, inside))
    pins = {}
    if rng.random() < 0.4:
        group = made[int(rng.integers(count))]
        pins[group.layers[-1]] = group.choices[int(rng.integers(len(group.choices)))].precision
    quadratic = None
    if interactions:
        keys = [(group.name, choice.precision) for group in made for choice in group.choices if choice.loss > 0]
        factors = rng.normal(0, 0.3, (len(keys), 6)) * np.sqrt(
            [[choice.loss] for group in made for choice in group.choices if choice.loss > 0]
        )
        quadratic = Quadratic(tuple(keys), factors @ factors.T)
    constants = {names[0]: float(rng.random())} if rng.random() < 0.5 else {}
    bends = np.random.default_rng([seed, 1])
    curves = {
        name: Curve(float(bends.choice([-1, 1]) * bends.uniform(0.02, 0.4)), float(bends.uniform(1.0, 20.0)))
        for name in names
        if bends.random() < 0.3
    }
    free = AllocationProblem(tuple(made), {}, constants, tuple(edges), pins, quadratic, curves)
    every = enumerate_all(free)
    tight = tightness if tightness is not None else float(rng.uniform(0.0, 0.9))
    budgets = {name: float(np.quantile(every.totals[name], max(tight, 0.0))) for name in names}
    return replace(free, budgets=budgets)
