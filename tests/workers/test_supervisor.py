"""A supervisor with a real child: what it takes in, what it refuses, and how it ends a child that misbehaves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from service.blobs import Blobs
from service.settings import Settings
from service.store.database import Database, database_now
from service.store.fleet import announce_worker
from service.store.models import ModelRow, StageRow, StudyRow
from service.store.stages import create_study
from service.store.studies import now, request_cancel
from service.studies.plan import plan_study
from tests.contracts.test_stage_claims import stages_of, study_of
from tests.service.stack import ONNX_BYTES, quick_settings
from workers import claims
from workers import supervisor as supervisor_module
from workers.sandbox import isolation_level
from workers.supervisor import Supervisor, parse_progress, sweep_folders


class Bench:
    """A database, a blob store and one supervisor."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database
        self.blobs = Blobs(settings.resolved_blob_url)
        self.supervisor = Supervisor(settings, database, self.blobs, "worker_test")
        path = settings.upload_folder / "model"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ONNX_BYTES)
        blob = self.blobs.adopt(path)
        files = [{"name": "model.onnx", "sha256": blob.sha256, "size_bytes": blob.size_bytes}]
        with database.write() as session:
            session.add(
                ModelRow(id="model_1", sha256=blob.sha256, name="m", size_bytes=1, files=files, created_at=now(session))
            )

    def study(self, tiny: dict[str, Any] | None = None, max_attempts: int = 2, shards: int = 1, **target: Any) -> str:
        spec = {
            "model": "model_1",
            "dataset": None,
            "targets": [{"hardware": "tiny-cpu", "budgets": {"latency_ms": "0.6x"}, **target}],
            "seed": 0,
            "options": {"tiny": tiny} if tiny else {},
        }
        with self.database.write() as session:
            stages = plan_study(spec, shards=shards)
            return create_study(session, name="s", spec=spec, stages=stages, max_attempts=max_attempts).id

    def run(self, study_id: str, name: str = "check") -> bool:
        return self.supervisor.run(stages_of(self.database, study_id)[name].id)

    def run_all(self, study_id: str) -> StudyRow:
        for _ in range(20):
            queued = [name for name, stage in stages_of(self.database, study_id).items() if stage.state == "queued"]
            if not queued:
                break
            self.run(study_id, queued[0])
        return study_of(self.database, study_id)


@pytest.fixture
def bench(sqlite_template: Path, tmp_path: Path) -> Any:
    path = tmp_path / "bitwright.sqlite3"
    path.write_bytes(sqlite_template.read_bytes())
    settings = quick_settings(tmp_path / "data", f"sqlite:///{path}")
    database = Database(settings.resolved_database_url)
    yield Bench(settings, database)
    left = [entry for entry in (settings.data_folder / "stages").iterdir()]
    database.close()
    assert left == [], "stage folders are removed"


def test_a_study_ends_with_its_verdict(bench: Bench) -> None:
    study = bench.run_all(bench.study())
    assert study.state == "succeeded", study.error
    assert study.verdicts is not None
    assert [verdict["verdict"] for verdict in study.verdicts] == ["chosen"]


def test_equal_input_is_not_computed_twice_and_a_new_budget_keeps_the_scan(bench: Bench) -> None:
    bench.run_all(bench.study())
    same, other = bench.study(), bench.study(budgets={"latency_ms": "0.5x"})
    for study_id in (same, other):
        assert bench.run_all(study_id).state == "succeeded"
    assert all(stage.reused_from for stage in stages_of(bench.database, same).values())
    reused = {name for name, stage in stages_of(bench.database, other).items() if stage.reused_from}
    assert reused == {"check", "scan0", "measure0"}


def test_another_device_measures_again(bench: Bench) -> None:
    bench.run_all(bench.study())
    profiles = [{"slug": "tiny-cpu", "device": {"name": "another"}}]
    with bench.database.write() as session:
        announce_worker(session, worker_id="w", host="h", version="0", queues=[], sandbox="rlimits", profiles=profiles)
    again = bench.study()
    bench.run_all(again)
    reused = {name for name, stage in stages_of(bench.database, again).items() if stage.reused_from}
    assert reused == {"check", "scan0"}


def test_a_users_error_keeps_its_code_and_hint(bench: Bench) -> None:
    study = bench.run_all(bench.study({"kind": "check", "how": "user_error"}))
    assert study.error == {
        "category": "user",
        "code": "op_unsupported",
        "message": "the model has the op Loop",
        "hint": "export it without control flow",
        "stage": "check",
    }


def test_a_fault_of_ours_is_infrastructure(bench: Bench) -> None:
    study = bench.run_all(bench.study({"kind": "scan", "how": "crash"}))
    assert study.state == "failed"
    assert study.error is not None
    assert (study.error["category"], study.error["code"]) == ("infrastructure", "stage_error")
    assert "RuntimeError: a fault of ours" in study.error["message"]


def test_a_killed_child_is_tried_again(bench: Bench, tmp_path: Path) -> None:
    once = {"kind": "check", "how": "die", "once": str(tmp_path / "once")}
    study_id = bench.study(once)
    assert bench.run_all(study_id).state == "succeeded"
    assert stages_of(bench.database, study_id)["check"].attempt == 2


def test_a_child_that_always_dies_fails_the_study(bench: Bench) -> None:
    study = bench.run_all(bench.study({"kind": "check", "how": "die"}))
    assert study.error is not None
    assert (study.error["category"], study.error["code"]) == ("infrastructure", "child_died")


def test_a_doubled_message_does_nothing(bench: Bench) -> None:
    study_id = bench.study()
    assert bench.run(study_id)
    version = study_of(bench.database, study_id).version
    assert not bench.run(study_id)
    assert not bench.supervisor.run("stage_unknown")
    assert study_of(bench.database, study_id).version == version


def running_in_background(bench: Bench, study_id: str) -> threading.Thread:
    thread = threading.Thread(target=bench.run, args=(study_id,))
    thread.start()
    deadline = time.monotonic() + 20
    while stages_of(bench.database, study_id)["check"].progress is None:
        assert time.monotonic() < deadline, "the child reports no progress"
        time.sleep(0.02)
    return thread


def test_cancelling_ends_the_child_at_the_next_beat(bench: Bench) -> None:
    study_id = bench.study({"kind": "check", "how": "sleep", "seconds": 600})
    thread = running_in_background(bench, study_id)
    with bench.database.write() as session:
        request_cancel(session, study_id)
    thread.join(10)
    assert not thread.is_alive()
    assert study_of(bench.database, study_id).state == "cancelled"


def test_a_supervisor_that_lost_its_lease_ends_its_child_and_writes_nothing(bench: Bench) -> None:
    study_id = bench.study({"kind": "check", "how": "sleep", "seconds": 600})
    thread = running_in_background(bench, study_id)
    with bench.database.write() as session:
        # What a reaper does when it finds the lease expired.
        taken = update(StageRow).where(StageRow.study_id == study_id, StageRow.state == "running")
        session.execute(taken.values(fence=StageRow.fence + 1, lease_until=database_now() - 1))
    thread.join(10)
    assert not thread.is_alive()
    assert stages_of(bench.database, study_id)["check"].state == "running"
    assert claims.reap(bench.database, backoff_s=0) == 1


def test_the_lease_outlives_a_long_stage(bench: Bench) -> None:
    study_id = bench.study({"kind": "check", "how": "sleep", "seconds": 2.5})
    assert bench.settings.lease_s < 2.5
    thread = running_in_background(bench, study_id)
    while thread.is_alive():
        assert claims.reap(bench.database, backoff_s=0) == 0
        time.sleep(0.1)
    assert stages_of(bench.database, study_id)["check"].state == "succeeded"


def test_wall_time_is_bounded(bench: Bench) -> None:
    settings = bench.settings.model_copy(update={"stage_wall_s": 1.0})
    bench.supervisor = Supervisor(settings, bench.database, bench.blobs, "w")
    study = bench.run_all(bench.study({"kind": "check", "how": "sleep", "seconds": 600}))
    assert study.error is not None
    assert study.error["code"] == "stage_timeout"


def test_what_a_deaf_child_started_dies_with_it(bench: Bench, tmp_path: Path) -> None:
    if isolation_level() != "namespaces":
        pytest.skip("this machine forbids user namespaces: a child's double fork survives it, and /readyz says so")
    marker = tmp_path / f"marker-{os.getpid()}"
    settings = bench.settings.model_copy(update={"stage_wall_s": 2.0})
    bench.supervisor = Supervisor(settings, bench.database, bench.blobs, "w")
    study = bench.run_all(bench.study({"kind": "check", "how": "deaf", "pid_file": str(marker)}))
    assert study.error is not None
    assert study.error["code"] == "stage_timeout"
    assert marker.exists(), "the grandchild has run"
    assert str(marker) not in subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout


def test_the_network_is_out_of_reach(bench: Bench) -> None:
    if isolation_level() != "namespaces":
        pytest.skip("this machine forbids network namespaces, and /readyz says so")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        study = bench.run_all(bench.study({"kind": "check", "how": "network", "port": port}))
    assert study.error is not None
    assert "unreachable" in study.error["message"].lower()


def test_a_flood_of_progress_is_cut_off(bench: Bench) -> None:
    study = bench.run_all(bench.study({"kind": "check", "how": "flood"}))
    assert study.error is not None
    assert study.error["code"] == "stage_flood"


def test_a_flood_of_words_is_cut_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "MAX_LOG_BYTES", 1 << 20)
    study = bench.run_all(bench.study({"kind": "check", "how": "chatter"}))
    assert study.error is not None
    assert study.error["code"] == "stage_flood"


def test_a_hoard_of_files_is_cut_off(bench: Bench) -> None:
    settings = bench.settings.model_copy(update={"stage_disk_bytes": 4 << 20})
    bench.supervisor = Supervisor(settings, bench.database, bench.blobs, "w")
    study = bench.run_all(bench.study({"kind": "check", "how": "hoard"}))
    assert study.error is not None
    assert study.error["code"] == "stage_too_large"


def test_an_output_that_is_a_link_is_refused(bench: Bench) -> None:
    study = bench.run_all(bench.study({"kind": "check", "how": "link"}))
    assert study.error is not None
    assert study.error["code"] == "bad_output"


def test_the_child_learns_no_secrets(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITWRIGHT_DATABASE_URL", "postgresql://secret")
    study = bench.run_all(bench.study({"kind": "check", "how": "secrets"}))
    assert study.error is not None
    seen = set(json.loads(study.error["message"]))
    allowed = {"PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LC_ALL", "LC_CTYPE"}
    assert seen <= allowed | {name for name in seen if name.endswith("_NUM_THREADS")}


def test_a_killed_supervisor_takes_its_child_along_and_another_finishes(bench: Bench, tmp_path: Path) -> None:
    marker = tmp_path / "once"
    study_id = bench.study({"kind": "check", "how": "sleep", "seconds": 600, "once": str(marker)})
    stage_id = stages_of(bench.database, study_id)["check"].id
    program = "from workers.tasks import run_stage; import sys; run_stage(sys.argv[1])"
    environment = {**os.environ, **bench.settings.as_environment()}
    process = subprocess.Popen([sys.executable, "-c", program, stage_id], env=environment)
    deadline = time.monotonic() + 20
    while stages_of(bench.database, study_id)["check"].progress is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    folder = next((bench.settings.data_folder / "stages").iterdir())
    process.kill()
    process.wait()
    while str(folder) in subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline, "the child outlived its supervisor"
        time.sleep(0.02)
    while not claims.reap(bench.database, backoff_s=0):
        assert time.monotonic() < deadline, "the lease does not expire"
        time.sleep(0.1)
    study = bench.run_all(study_id)
    assert study.state == "succeeded"
    assert stages_of(bench.database, study_id)["check"].attempt == 2
    assert folder.exists(), "a killed supervisor cannot clean up"
    assert sweep_folders(folder.parent, younger_s=0) == 1


def test_the_sweeper_leaves_living_stages_alone(bench: Bench) -> None:
    study_id = bench.study({"kind": "check", "how": "sleep", "seconds": 1.5})
    thread = running_in_background(bench, study_id)
    assert sweep_folders(bench.settings.data_folder / "stages", younger_s=0) == 0
    thread.join()
    assert stages_of(bench.database, study_id)["check"].state == "succeeded"


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b"null", b'{"done": 2, "total": 1, "unit": "", "message": ""}', b"\xff", b'{"done": "x"}'],
)
def test_other_lines_on_the_pipe_are_no_progress(line: bytes) -> None:
    assert parse_progress(line) is None


def test_progress_is_cleaned() -> None:
    line = json.dumps({"done": 1, "total": 2, "unit": "layers", "message": "a\x1b[31m\nb"}).encode()
    assert parse_progress(line) == {"done": 1, "total": 2, "unit": "layers", "message": "a[31mb"}
