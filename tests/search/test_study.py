"""A study is parsed once; every wrong field is refused with its value and what would be right."""

from typing import Any

import pytest

from kernels.errors import UnsupportedPrecision
from search.budget import Budget
from search.errors import BadSubmission
from search.study import parse_study, require_goals

TARGET: dict[str, Any] = {"hardware": "cpu-local", "budgets": {"latency_ms": "0.6x", "size_bytes": 1000}}


def test_a_whole_study() -> None:
    study = parse_study(
        {
            "targets": [{**TARGET, "operating_point": {"batch": 2, "threads": 1, "dims": {"sequence": 64}}}],
            "seed": 3,
            "options": {"pins": {"head": "w8a8"}, "metrics": ["kl"]},
        }
    )
    (target,) = study.targets
    assert target.budgets == (Budget("latency_ms", times=0.6), Budget("size_bytes", absolute=1000.0))
    assert target.point.key == "b2-t1-sequence=64"
    assert (study.seed, study.pins, study.metrics) == (3, {"head": "w8a8"}, ("kl",))


def test_a_target_that_names_no_batch_is_served_at_the_one_of_the_export() -> None:
    point = {"threads": 1, "dims": {}}
    named, open_, unsaid = (
        {**TARGET, "operating_point": {**point, **batch}} for batch in ({"batch": 2}, {"batch": None}, {})
    )
    study = parse_study({"targets": [named, open_, unsaid]})
    assert [target.point.batch for target in study.targets] == [2, 1, 1]
    assert [target.point.batch for target in study.at_batch_of_export(8).targets] == [2, 8, 8]
    assert study.at_batch_of_export(None) == study


@pytest.mark.parametrize(
    "change, code, says",
    [
        ({"targets": []}, "bad_study", "[]"),
        ({"targets": [{"budgets": {}}]}, "bad_study", "hardware"),
        ({"targets": [{**TARGET, "tolerance": {"loss": 1}}]}, "bad_study", "budgets and a tolerance"),
        ({"targets": [{**TARGET, "budgets": {"watts": 3}}]}, "bad_budget", "watts"),
        ({"targets": [{**TARGET, "budgets": {"latency_ms": -3}}]}, "bad_budget", "-3"),
        ({"targets": [{**TARGET, "budgets": {"latency_ms": "fast"}}]}, "bad_budget", "fast"),
        ({"targets": [{**TARGET, "budgets": {"latency_ms": {"relative": 2}}}]}, "bad_budget", "2"),
        ({"targets": [{**TARGET, "operating_point": {"batch": 0}}]}, "bad_operating_point", "0"),
        ({"targets": [{**TARGET, "operating_point": {"cores": 1}}]}, "bad_operating_point", "cores"),
        ({"targets": [TARGET], "seed": -1}, "bad_study", "-1"),
        ({"targets": [{**TARGET, "budgets": ["0.6x"]}]}, "bad_study", "budgets = ['0.6x']"),
        ({"targets": [{**TARGET, "operating_point": {"dims": ["n"]}}]}, "bad_study", "dims = ['n']"),
        ({"targets": [TARGET], "options": {"speed": 9}}, "bad_study", "speed"),
        ({"targets": [TARGET], "options": {"pins": ["stem"]}}, "bad_study", "pins = ['stem']"),
        ({"targets": [TARGET], "options": {"pins": {"stem": 8}}}, "bad_study", "pins = [8]"),
        ({"targets": [TARGET], "options": {"losses": {"y": "mse"}}}, "bad_study", "losses of 'y' = 'mse'"),
        ({"targets": [TARGET], "options": {"metrics": "kl"}}, "bad_study", "metrics = 'kl'"),
        ({"targets": [TARGET], "options": {"precisions": "w8a8"}}, "bad_study", "precisions = 'w8a8'"),
        ({"targets": [{"hardware": "x", "tolerance": {"accuracy_drop": 0}}]}, "bad_study", "accuracy_drop"),
    ],
)
def test_refusals_name_the_value(change: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(BadSubmission) as refused:
        parse_study(change)
    assert refused.value.code == code
    assert says in refused.value.message


def test_unknown_precision_of_a_pin_is_refused() -> None:
    with pytest.raises(UnsupportedPrecision, match="int5"):
        parse_study({"targets": [TARGET], "options": {"pins": {"head": "int5"}}})


def test_a_target_without_any_goal_is_refused_by_check_only() -> None:
    study = parse_study({"targets": [{"hardware": "cpu-local"}]})
    with pytest.raises(BadSubmission, match="neither budgets nor a tolerance"):
        require_goals(study)
