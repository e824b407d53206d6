"""Integer programs through PuLP: the one module that knows its name, and the only place a solver's answer is read.

Solver tolerances are absolute, so callers pass scaled numbers (`Program` says how). The status is read before any
value, a selection is rounded per group, and what comes back is a choice per group: never an objective or a cost.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import pulp

from search.allocation.arrays import Bools, Edges, Floats, Ints
from search.errors import BadSubmission, SearchError

SOLVERS = ("cbc", "highs")


class Status(Enum):
    """`OPTIMAL` is proven; `FEASIBLE` stopped early with a selection; `UNKNOWN` stopped early with none."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Program:
    """min Σ objective·x + weight·t  over one choice per group, rows Σ cost·x + Σ boundary ≤ limit + growth·t.

    `objective` (L, B) has its largest entry near 1e4 and its smallest per group at 0; `cost` (K, L, B) and `limit`
    (K,) are divided by the row's limit. `allowed` (L, B) says which variables exist. t ≥ 0 and t ≥ each cut's
    coefficients·x − constant; it exists only with `weight` > 0. `excluded` are selections (L,) that may not return.
    """

    objective: Floats
    allowed: Bools
    cost: Floats
    limit: Floats
    domain: Ints
    edges: Edges
    growth: Floats | None = None
    weight: float = 0.0
    cuts: tuple[tuple[Floats, float], ...] = ()
    excluded: tuple[Ints, ...] = field(default=())


@dataclass(frozen=True)
class Selection:
    """What a solver found: `choice` (L,) for an integer program, `weights` (L, B) for a relaxed one."""

    status: Status
    choice: Ints | None = None
    weights: Floats | None = None


def check_solver(name: str) -> None:
    if name not in SOLVERS:
        raise BadSubmission(
            f"the solver {name!r} is not offered", hint=f"choose one of {', '.join(SOLVERS)}", code="solver_unknown"
        )


def _backends(name: str, time_limit_s: float, gap_absolute: float) -> list[Any]:
    check_solver(name)
    common: dict[str, Any] = {"msg": False, "timeLimit": max(time_limit_s, 0.05), "gapRel": 0.0, "gapAbs": gap_absolute}
    if name == "highs":
        return [pulp.HiGHS(**common, threads=1)]
    # No `threads`: CBC runs one without it, and with `threads 1` one call in some 600 sleeps for 10 s (measured).
    # Preprocessing off: with it CBC has called a selection optimal that was 26 % worse than the optimum (a test has
    # it). Without it CBC crashed once in some 1000 programs; those run again with it.
    common["path"] = pulp.PULP_CBC_CMD.pulp_cbc_path
    return [pulp.COIN_CMD(**common, options=["preprocess off"]), pulp.COIN_CMD(**common)]


def run(
    program: Program,
    *,
    solver: str = "cbc",
    time_limit_s: float = 60.0,
    gap_absolute: float = 0.0,
    relaxed: bool = False,
) -> Selection:
    """Solve the program; `gap_absolute` is in units of its scaled objective. `relaxed` drops integrality."""
    backends = _backends(solver, time_limit_s, gap_absolute)
    for backend in backends:
        problem, variables = _build(program, relaxed)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                problem.solve(backend)
            break
        except pulp.PulpSolverError as error:
            if backend is backends[-1]:
                raise SearchError(
                    f"the solver {solver} did not run: {error}", hint="try the other solver", code="solver_failed"
                ) from error
    if problem.status == pulp.LpStatusInfeasible:
        return Selection(Status.INFEASIBLE)
    proven = problem.status == pulp.LpStatusOptimal and problem.sol_status == pulp.LpSolutionOptimal
    found = proven or problem.sol_status == pulp.LpSolutionIntegerFeasible
    if not found:
        return Selection(Status.UNKNOWN)
    weights = np.zeros(program.objective.shape)
    for (g, b), variable in variables.items():
        weights[g, b] = variable.value()
    status = Status.OPTIMAL if proven else Status.FEASIBLE
    if relaxed:
        return Selection(status, weights=weights)
    return Selection(status, choice=np.argmax(np.where(program.allowed, weights, -1.0), axis=1))


def _build(program: Program, relaxed: bool) -> tuple[Any, dict[tuple[int, int], Any]]:
    problem = pulp.LpProblem("allocation", pulp.LpMinimize)
    kind = pulp.LpContinuous if relaxed else pulp.LpBinary
    cells = [(int(g), int(b)) for g, b in np.argwhere(program.allowed)]
    x = {(g, b): problem.add_variable(f"x_{g}_{b}", 0, 1, kind) for g, b in cells}
    t = problem.add_variable("t", 0) if program.weight > 0 else None
    objective = [(x[cell], float(program.objective[cell])) for cell in cells]
    if t is not None:
        objective.append((t, program.weight))
    problem += pulp.LpAffineExpression(objective)
    members: dict[int, list[int]] = {}
    for g, b in cells:
        members.setdefault(g, []).append(b)
    for g, choices in members.items():
        problem += pulp.LpAffineExpression([(x[g, b], 1.0) for b in choices]) == 1
    crossed = _add_boundaries(problem, program, x, members)
    for k in range(len(program.limit)):
        row = [(x[cell], float(program.cost[k][cell])) for cell in cells if program.cost[k][cell] != 0]
        row += [(y, float(program.edges.cost[k, e])) for e, y in crossed.items() if program.edges.cost[k, e] != 0]
        if program.growth is not None and t is not None:
            row.append((t, -float(program.growth[k])))
        if row and math.isfinite(program.limit[k]):
            problem += pulp.LpAffineExpression(row) <= float(program.limit[k])
    for coefficients, constant in program.cuts:
        assert t is not None
        row = [(t, 1.0)] + [(x[cell], -float(coefficients[cell])) for cell in cells if coefficients[cell] != 0]
        problem += pulp.LpAffineExpression(row) >= -constant
    for choice in program.excluded:
        taken = [(x[g, int(b)], 1.0) for g, b in enumerate(choice) if (g, int(b)) in x]
        problem += pulp.LpAffineExpression(taken) <= len(taken) - 1
    return problem, x


def _add_boundaries(
    problem: Any, program: Program, x: dict[tuple[int, int], Any], members: dict[int, list[int]]
) -> dict[int, Any]:
    """y_e = 1 when just one end of edge e is in its domain d: y ≥ |X_u,d − X_v,d|.

    An edge that pays (negative cost) also needs y ≤ X_u,d + X_v,d ≤ 2 − y, or y would rise by itself.
    """
    crossed: dict[int, Any] = {}
    edges = program.edges
    for e in range(len(edges)):
        u, v = int(edges.first[e]), int(edges.second[e])
        y = problem.add_variable(f"y_{e}", 0, 1)
        crossed[e] = y
        in_u = [(x[u, b], 1.0) for b in members[u] if program.domain[u, b] == edges.domain[e]]
        in_v = [(x[v, b], 1.0) for b in members[v] if program.domain[v, b] == edges.domain[e]]
        problem += pulp.LpAffineExpression([(y, 1.0), *_negated(in_u), *in_v]) >= 0
        problem += pulp.LpAffineExpression([(y, 1.0), *in_u, *_negated(in_v)]) >= 0
        if np.any(edges.cost[:, e] < 0):
            problem += pulp.LpAffineExpression([(y, 1.0), *in_u, *in_v]) <= 2
            problem += pulp.LpAffineExpression([(y, 1.0), *_negated(in_u), *_negated(in_v)]) <= 0
    return crossed


def _negated(terms: Sequence[tuple[Any, float]]) -> list[tuple[Any, float]]:
    return [(variable, -value) for variable, value in terms]
