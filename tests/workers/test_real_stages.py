"""The real stages in their sandbox, from upload to an answer: shards, rows that join the store, a new budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sqlalchemy import select

from kernels.registry import load_profile
from service.blobs import Blobs
from service.hardware_profiles.tables import known_table
from service.settings import Settings
from service.store.database import Database
from service.store.fleet import announce_worker
from service.store.models import DatasetRow, HardwareProfileRow, ModelRow, SavedPartRow, StageRow, StudyRow
from service.store.stages import create_study
from service.store.studies import now
from service.studies.inputs import stage_inputs
from service.studies.plan import kind_named, plan_study
from service.version import VERSION
from tests.service.stack import quick_settings
from workers.supervisor import Supervisor

SAMPLES = 390


def small_model(path: Path) -> None:
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape, dtype=np.float32) * 0.3, name)

    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h0"], name="first"),
        helper.make_node("Relu", ["h0"], ["r0"]),
        helper.make_node("Gemm", ["r0", "w1", "b1"], ["h1"], name="second"),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["y"], name="third"),
    ]
    constants = [weight("w0", 16, 32), weight("w1", 32, 32), weight("w2", 32, 4)]
    constants += [weight("b0", 32), weight("b1", 32), weight("b2", 4)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


class Service:
    """A database, a store and one supervisor that runs search's own stages on the deterministic device."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.database = settings, database
        self.blobs = Blobs(settings.resolved_blob_url)
        self.supervisor = Supervisor(settings, database, self.blobs, "worker_test")
        with database.write() as session:
            announce_worker(
                session,
                worker_id="worker_test",
                host="here",
                version=VERSION,
                queues=[],
                sandbox="rlimits",
                profiles=[load_profile(slug).to_json() for slug in ("fake", "t4", "h200")],
            )

    def upload(self, folder: Path) -> None:
        small_model(folder / "model.onnx")
        data = np.random.default_rng(1).standard_normal((SAMPLES, 16), dtype=np.float32)
        np.savez(folder / "data.npz", x=data)
        model, dataset = self.blobs.adopt(folder / "model.onnx"), self.blobs.adopt(folder / "data.npz")
        with self.database.write() as session:
            at = now(session)
            files = [{"name": "model.onnx", "sha256": model.sha256, "size_bytes": model.size_bytes}]
            fields = {"name": "m", "size_bytes": model.size_bytes, "files": files, "created_at": at}
            session.add(ModelRow(id="model_1", sha256=model.sha256, **fields))
            fields = {"name": "d", "format": "npz", "size_bytes": dataset.size_bytes, "created_at": at}
            session.add(DatasetRow(id="dataset_1", sha256=dataset.sha256, **fields))

    def study(
        self,
        *,
        hardware: tuple[str, ...] = ("fake",),
        files: dict[str, str] | None = None,
        **budgets: Any,
    ) -> str:
        point = {"batch": 1, "threads": 1, "dims": {}}
        targets = [
            {"hardware": slug, "operating_point": point, "budgets": budgets, "tolerance": None} for slug in hardware
        ]
        spec = {
            "model": "model_1", "dataset": "dataset_1", "targets": targets, "seed": 0,
            "options": {"scan_samples": 32, "metrics": ["kl"], "front_points": 3, "estimates": True},
        }  # fmt: skip
        if files is not None:
            spec["files"] = files
        names = ("check", "scan_shard", "scan", "measure", "solve") if files is None else ("answer",)
        kinds = tuple(map(kind_named, names))
        with self.database.write() as session:
            stages = plan_study(spec, kinds)
            return create_study(session, name="s", spec=spec, stages=stages, max_attempts=1).id

    def stages(self, study: str) -> list[StageRow]:
        with self.database.read() as session:
            rows = session.scalars(select(StageRow).where(StageRow.study_id == study).order_by(StageRow.position))
            return list(rows)

    def work_off(self, study: str) -> list[str]:
        done = []
        while queued := [stage for stage in self.stages(study) if stage.state == "queued"]:
            assert self.supervisor.run(queued[0].id)
            done.append(queued[0].kind)
        with self.database.read() as session:
            row = session.get_one(StudyRow, study)
        assert row.state == "succeeded", row.error
        return done


@pytest.fixture
def service(sqlite_template: Path, tmp_path: Path) -> Any:
    path = tmp_path / "bitwright.sqlite3"
    path.write_bytes(sqlite_template.read_bytes())
    settings = quick_settings(
        tmp_path / "data", f"sqlite:///{path}", stages="search.stages:STAGES", lease_s=60.0, beat_s=0.5
    )
    database = Database(settings.resolved_database_url)
    found = Service(settings, database)
    found.upload(tmp_path)
    yield found
    database.close()


def test_one_scan_of_many_numerics_feeds_answers_to_any_budget(service: Service) -> None:
    first = service.study(hardware=("fake", "t4"), size_bytes="0.6x")
    per_target = ("scan", "measure", "solve")
    assert service.work_off(first) == ["check", "scan_shard", *(kind for kind in per_target for _ in range(2))]
    with service.database.read() as session:
        parts = set(session.scalars(select(SavedPartRow.name)))
        profile = session.get_one(HardwareProfileRow, "fake")
        table = known_table(session, profile)
        stage = next(stage for stage in service.stages(first) if stage.kind == "measure")
        inputs = stage_inputs(session, session.get_one(StudyRow, first), stage)
    assert sum(name.startswith("candidate_") for name in parts) == 17, (
        "three layers in four precisions but one on the one, in two on the other"
    )
    assert "latency_table_0.json" in parts
    assert table is not None
    assert table["rows"], "what was measured is known of the device from now on"
    assert inputs.documents["known_latency_table_0.json"]["rows"] == table["rows"]
    assert inputs.key == stage.input_key, "rows that are known are no part of what a measurement depends on"

    scans = [stage for stage in service.stages(first) if stage.kind == "scan"]
    assert [(stage.target, stage.reused_from) for stage in scans] == [(0, None), (1, None)]
    near = {stage.kind: stage.state for stage in service.stages(service.study(hardware=("h200",), bops=1.0))}
    assert (near["scan"], near["measure"]) == ("succeeded", "queued"), "a device of known numerics needs no scan"

    solved = next(stage for stage in service.stages(first) if stage.kind == "solve")
    question = {output["name"]: output["sha256"] for output in solved.outputs or []}["question_0.npz"]
    other = service.study(files={"question_0.npz": question}, latency_ms={"relative": 0.5})
    assert service.work_off(other) == ["answer"], "no model, no scan"
    summary = service.stages(other)[0].summary
    assert summary is not None
    assert summary["answer"]["predicted"]["latency_ms"] <= summary["answer"]["limits"]["latency_ms"]
    assert set(summary["answer"]["precisions"]) <= {"first", "second", "third"}
