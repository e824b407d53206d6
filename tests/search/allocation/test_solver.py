"""The module that knows PuLP: statuses before values, silence, and nobody else importing it."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from allocation_instances import random_problem

import search.allocation
from search.allocation.arrays import Edges, lay_out
from search.allocation.bound import scale
from search.allocation.core import restrict
from search.allocation.solver import SOLVERS, Program, Status, run


def program_of(seed: int, limit: float) -> Program:
    arrays = lay_out(random_problem(seed, groups=5, boundaries=True, tightness=limit))
    program, _, _ = restrict(scale(arrays), arrays.allowed, np.zeros(arrays.groups, dtype=np.int64))
    return program


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_infeasible_program_gives_a_status_and_no_selection(solver: str) -> None:
    program = program_of(2, 0.5)
    impossible = Program(**{**vars(program), "limit": np.full_like(program.limit, -1.0)})
    answer = run(impossible, solver=solver)
    assert answer.status is Status.INFEASIBLE
    assert answer.choice is None


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solver_is_silent_and_names_one_allowed_choice_per_group(
    solver: str, capfd: pytest.CaptureFixture[str]
) -> None:
    program = program_of(3, 0.8)
    answer = run(program, solver=solver)
    assert answer.status is Status.OPTIMAL
    assert answer.choice is not None
    assert program.allowed[np.arange(len(answer.choice)), answer.choice].all()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_excluded_selection_does_not_come_back(solver: str) -> None:
    program = program_of(3, 0.8)
    first = run(program, solver=solver).choice
    assert first is not None
    second = run(Program(**{**vars(program), "excluded": (first,)}), solver=solver).choice
    assert second is not None
    assert second.tolist() != first.tolist()
    rows = np.arange(len(first))
    assert program.objective[rows, second].sum() >= program.objective[rows, first].sum() - 1e-6


def test_a_relaxed_program_is_no_dearer_than_the_integer_one() -> None:
    program = program_of(6, 0.5)
    whole, relaxed = run(program), run(program, relaxed=True)
    assert whole.choice is not None
    assert relaxed.weights is not None
    np.testing.assert_allclose(relaxed.weights.sum(axis=1), 1.0, atol=1e-6)
    integer = program.objective[np.arange(len(whole.choice)), whole.choice].sum()
    assert (relaxed.weights * program.objective).sum() <= integer + 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_program_that_fools_integer_preprocessing(solver: str) -> None:
    """CBC with its preprocessing on calls 25965 optimal here (domains differ at one edge); 20573 fits the row."""
    program = Program(
        objective=np.array(
            [[7330.2122160801755, 0.0], [10000.0, 0.0], [8634.44672941854, 0.0], [1938.069486002943, 0.0]]
        ),
        allowed=np.ones((4, 2), dtype=np.bool_),
        cost=np.array([[[0.0, 0.945371101078], [0.0, 1.43258997898], [0.0, 1.0388373989], [0.0, 0.270893760282]]]),
        limit=np.ones(1),
        domain=np.tile([0, 1], (4, 1)),
        edges=Edges(np.array([1]), np.array([2]), np.array([1]), np.array([[0.110249243599]])),
    )
    answer = run(program, solver=solver)
    assert answer.choice is not None
    assert answer.choice.tolist() == [1, 0, 0, 0]


def test_only_the_solver_module_imports_pulp() -> None:
    folder = Path(search.allocation.__file__).parent
    knowing = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "pulp" for name in names):
                knowing.add(path.name)
    assert knowing == {"solver.py"}
