"""The client against a live API: submit, wait, download, and errors one can act on."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import bitwright
from bitwright.printed import PrintedLines
from bitwright.records import Study
from service.settings import Settings
from service.store.database import Database
from tests.contracts.test_rest_api import publish
from tests.contracts.test_stage_claims import ERROR, claimed
from workers import claims
from workers.claims import StageLog


def test_the_public_names_are_pinned() -> None:
    assert bitwright.__all__ == [
        "AccessDenied", "Allocation", "ApiError", "Artifact", "BitwrightError", "Check", "Client", "Conflict",
        "DamagedDownload", "InvalidRequest", "NotFound", "Progress", "ServerUnreachable", "Study", "StudyError",
        "Thresholds", "WaitTimeout", "audit_target", "check_report", "convert",
    ]  # fmt: skip
    assert (Path(bitwright.__file__).parent / "py.typed").exists()


def submit(client: bitwright.Client, model_file: Path, **changes: Any) -> Study:
    return client.submit(model_file, hardware="tiny-cpu", **{"budgets": {"latency_ms": "0.6x"}, **changes})


def test_submit_and_wait(client: bitwright.Client, model_file: Path, tmp_path: Path, settings: Settings) -> None:
    data = tmp_path / "d.npz"
    data.write_bytes(b"PK\x03\x04data")
    study = submit(client, model_file, data=data, threads=2, dims={"sequence": 128}, name="mine")
    assert (study.name, study.state, study.is_terminal) == ("mine", "queued", False)
    point = study.raw["spec"]["targets"][0]["operating_point"]
    assert point == {"batch": None, "threads": 2, "dims": {"sequence": 128}}
    end = threading.Timer(0.3, publish, (settings, study.id, {"report.json": b"{}"}))
    end.start()
    seen: list[str] = []
    done = client.wait(study.id, timeout_s=20, on_change=lambda one: seen.append(one.state))
    end.join()
    assert done.succeeded
    assert done.is_terminal
    assert done.verdicts == ({"hardware": "tiny-cpu", "verdict": "chosen"},)
    assert seen[0] == "queued"
    assert seen[-1] == "succeeded"


def test_uploaded_things_are_reused_by_id(client: bitwright.Client, model_file: Path) -> None:
    model = client.upload_model(model_file)
    assert client.upload_model(model_file) == model
    study = client.submit(model, hardware="tiny-cpu", tolerance={"accuracy_drop": 0.01})
    assert study.raw["spec"]["targets"][0]["tolerance"] == {"accuracy_drop": 0.01}


def test_waiting_has_an_end(client: bitwright.Client, model_file: Path) -> None:
    study = submit(client, model_file)
    begun = time.monotonic()
    with pytest.raises(bitwright.WaitTimeout, match="goes on"):
        client.wait(study.id, timeout_s=0.5)
    assert 0.5 <= time.monotonic() - begun < 10
    assert client.cancel(study.id).is_terminal
    with pytest.raises(bitwright.Conflict) as refused:
        client.report(study.id)
    assert refused.value.code == "not_ready"


def test_errors_carry_code_and_hint(client: bitwright.Client, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(bitwright.NotFound) as unknown:
        client.study("study_x")
    assert (unknown.value.status, unknown.value.code) == (404, "not_found")
    assert unknown.value.request_id
    with pytest.raises(bitwright.InvalidRequest, match="/targets/0/budgets/latency_ms"):
        submit(client, model_file, budgets={"latency_ms": "fast"})
    pickle = tmp_path / "m.onnx"
    pickle.write_bytes(b"\x80\x04pickle")
    with pytest.raises(bitwright.InvalidRequest, match=r"torch\.onnx\.export"):
        client.upload_model(pickle)
    with pytest.raises(bitwright.BitwrightError, match="cannot read"):
        client.upload_model(tmp_path / "none.onnx")


def test_no_server_is_said_plainly() -> None:
    client = bitwright.Client("http://127.0.0.1:9", retries=0)
    with pytest.raises(bitwright.ServerUnreachable, match="bitwright-server up"):
        client.study("study_x")


def test_a_failed_study_tells_why(client: bitwright.Client, model_file: Path, database: Database) -> None:
    study = submit(client, model_file)
    assert claims.fail(database, claimed(database, study.id, "check"), ERROR)
    failed = client.wait(study.id, timeout_s=5)
    assert not failed.succeeded
    assert failed.error == bitwright.StudyError("user", "op_unsupported", "Loop", "")


def test_download_front_and_events(
    client: bitwright.Client, model_file: Path, tmp_path: Path, settings: Settings
) -> None:
    study = submit(client, model_file)
    content = bytes(range(256)) * 40
    front = [{"hardware": "tiny-cpu", "front": [{"cost": 1.0, "loss": 0.5}], "assemblies": []}]
    publish(settings, study.id, {"artifact_0.onnx": content, "front.json": json.dumps(front).encode()})
    folder = tmp_path / "out"
    part = folder / ".artifact_0.onnx.part"
    folder.mkdir()
    part.write_bytes(content[:5000])  # an earlier download broke off here
    paths = client.download(study.id, folder)
    assert [path.name for path in paths] == ["artifact_0.onnx", "front.json"]
    assert paths[0].read_bytes() == content
    assert not part.exists()
    changed = paths[0].stat().st_mtime_ns
    client.download(study.id, folder)
    assert paths[0].stat().st_mtime_ns == changed, "a whole file is not fetched again"
    part.write_bytes(b"rubbish")
    paths[0].unlink()
    with pytest.raises(bitwright.DamagedDownload, match="sha256"):
        client.download(study.id, folder)
    assert not part.exists()
    assert not paths[0].exists()
    assert client.front(study.id)["front"] == [{"cost": 1.0, "loss": 0.5}]
    events = list(client.events(study.id))
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "created"
    assert list(client.events(study.id, events[-2]["seq"])) == events[-1:]
    assert kinds.count("stage_succeeded") == 5


def test_studies_are_listed_across_pages(client: bitwright.Client, model_file: Path) -> None:
    sent = [submit(client, model_file, name=f"study {number}").id for number in range(3)]
    assert [study.id for study in client.studies(state="queued", hardware="tiny-cpu")] == sent[::-1]
    assert list(client.studies(state="failed")) == []
    rows = client.compare(sent[:2])
    assert [(row["study"], row["verdict"], row["latency_ms"]) for row in rows] == [
        (sent[0], "queued", None),
        (sent[1], "queued", None),
    ]


def test_lines_are_told_once(client: bitwright.Client, model_file: Path, database: Database) -> None:
    study = submit(client, model_file)
    assert client.log(study.id) == []
    held = claimed(database, study.id, "check")
    printed = PrintedLines(client, study.id)
    for text, news in [("a\nb", ["a", "b"]), ("b\nc", ["c"]), ("b\nc", []), ("x\ny", ["x", "y"]), ("y\ny", ["y"])]:
        claims.beat(database, held, lease_s=60, printed=StageLog(1, text, False))
        assert printed.news() == [("check", line) for line in news]
    (item,) = client.log(study.id, stage="check", lines=1)
    assert (item["lines"], item["is_cut"]) == (["y"], True)
    assert client.log(study.id, stage="scan") == []
