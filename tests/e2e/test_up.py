"""`bitwright-server up` as a user runs it: one command, from POST to verdict, and what kills do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitwright
from tests.e2e.running import Running, begun, server, submit, write_model


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with server(tmp_path_factory.mktemp("up") / "data") as found:
        yield found


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return write_model(tmp_path / "net.onnx")


def test_from_post_to_verdict_and_download(running: Running, model_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bitwright.cli"]
    environment = {"BITWRIGHT_URL": running.url, "PATH": ""}
    arguments = ["submit", str(model_file), "--hardware", "tiny-cpu", "--latency", "0.6x", "--wait", "--timeout", "60"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "chosen" in done.stdout
    with bitwright.Client(running.url) as client:
        slugs = [profile["slug"] for profile in client.hardware_profiles() if profile["live"]]
        study_id = done.stdout.split(":")[0]
        paths = client.download(study_id, tmp_path / "out")
    assert slugs == ["tiny-cpu"], "hardware that is absent is not announced"
    assert {path.name for path in paths} >= {"artifact_0.onnx", "report.json", "report.html", "front.json"}


def test_a_killed_worker_is_replaced_and_the_study_ends(running: Running, model_file: Path, tmp_path: Path) -> None:
    with bitwright.Client(running.url) as client:
        study = submit(client, model_file, kind="scan", how="sleep", seconds=600, once=str(tmp_path / "once"))
        begun(client, study, tmp_path / "once")
        (worker,) = running.processes("worker")
        os.killpg(worker, signal.SIGKILL)
        done = client.wait(study.id, timeout_s=60)
        assert done.succeeded, done.error
        ended = [(event["kind"], event["data"].get("stage")) for event in client.events(study.id)]
    assert ("attempt_lost", "scan") in ended or ("stage_put_back", "scan") in ended
    assert ended.count(("stage_started", "scan")) == 2
    assert ended.count(("stage_started", "check")) == 1, "what was finished is not done again"


def test_lost_and_foreign_messages_do_not_lose_a_study(running: Running, model_file: Path, tmp_path: Path) -> None:
    broker = running.data_folder / "broker"
    (broker / "0_empty.check.msg").write_bytes(b"")
    with bitwright.Client(running.url) as client:
        study = submit(client, model_file, kind="check", how="sleep", seconds=0.5)
        for message in broker.glob("*.msg"):
            message.unlink(missing_ok=True)
        assert client.wait(study.id, timeout_s=60).succeeded


def test_a_killed_api_comes_back(running: Running, model_file: Path) -> None:
    with bitwright.Client(running.url) as client:
        study = submit(client, model_file, kind="check", how="sleep", seconds=1.5)
        (api,) = running.processes("api")
        os.kill(api, signal.SIGKILL)
        assert client.wait(study.id, timeout_s=60).succeeded


def test_up_refuses_to_be_open_to_the_world(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workers.server_cli", "up", "--host", "0.0.0.0", "--data-folder", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "refusing to listen on 0.0.0.0" in refused.stderr
