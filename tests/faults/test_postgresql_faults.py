"""PostgreSQL and Redis: the cells of the fault matrix that every change must pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.cases import Case, check_case, run_stack
from tests.faults.running_stack import PostgresStack, Stack

CELLS = (
    ("kill -9 Redis", "mid-stage"),
    ("kill -9 PostgreSQL", "output, no commit"),
    ("kill -9 PostgreSQL", "inside the commit"),
    ("power cut", "parts saved"),
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    yield from run_stack(PostgresStack())


@pytest.mark.parametrize(("fault", "point"), CELLS)
def test_the_study_ends_well_and_nothing_is_done_twice(stack: Stack, fault: str, point: str) -> None:
    check_case(stack, Case(fault, point, stack.key))
