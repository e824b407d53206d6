"""The stages of a study: order, fan-out per target, and what each stage is told."""

from __future__ import annotations

from typing import Any

from service.studies.plan import KINDS, StageKind, kind_named, plan_study, stage_spec

SPEC: dict[str, Any] = {
    "model": "m",
    "dataset": None,
    "targets": [
        {"hardware": "a", "budgets": {"latency_ms": 1.0}, "tolerance": None},
        {"hardware": "b", "budgets": {}, "tolerance": {"loss": 0.1}},
    ],
}


def test_the_plan_of_two_targets() -> None:
    planned = plan_study(SPEC)
    assert [(stage.kind, stage.target, stage.queue) for stage in planned] == [
        ("check", None, "check"),
        ("scan", None, "scan"),
        ("measure", 0, "measure.a"),
        ("measure", 1, "measure.b"),
        ("solve", None, "solve"),
        ("evaluate", 0, "measure.a"),
        ("evaluate", 1, "measure.b"),
    ]
    assert [stage.after for stage in planned] == [(), (0,), (0,), (0,), (1, 2, 3), (4,), (4,)]
    assert len({(stage.kind, stage.shard) for stage in planned}) == len(planned)


def test_kinds_are_data() -> None:
    kinds = (StageKind("one", (), "q", per_target=True), StageKind("two", ("one",), "q", per_target=True))
    planned = plan_study(SPEC, kinds)
    assert [stage.after for stage in planned] == [(), (), (0,), (1,)], "a target waits for its own stages only"


def test_stages_that_read_no_budgets_are_told_none() -> None:
    for kind in KINDS:
        told = stage_spec(SPEC, kind, 1 if kind.per_target else None)
        for target in told["targets"]:
            assert ("budgets" in target) == ("tolerance" in target) == kind.reads_budgets
        assert told.get("target") == (1 if kind.per_target else None)
    assert "target" not in SPEC
    assert kind_named("measure").on_device
    assert not kind_named("scan").on_device
