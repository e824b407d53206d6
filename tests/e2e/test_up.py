"""`bitwright-server up` as a user runs it: one command, from POST to verdict, and what kills do to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import bitwright
from tests.service.stack import quick_settings


@dataclass
class Running:
    """A server started by `up` and its output so far."""

    process: subprocess.Popen[bytes]
    url: str
    data_folder: Path
    log: Path

    def processes(self, word: str) -> list[int]:
        """Process ids of `up`'s children whose command line ends with the word."""
        listed = subprocess.run(
            ["ps", "axww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
        return [int(pid) for pid, parent, args in rows if int(parent) == self.process.pid and args.endswith(word)]


@contextlib.contextmanager
def server(data_folder: Path) -> Iterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = quick_settings(data_folder, "", port=port)
    log = data_folder.with_suffix(".log")
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.server_cli", "up"],
            env={**os.environ, **settings.as_environment()},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + 60
            while b"Bitwright is up" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield Running(process, f"http://127.0.0.1:{port}", data_folder, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with server(tmp_path_factory.mktemp("up") / "data") as found:
        yield found


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x0a" + os.urandom(64))
    return path


def submit(client: bitwright.Client, model_file: Path, **tiny: object) -> bitwright.Study:
    options = {"tiny": tiny} if tiny else {}
    return client.submit(model_file, hardware="tiny-cpu", budgets={"latency_ms": "0.6x"}, options=options)


def begun(client: bitwright.Client, study: bitwright.Study, marker: Path) -> None:
    """Wait until the stage that sleeps has left its marker."""
    for seen in client.changes(study.id, timeout_s=60):
        if marker.exists():
            return
        assert not seen.is_terminal, seen.error


def test_from_post_to_verdict_and_download(running: Running, model_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bitwright.cli"]
    environment = {"BITWRIGHT_URL": running.url, "PATH": ""}
    arguments = ["submit", str(model_file), "--hardware", "tiny-cpu", "--latency", "0.6x", "--wait", "--timeout", "60"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "chosen" in done.stdout
    with bitwright.Client(running.url) as client:
        slugs = [profile["slug"] for profile in client.hardware_profiles()]
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
        attempts = {stage["kind"]: stage["attempt"] for stage in done.raw["stages"]}
        assert attempts["scan"] == 2
        assert attempts["check"] == 1, "what was finished is not done again"


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


def test_ending_leaves_no_process_and_the_next_start_goes_on(tmp_path: Path, model_file: Path) -> None:
    data_folder = tmp_path / "data"
    with server(data_folder) as first, bitwright.Client(first.url) as client:
        once = str(tmp_path / "once")
        study = submit(client, model_file, kind="check", how="sleep", seconds=600, once=once)
        begun(client, study, Path(once))
        ending = time.monotonic()
    assert time.monotonic() - ending < 30
    left = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert str(data_folder) not in left
    with server(data_folder) as second, bitwright.Client(second.url) as client:
        done = client.wait(study.id, timeout_s=60)
        kinds = [event["kind"] for event in client.events(study.id)]
    assert done.succeeded
    assert kinds.count("stage_put_back") == 1
    assert done.raw["stages"][0]["attempt"] == 1, "a shutdown is no failed attempt"


def test_up_refuses_to_be_open_to_the_world(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workers.server_cli", "up", "--host", "0.0.0.0", "--data-folder", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "refusing to listen on 0.0.0.0" in refused.stderr
