"""The part of the fault matrix that every change must pass; `python -m benchmarks.faults` runs all of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.cases import FAULTS, Case, matrix, orphans, run_case
from tests.faults.running_stack import STACKS, Stack

EVERY_CHANGE = (
    Case("kill -9 worker group", "parts saved", "sqlite"),
    Case("SIGSTOP > lease, SIGCONT", "output, no commit", "sqlite"),
    Case("messages dropped", "before a claim", "sqlite"),
    Case("garbage in the queue", "before a claim", "sqlite"),
    Case("SIGTERM worker group", "mid-stage", "sqlite"),
    Case("kill -9 pool process", "inside the commit", "postgresql"),
    Case("kill -9 Redis", "mid-stage", "postgresql"),
    Case("kill -9 PostgreSQL", "output, no commit", "postgresql"),
    Case("PostgreSQL away > lease", "mid-stage", "postgresql"),
    Case("power cut", "parts saved", "postgresql"),
)


@pytest.fixture(scope="module")
def stacks() -> Iterator[dict[str, Stack]]:
    running: dict[str, Stack] = {}
    try:
        yield running
        for stack in running.values():
            assert orphans(stack) == [], "processes of stages are left"
    finally:
        for stack in running.values():
            stack.close()


@pytest.mark.parametrize("case", EVERY_CHANGE, ids=lambda case: case.name)
def test_the_study_ends_well_and_nothing_is_done_twice(stacks: dict[str, Stack], case: Case) -> None:
    if case.stack not in stacks:
        stacks[case.stack] = STACKS[case.stack]()
        stacks[case.stack].start()
    outcome = run_case(stacks[case.stack], case)
    assert outcome.problem == ""
    assert outcome.state == "succeeded"
    assert outcome.duplicated == []
    assert outcome.computed_again == []


def test_these_are_cells_of_the_matrix() -> None:
    cells = matrix()
    assert set(EVERY_CHANGE) <= set(cells)
    assert len(cells) == len(set(cells)) > 70
    assert {case.fault for case in cells} == set(FAULTS)
