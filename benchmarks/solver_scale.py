"""Time and proven gap of the allocation solver from 50 to 5000 groups of layers, beside plain CBC on the same program.

Synthetic networks: log-normal sizes, six precisions, a tenth of the groups tie two layers, boundary costs on a chain
with skips. Plain CBC gets the same variables and rows, scaled as it needs, through PuLP in the same run.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace

import numpy as np
import pulp

from benchmarks.bars import Bar, at_least, at_most, finish, print_table
from search.allocation import Allocation, AllocationProblem, Boundary, Choice, Group, solve

PRECISIONS = (
    ("w2a16", 2, 0.62, "float"),
    ("w3a16", 3, 0.68, "float"),
    ("w4a16", 4, 0.70, "float"),
    ("w4a8", 4, 0.50, "int8"),
    ("w8a8", 8, 0.52, "int8"),
    ("fp16", 16, 1.0, "float"),
)
"""Name, weight bits, time against fp16, domain of the activations."""

RESOURCES = ("latency_us", "size_bytes", "bops")
SIZES = (50, 500, 5000)
GAP = 1e-4
TIGHTNESS = 0.35
LARGEST_SECONDS = 2.0
CBC_SECONDS = 30.0
FACTORS = (1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e9)
POWERS = (2.0**-30, 2.0**-7, 2.0**11, 2.0**30)


def network(layers: int, budgets: int, *, edges: bool, seed: int = 0) -> AllocationProblem:
    """A random network of `layers` groups; budgets at `TIGHTNESS` between cheapest and dearest."""
    rng = np.random.default_rng([seed, layers, budgets, edges])
    groups = []
    for g in range(layers):
        tied = 2 if g % 10 == 9 else 1
        weights = math.exp(rng.normal(11, 1.2)) * tied
        time_us = math.exp(rng.normal(4, 1.0)) * tied
        sensitivity = math.exp(rng.normal(0, 1.5))
        choices = []
        for name, bits, factor, domain in PRECISIONS:
            noise = 1e-2 if domain == "int8" else 0.0
            loss = (
                0.0 if name == "fp16" else sensitivity * (4.0**-bits + noise * 4.0**-4) * math.exp(rng.normal(0, 0.2))
            )
            costs = {
                "latency_us": time_us * factor * math.exp(rng.normal(0, 0.1)),
                "size_bytes": weights * bits / 8 + 64 * tied,
                "bops": weights * 50 * bits * (8 if domain == "int8" else 16),
            }
            choices.append(Choice(name, loss, costs, domain))
        groups.append(Group(f"g{g}", tuple(f"layer{g}.{i}" for i in range(tied)), tuple(choices)))
    boundaries = []
    if edges:
        ends = [(g, g + 1) for g in range(layers - 1)] + [(g, g + 4) for g in range(0, layers - 4, 4)]
        boundaries = [Boundary("latency_us", f"g{u}", f"g{v}", float(rng.uniform(1.0, 10.0))) for u, v in ends]
    limits = {}
    for resource in RESOURCES[:budgets]:
        low = math.fsum(min(choice.costs[resource] for choice in group.choices) for group in groups)
        high = math.fsum(max(choice.costs[resource] for choice in group.choices) for group in groups)
        limits[resource] = low + TIGHTNESS * (high - low)
    return AllocationProblem(tuple(groups), limits, boundaries=tuple(boundaries))


def solve_with_cbc(problem: AllocationProblem, gap: float, time_limit_s: float) -> tuple[float, float, bool]:
    """The opponent: (loss, seconds, whether CBC claims to be done) of one plain, scaled program through PuLP."""
    begin = time.perf_counter()
    program = pulp.LpProblem("plain", pulp.LpMinimize)
    cells = [(g, choice) for g, group in enumerate(problem.groups) for choice in group.choices]
    x = [program.add_variable(f"x{i}", 0, 1, pulp.LpBinary) for i in range(len(cells))]
    least = [min(choice.loss for choice in group.choices) for group in problem.groups]
    largest = max(choice.loss - least[g] for g, choice in cells)
    offset = math.fsum(least)
    program += pulp.LpAffineExpression([(x[i], (c.loss - least[g]) / largest * 1e4) for i, (g, c) in enumerate(cells)])
    members: list[list[int]] = [[] for _ in problem.groups]
    for i, (g, _) in enumerate(cells):
        members[g].append(i)
    for inside in members:
        program += pulp.LpAffineExpression([(x[i], 1) for i in inside]) == 1
    index = {group.name: g for g, group in enumerate(problem.groups)}
    crossings = []
    for e, edge in enumerate(problem.boundaries):
        assert edge.second is not None
        y = program.add_variable(f"y{e}", 0, 1)
        in_first = [(x[i], 1) for i in members[index[edge.first]] if cells[i][1].domain == "int8"]
        in_second = [(x[i], 1) for i in members[index[edge.second]] if cells[i][1].domain == "int8"]
        for plus, minus in ((in_first, in_second), (in_second, in_first)):
            program += pulp.LpAffineExpression([(y, 1), *plus, *((v, -a) for v, a in minus)]) >= 0
        crossings.append((y, edge))
    for resource, budget in problem.budgets.items():
        row = [(x[i], choice.costs[resource] / budget) for i, (_, choice) in enumerate(cells)]
        row += [(y, edge.cost / budget) for y, edge in crossings if edge.resource == resource]
        program += pulp.LpAffineExpression(row) <= 1
    relative = gap / (1 + offset / max(largest, 1e-300) * 1e4) if offset else gap
    program.solve(
        pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False, gapRel=relative, timeLimit=time_limit_s)
    )
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return math.nan, time.perf_counter() - begin, False
    loss = math.fsum(choice.loss for i, (_, choice) in enumerate(cells) if x[i].value() > 0.5)
    return loss, time.perf_counter() - begin, program.sol_status == pulp.LpSolutionOptimal


def timed(problem: AllocationProblem, gap: float) -> tuple[Allocation, float]:
    begin = time.perf_counter()
    answer = solve(problem, gap=gap)
    seconds = time.perf_counter() - begin
    assert isinstance(answer, Allocation)
    return answer, seconds


def scale_bars() -> list[Bar]:
    rows, slowest, widest, worst = [], 0.0, 0.0, 0.0
    for size in SIZES:
        for budgets in (1, 2, 3):
            for edges in (False, True):
                problem = network(size, budgets, edges=edges)
                answer, seconds = timed(problem, GAP)
                plain, plain_s, done = solve_with_cbc(problem, GAP, CBC_SECONDS)
                name = f"{plain:.6g}" if done else f"{plain:.6g} (stopped)"
                rows.append((size, budgets, len(problem.boundaries), seconds, answer.gap, answer.loss, plain_s, name))
                if size == SIZES[-1]:
                    slowest, widest = max(slowest, seconds), max(widest, answer.gap)
                    worst = max(worst, answer.loss / plain - 1 if math.isfinite(plain) else 0.0)
    print_table(("groups", "budgets", "edges", "seconds", "gap", "loss", "CBC s", "CBC loss"), rows)
    return [
        at_most(f"seconds_at_{SIZES[-1]}_groups", slowest, "s", LARGEST_SECONDS),
        at_most(f"proven_gap_at_{SIZES[-1]}_groups", widest, "relative", GAP),
        at_most("loss_above_plain_cbc", worst, "relative", GAP),
    ]


def scaled(problem: AllocationProblem, factor: float) -> AllocationProblem:
    groups = tuple(
        replace(group, choices=tuple(replace(choice, loss=choice.loss * factor) for choice in group.choices))
        for group in problem.groups
    )
    return replace(problem, groups=groups)


def invariance_bars() -> list[Bar]:
    identical, cases, apart = 0, 0, 0.0
    for size, budgets, gap in ((50, 3, 0.0), (500, 2, GAP), (5000, 3, GAP)):
        problem = network(size, budgets, edges=True, seed=1)
        base, _ = timed(problem, gap)
        for factor in POWERS:
            answer, _ = timed(scaled(problem, factor), gap)
            identical += answer.precisions == base.precisions
            cases += 1
        for factor in FACTORS:
            answer, _ = timed(scaled(problem, factor), gap)
            apart = max(apart, abs(answer.loss / factor / base.loss - 1) - max(answer.gap, base.gap))
    return [
        at_least("identical_under_powers_of_two", identical, f"of {cases}", cases),
        at_most("objective_change_beyond_the_gap_under_1e-9_to_1e9", max(apart, 0.0), "relative", 1e-9),
    ]


def main() -> int:
    return finish("solver_scale", [*scale_bars(), *invariance_bars()])


if __name__ == "__main__":
    sys.exit(main())
