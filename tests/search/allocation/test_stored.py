"""The JSON form keeps every bit and refuses what it did not write."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from allocation_instances import random_problem

from search.allocation import problem_from_json, problem_to_json, solve
from search.errors import BadSubmission


def test_a_problem_survives_the_round_trip() -> None:
    for seed in range(20):
        problem = random_problem(seed, interactions=seed % 2 == 0)
        again = problem_from_json(json.loads(json.dumps(problem_to_json(problem))))
        assert replace(again, interactions=None) == replace(problem, interactions=None)
        if problem.interactions is not None:
            assert again.interactions is not None
            assert again.interactions.keys == problem.interactions.keys
            np.testing.assert_array_equal(again.interactions.matrix, problem.interactions.matrix)


def test_an_infinite_budget_is_null_and_comes_back() -> None:
    problem = random_problem(1)
    free = replace(problem, budgets=dict.fromkeys(problem.budgets, math.inf))
    written = problem_to_json(free)
    assert set(written["budgets"].values()) == {None}
    assert problem_from_json(written) == free
    assert solve(free) is not None


def test_a_problem_of_the_time_before_curves_is_read() -> None:
    problem = replace(random_problem(1), curves={})
    written = problem_to_json(problem)
    del written["curves"]
    assert problem_from_json(written) == problem


def change(data: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**data, **fields}


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("schema_version_unknown", {"schema_version": 99}),
        ("bad_problem", {"groups": 3}),
        ("bad_problem", {"groups": [{"name": "g"}]}),
        ("bad_problem", {"budgets": {"t": "much"}}),
        ("bad_problem", {"interactions": {"keys": [["g"]], "matrix": [[1.0]]}}),
        ("bad_problem", {"curves": {"t": {"bent": 0.1}}}),
        ("bad_curve", {"curves": {"t": {"bend": 0.1, "scale": 0.0}}}),
        ("no_groups", {"groups": []}),
    ],
)
def test_a_malformed_file_is_refused_by_code(code: str, fields: dict[str, Any]) -> None:
    with pytest.raises(BadSubmission) as caught:
        problem_from_json(change(problem_to_json(random_problem(1)), **fields))
    assert caught.value.code == code
