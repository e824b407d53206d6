"""HAWQ-V3's ResNet-18 problem through the API that studies use: published and joint optima, latency front.

Opponents in the same run: brute force over every tied configuration, and PuLP re-solving each of 101 latency budgets.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pulp

from benchmarks.bars import Bar, at_least, at_most, finish, print_table
from search.allocation import (
    Allocation,
    AllocationProblem,
    Choice,
    Group,
    Infeasible,
    best_within,
    pareto_front,
    solve,
)

DATA = Path(__file__).parent / "data" / "hawqv3_resnet18.json"
RESOURCES = ("size", "bops", "latency")
BITS = (4, 8)
FRONT_BUDGETS = 101
FRONT_REPEATS = 5


def layer_costs(layer: dict[str, Any], bits: int) -> dict[str, float]:
    """Bytes, bit operations and milliseconds of one layer, weights and activations at `bits`."""
    return {
        "size": layer["params"] * bits / 8,
        "bops": bits * bits * layer["macs"],
        "latency": layer[f"latency_ms_int{bits}"],
    }


def resnet18(data: dict[str, Any]) -> AllocationProblem:
    """The 19 free convolutions with tied pairs as one group each and no budget yet."""
    partner = {second: first for first, second in data["tied_pairs"]}
    members: dict[str, list[dict[str, Any]]] = {}
    for layer in data["layers"]:
        members.setdefault(partner.get(layer["name"], layer["name"]), []).append(layer)
    groups = []
    for name, layers in members.items():
        choices = []
        for bits in BITS:
            costs = [layer_costs(layer, bits) for layer in layers]
            loss = math.fsum(layer["avg_hessian_trace"] * layer[f"delta_sq_int{bits}"] for layer in layers)
            total = {resource: math.fsum(cost[resource] for cost in costs) for resource in RESOURCES}
            choices.append(Choice(f"w{bits}a{bits}", loss, total, "int8"))
        groups.append(Group(name, tuple(layer["name"] for layer in layers), tuple(choices)))
    return AllocationProblem(tuple(groups), {})


def every_configuration(problem: AllocationProblem) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Brute force: (choices (65536, 16), losses, totals per resource)."""
    count = len(problem.groups)
    bits = (np.arange(2**count)[:, None] >> np.arange(count)[None, :]) & 1
    loss = np.array([[choice.loss for choice in group.choices] for group in problem.groups])
    losses = np.where(bits == 1, loss[:, 1], loss[:, 0]).sum(axis=1)
    totals = {}
    for resource in RESOURCES:
        cost = np.array([[choice.costs[resource] for choice in group.choices] for group in problem.groups])
        totals[resource] = np.where(bits == 1, cost[:, 1], cost[:, 0]).sum(axis=1)
    return bits, losses, totals


def bits_per_layer(problem: AllocationProblem, data: dict[str, Any], precisions: Any) -> list[int]:
    of_layer = {layer: precisions[group.name] for group in problem.groups for layer in group.layers}
    return [int(of_layer[layer["name"]].split("a")[1]) for layer in data["layers"]]


def solve_with_pulp(problem: AllocationProblem, resource: str, budget: float) -> float:
    """The opponent: one plain integer program per budget, scaled as it must be, through PuLP's CBC."""
    program = pulp.LpProblem("hawq", pulp.LpMinimize)
    cells = [(group, choice) for group in problem.groups for choice in group.choices]
    x = [program.add_variable(f"x{i}", 0, 1, pulp.LpBinary) for i in range(len(cells))]
    largest = max(choice.loss for _, choice in cells)
    program += pulp.lpSum(x[i] * (choice.loss / largest * 1e4) for i, (_, choice) in enumerate(cells))
    for group in problem.groups:
        program += pulp.lpSum(x[i] for i, (owner, _) in enumerate(cells) if owner is group) == 1
    program += pulp.lpSum(x[i] * (choice.costs[resource] / budget) for i, (_, choice) in enumerate(cells)) <= 1
    program.solve(pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False, gapRel=0))
    assert program.status == pulp.LpStatusOptimal
    return math.fsum(choice.loss for i, (_, choice) in enumerate(cells) if x[i].value() > 0.5)


def published_budgets(problem: AllocationProblem, data: dict[str, Any]) -> list[Bar]:
    _, losses, totals = every_configuration(problem)
    rows: list[tuple[Any, ...]] = []
    errors: list[float] = []
    equal, brute = 0, 0.0
    for case in data["budgets"]:
        answer = solve(replace(problem, budgets={case["resource"]: case["limit"]}))
        assert isinstance(answer, Allocation)
        fits = totals[case["resource"]] <= case["limit"] * (1 + 1e-12)
        exhaustive = float(losses[fits].min())
        brute = max(brute, abs(answer.loss / exhaustive - 1))
        errors.append(abs(answer.loss / case["optimal"]["omega"] - 1))
        same = bits_per_layer(problem, data, answer.precisions) == case["published_bits"]
        equal += same
        rows.append((case["resource"], case["fraction"], answer.loss, case["optimal"]["omega"], same, answer.seconds))
    print_table(("resource", "fraction", "omega", "optimum", "bits equal", "seconds"), rows)
    joint: list[float] = []
    for case in data["joint_optima"]:
        limits = {b["resource"]: b["limit"] for b in data["budgets"] if b["fraction"] == case["fraction"]}
        answer = solve(replace(problem, budgets=limits))
        assert isinstance(answer, Allocation)
        joint.append(abs(answer.loss / case["omega"] - 1))
    impossible = solve(replace(problem, budgets={"latency": 0.99 * totals["latency"].min()}))
    least = float(totals["latency"].min())
    reachable = impossible.reachable["latency"] if isinstance(impossible, Infeasible) else math.inf
    return [
        at_most("published_budgets_objective_error", max(errors), "relative", 1e-6),
        at_least("published_budgets_bits_equal", equal, "of 9", 9),
        at_most("joint_optima_objective_error", max(joint), "relative", 1e-6),
        at_most("brute_force_disagreement", brute, "relative", 1e-12),
        at_most("infeasible_reachable_error", abs(reachable / least - 1), "relative", 1e-12),
    ]


def latency_front(problem: AllocationProblem) -> list[Bar]:
    _, losses, totals = every_configuration(problem)
    latency = totals["latency"]
    budgets = np.linspace(latency.min(), latency.max(), FRONT_BUDGETS).tolist()
    seconds = []
    for _ in range(FRONT_REPEATS):
        begin = time.perf_counter()
        front = pareto_front(problem, "latency", budgets=budgets)
        answers = [best_within(front, budget) for budget in budgets]
        seconds.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    pulp_losses = [solve_with_pulp(problem, "latency", budget) for budget in budgets]
    pulp_s = time.perf_counter() - begin
    optimal = np.array([losses[latency <= budget * (1 + 1e-12)].min() for budget in budgets])
    ours = np.array([math.inf if point is None else point.loss for point in answers])
    proven = all(point is not None and point.exact for point in answers)
    exact = int(np.sum(np.abs(ours / optimal - 1) <= 1e-9)) if proven else 0
    pulp_exact = int(np.sum(np.abs(np.array(pulp_losses) / optimal - 1) <= 1e-9))
    ours_s = float(np.median(seconds))
    print(
        f"{FRONT_BUDGETS} latency budgets: {exact} exact in {ours_s * 1e3:.1f} ms ({len(front)} distinct); "
        f"PuLP {pulp_exact} exact in {pulp_s:.2f} s"
    )
    return [
        at_least("latency_budgets_exact", exact, f"of {FRONT_BUDGETS}", FRONT_BUDGETS),
        at_least("front_speed_up_over_pulp", pulp_s / ours_s, "x", 20),
    ]


def main() -> int:
    data = json.loads(DATA.read_text())
    problem = resnet18(data)
    return finish("hawqv3", [*published_budgets(problem, data), *latency_front(problem)])


if __name__ == "__main__":
    sys.exit(main())
