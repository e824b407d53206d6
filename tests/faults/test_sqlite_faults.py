"""SQLite and a folder of messages: the cells of the fault matrix that every change must pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.cases import Case, matrix, orphans, run_case
from tests.faults.running_stack import SqliteStack, Stack

CELLS = (
    ("kill -9 worker group", "parts saved"),
    ("SIGSTOP > lease, SIGCONT", "output, no commit"),
    ("messages dropped", "before a claim"),
    ("garbage in the queue", "before a claim"),
    ("SIGTERM worker group", "mid-stage"),
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    found = SqliteStack()
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
