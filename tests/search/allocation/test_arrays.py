"""What a problem must be: every malformed one is refused with its code; dominated choices leave, answers stay."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from allocation_instances import random_problem

from search.allocation import AllocationProblem, Boundary, Choice, Group, Quadratic, solve
from search.allocation.arrays import drop_dominated, lay_out
from search.errors import BadSubmission

A = Choice("w8a8", 0.1, {"t": 1.0}, "int8")
B = Choice("fp32", 0.0, {"t": 2.0})
GOOD = AllocationProblem((Group("g", ("l1", "l2"), (A, B)), Group("h", ("l3",), (A, B))), {"t": 3.0})
TWO_BY_TWO = np.array([[1.0, 0.5], [0.5, 1.0]])


def with_first(choices: tuple[Choice, ...]) -> dict[str, Any]:
    return {"groups": (Group("g", ("l1", "l2"), choices), GOOD.groups[1])}


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("no_groups", {"groups": ()}),
        ("empty_group", with_first(())),
        ("duplicate_group", {"groups": (GOOD.groups[0], GOOD.groups[0])}),
        ("duplicate_precision", with_first((A, A))),
        ("duplicate_layer", {"groups": (GOOD.groups[0], Group("h", ("l1",), (A, B)))}),
        ("cost_not_finite", with_first((replace(A, loss=math.nan), B))),
        ("cost_not_finite", with_first((replace(A, loss=math.inf), B))),
        ("cost_not_finite", with_first((replace(A, costs={"t": math.nan}), B))),
        ("cost_not_finite", {"constants": {"t": math.inf}}),
        ("cost_not_finite", {"boundaries": (Boundary("t", "g", "h", math.nan),)}),
        ("cost_missing", with_first((replace(A, costs={}), B))),
        ("budget_unknown_resource", {"budgets": {"size": 1.0}}),
        ("bad_budget", {"budgets": {"t": -1.0}}),
        ("bad_budget", {"budgets": {"t": math.nan}}),
        ("pin_unknown_layer", {"pins": {"nobody": "fp32"}}),
        ("pin_unknown_precision", {"pins": {"l1": "w1a1"}}),
        ("pins_disagree", {"pins": {"l1": "w8a8", "l2": "fp32"}}),
        ("boundary_unknown_group", {"boundaries": (Boundary("t", "g", "l3", 1.0),)}),
        ("boundary_to_itself", {"boundaries": (Boundary("t", "g", "g", 1.0),)}),
        ("bad_interactions", {"interactions": Quadratic((("g", "w8a8"),), TWO_BY_TWO)}),
        ("bad_interactions", {"interactions": Quadratic((("g", "w8a8"), ("x", "w8a8")), TWO_BY_TWO)}),
        ("bad_interactions", {"interactions": Quadratic((("g", "w8a8"), ("g", "w8a8")), TWO_BY_TWO)}),
        ("bad_interactions", {"interactions": Quadratic((("g", "w8a8"), ("h", "w8a8")), np.triu(TWO_BY_TWO))}),
    ],
)
def test_a_malformed_problem_is_refused_by_code(code: str, fields: dict[str, Any]) -> None:
    with pytest.raises(BadSubmission) as caught:
        solve(replace(GOOD, **fields))
    assert caught.value.code == code
    assert caught.value.hint


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("solver_unknown", {"solver": "oracle"}),
        ("bad_solver_limits", {"time_limit_s": 0.0}),
        ("bad_solver_limits", {"gap": -0.1}),
        ("bad_solver_limits", {"gap": math.nan}),
    ],
)
def test_malformed_limits_are_refused(code: str, fields: dict[str, Any]) -> None:
    with pytest.raises(BadSubmission) as caught:
        solve(GOOD, **fields)
    assert caught.value.code == code


def test_a_group_may_leave_a_resource_out_altogether() -> None:
    groups = (GOOD.groups[0], Group("h", ("l3",), (replace(A, costs={}), replace(B, costs={}))))
    arrays = lay_out(replace(GOOD, groups=groups))
    assert arrays.cost[0, 1].tolist() == [0.0, 0.0]


def test_an_infinite_budget_is_no_row() -> None:
    assert lay_out(replace(GOOD, budgets={"t": math.inf})).resources == ()


def test_fixed_ends_are_charged_to_the_choice_and_pairs_are_merged() -> None:
    edges = (Boundary("t", "g", None, 5.0), Boundary("t", "g", "h", 1.0), Boundary("t", "h", "g", 2.0))
    arrays = lay_out(replace(GOOD, boundaries=edges))
    assert arrays.cost[0, 0].tolist() == [6.0, 2.0]
    assert arrays.edges.cost.tolist() == [[3.0]]
    assert arrays.totals(np.array([0, 1])).tolist() == [6.0 + 2.0 + 3.0]
    assert arrays.totals(np.array([0, 0])).tolist() == [6.0 + 1.0]


def test_dominated_choices_leave_unless_a_boundary_or_an_interaction_needs_them() -> None:
    worse = Choice("w8a16", 0.2, {"t": 1.5}, "float")
    problem = replace(GOOD, groups=(Group("g", ("l1",), (A, worse, B)), GOOD.groups[1]))
    assert drop_dominated(lay_out(problem)).allowed[0].tolist() == [True, False, True]
    touched = replace(problem, boundaries=(Boundary("t", "g", "h", 1.0),))
    assert drop_dominated(lay_out(touched)).allowed[0].tolist() == [True, True, True]
    keep = np.array([[False, True, False], [False, False, False]])
    assert drop_dominated(lay_out(problem), keep).allowed[0].tolist() == [True, True, True]
    twin = replace(GOOD, groups=(Group("g", ("l1",), (A, replace(A, precision="w8a8-b"), B)),))
    assert drop_dominated(lay_out(twin)).allowed[0].tolist() == [True, False, True]


def test_a_dominated_pin_is_kept() -> None:
    worse = Choice("w8a16", 0.2, {"t": 1.5}, "float")
    problem = replace(GOOD, groups=(Group("g", ("l1",), (A, worse, B)),), pins={"l1": "w8a16"})
    assert drop_dominated(lay_out(problem)).allowed[0].tolist() == [False, True, False]


def test_random_instances_are_well_formed() -> None:
    for seed in range(50):
        lay_out(random_problem(seed, interactions=seed % 3 == 0))
