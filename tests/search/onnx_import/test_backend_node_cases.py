"""Every listed ONNX backend node test of every op in the table."""

from __future__ import annotations

import re

import pytest

from benchmarks.backend_node_cases import EXCLUSIONS, EXPANDED, NodeCase, failure, listed_cases, node_cases
from search.onnx_import.ops import OPS

BY_OP: dict[str, list[NodeCase]] = {}
for _case in listed_cases():
    BY_OP.setdefault(_case.op, []).append(_case)


@pytest.mark.parametrize("op", sorted(BY_OP))
def test_every_case_of_the_op_passes(op: str) -> None:
    failures = {case.name: why for case in BY_OP[op] if (why := failure(case)) is not None}
    assert failures == {}


def test_exclusions_name_cases_that_exist() -> None:
    names = [case.name for case in node_cases()]
    for pattern, _ in EXCLUSIONS:
        assert any(re.fullmatch(pattern, name) for name in names), pattern


def test_exclusions_hide_no_case_that_passes() -> None:
    for case in node_cases():
        if case.excluded is not None and case.op_types <= OPS.keys():
            assert failure(case) is not None, case.name


def test_every_op_of_the_table_has_cases() -> None:
    assert OPS.keys() == BY_OP.keys() - {EXPANDED}
