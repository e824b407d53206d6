"""SQLite and a folder of messages: the cells of the fault matrix that every change must pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.cases import Case, check_case, run_stack
from tests.faults.running_stack import SqliteStack, Stack

CELLS = (
    ("kill -9 pool process", "while idle"),
    ("kill -9 worker group", "parts saved"),
    ("SIGSTOP > lease, SIGCONT", "output, no commit"),
    ("messages dropped", "before a claim"),
    ("garbage in the queue", "before a claim"),
    ("SIGTERM worker group", "mid-stage"),
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    yield from run_stack(SqliteStack())


@pytest.mark.parametrize(("fault", "point"), CELLS)
def test_the_study_ends_well_and_nothing_is_done_twice(stack: Stack, fault: str, point: str) -> None:
    check_case(stack, Case(fault, point, stack.key))
