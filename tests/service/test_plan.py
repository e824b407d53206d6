"""The stages of a study: order, fan-out per target and shard, and what each stage is told."""

from __future__ import annotations

from typing import Any

from service.studies.plan import KINDS, StageKind, kind_named, plan_study, stage_spec

SPEC: dict[str, Any] = {
    "model": "m",
    "dataset": "d",
    "targets": [
        {"hardware": "a", "operating_point": {"batch": 1}, "budgets": {"latency_ms": 1.0}, "tolerance": None},
        {"hardware": "b", "operating_point": {"batch": 8}, "budgets": {}, "tolerance": {"loss": 0.1}},
        {"hardware": "a", "operating_point": {"batch": 1}, "budgets": {"latency_ms": 2.0}, "tolerance": None},
    ],
    "options": {"pins": {"conv1": "w8a8"}, "metrics": ["kl"], "unknown": 1},
}
TWO = {**SPEC, "targets": SPEC["targets"][:2]}


def test_the_plan_of_two_targets() -> None:
    planned = plan_study(TWO)
    assert [(stage.kind, stage.target, stage.queue) for stage in planned] == [
        ("check", None, "check"),
        ("scan_shard", None, "scan"),
        ("scan", 0, "scan"),
        ("scan", 1, "scan"),
        ("measure", 0, "measure.a"),
        ("measure", 1, "measure.b"),
        ("solve", 0, "solve"),
        ("solve", 1, "solve"),
        ("evaluate", 0, "measure.a"),
        ("evaluate", 1, "measure.b"),
    ]
    assert [stage.after for stage in planned] == [(), (0,), (0, 1), (0, 1), (0,), (0,), (2, 4), (3, 5), (6,), (7,)]
    assert len({(stage.kind, stage.shard) for stage in planned}) == len(planned)


def test_shards_come_between_check_and_scan() -> None:
    planned = plan_study(TWO, shards=3)
    assert [stage.kind for stage in planned][:5] == ["check", "scan_shard", "scan_shard", "scan_shard", "scan"]
    assert [stage.after for stage in planned][1:6] == [(0,), (0,), (0,), (0, 1, 2, 3), (0, 1, 2, 3)]
    assert [stage.shard for stage in planned][1:4] == [0, 1, 2]


def test_one_worker_scans_one_kind_of_hardware_without_shards() -> None:
    twice = {**SPEC, "targets": [SPEC["targets"][0], SPEC["targets"][2]]}
    assert [stage.kind for stage in plan_study(twice)][:3] == ["check", "scan", "scan"]


def test_the_users_own_evaluator_is_waited_for_before_the_verdict() -> None:
    planned = plan_study({**TWO, "evaluator": {"metric": "mAP"}})
    assert [(stage.kind, stage.target, stage.after, stage.awaits) for stage in planned[-2:]] == [
        ("verdict", 0, (8,), "evaluations"),
        ("verdict", 1, (9,), "evaluations"),
    ]


def test_hardware_that_needs_no_device_goes_to_any_worker() -> None:
    queues = {stage.queue for stage in plan_study(TWO, anywhere={"b"})}
    assert queues == {"check", "scan", "solve", "measure.a"}


def test_kinds_are_data() -> None:
    kinds = (StageKind("one", (), "q", per_target=True), StageKind("two", ("one",), "q", per_target=True))
    planned = plan_study(TWO, kinds)
    assert [stage.after for stage in planned] == [(), (), (0,), (1,)], "a target waits for its own stages only"


def test_a_stage_is_told_what_it_reads_and_of_its_own_target_only() -> None:
    assert stage_spec(SPEC, kind_named("scan_shard"), None)["targets"] == [{"hardware": "a"}, {"hardware": "b"}]
    assert stage_spec(SPEC, kind_named("scan"), 1)["targets"] == [{"hardware": "b"}]
    assert stage_spec(SPEC, kind_named("scan"), 1)["options"] == {"metrics": ["kl"], "unknown": 1}
    assert "operating_point" in stage_spec({**SPEC, "dataset": None}, kind_named("scan"), 0)["targets"][0]
    assert len(stage_spec(SPEC, kind_named("check"), None)["targets"]) == 2, "budgets do not tell targets apart"
    measured = stage_spec(SPEC, kind_named("measure"), 2)
    assert measured == stage_spec(SPEC, kind_named("measure"), 0)
    assert measured["targets"] == [{"hardware": "a", "operating_point": {"batch": 1}}]
    assert measured["options"] == {"unknown": 1}
    assert stage_spec(SPEC, kind_named("solve"), 1)["targets"] == [SPEC["targets"][1]]
    assert stage_spec(SPEC, kind_named("scan_shard"), None, (1, 3))["shard"] == [1, 3]
    assert "shard" not in SPEC
    for kind in KINDS:
        goals = [target for target in stage_spec(SPEC, kind, 0 if kind.per_target else None)["targets"]]
        assert any("budgets" in target for target in goals) == (kind.sees == "goal")
