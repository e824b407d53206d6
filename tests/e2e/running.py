"""A server started by `bitwright-server up` for a test, and studies on it."""

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


def submit(client: bitwright.Client, model_file: Path, **tiny: object) -> bitwright.Study:
    options = {"tiny": tiny} if tiny else {}
    return client.submit(model_file, hardware="tiny-cpu", budgets={"latency_ms": "0.6x"}, options=options)


def begun(client: bitwright.Client, study: bitwright.Study, marker: Path) -> None:
    """Wait until the stage that sleeps has left its marker."""
    for seen in client.changes(study.id, timeout_s=60):
        if marker.exists():
            return
        assert not seen.is_terminal, seen.error


def write_model(path: Path) -> Path:
    """A file no other test has sent, so nothing of it is reused."""
    path.write_bytes(b"\x08\x0a" + os.urandom(64))
    return path
