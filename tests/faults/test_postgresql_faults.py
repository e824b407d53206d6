"""PostgreSQL and Redis: the cells of the fault matrix that every change must pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.cases import Case, matrix, orphans, run_case
from tests.faults.running_stack import PostgresStack, Stack

CELLS = (
    ("kill -9 Redis", "mid-stage"),
    ("kill -9 PostgreSQL", "output, no commit"),
    ("kill -9 PostgreSQL", "inside the commit"),
    ("power cut", "parts saved"),
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    found = PostgresStack()
    try:
        found.start()
        yield found
        assert orphans(found) == [], "processes of stages are left"
    finally:
        found.close()


@pytest.mark.parametrize(("fault", "point"), CELLS)
def test_the_study_ends_well_and_nothing_is_done_twice(stack: Stack, fault: str, point: str) -> None:
    case = Case(fault, point, stack.key)
    assert case in matrix()
    outcome = run_case(stack, case)
    assert outcome.problem == ""
    assert outcome.state == "succeeded"
    assert outcome.duplicated == []
    assert outcome.computed_again == []
