"""The levels of isolation: what each one holds, and that a worker says which one it has."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers import sandbox
from workers.sandbox import Limits, SandboxUnavailable, child_environment, isolation_level, kill_child, start_child

ROOT = Path(__file__).parents[2]
MEGABYTE = 1 << 20


def run_child(folder: Path, program: str, level: str, **limits: int) -> tuple[int, str]:
    """Exit status and output of a Python program as a child of that level."""
    bounds = Limits(**{"memory_bytes": 0, "cpu_s": 60, "file_bytes": MEGABYTE, **limits})
    reader, writer = os.pipe()
    with open(folder / "log", "w+b") as log:
        child = start_child(
            [sys.executable, "-c", program],
            folder=folder,
            environment=child_environment(1, ROOT),
            limits=bounds,
            log=log,
            pipe_fd=writer,
            level=level,
        )
        os.close(writer)
        os.close(reader)
        status = child.wait(30)
        kill_child(child)
        log.seek(0)
        return status, log.read().decode()


def test_what_a_machine_without_namespaces_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "namespace_prefix", tuple)
    assert isolation_level() == isolation_level("rlimits") == "rlimits"
    assert isolation_level("off") == "off"
    with pytest.raises(SandboxUnavailable, match="forbids user namespaces"):
        isolation_level("namespaces")


def test_what_a_system_without_linux_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert isolation_level() == isolation_level("off") == "off"
    with pytest.raises(SandboxUnavailable, match="darwin"):
        isolation_level("rlimits")


@pytest.mark.parametrize(
    ("program", "limits", "said"),
    [
        ("bytearray(1 << 30)", {"memory_bytes": 512 * MEGABYTE}, "MemoryError"),
        ("open('big', 'wb').write(b'x' * (2 << 20))", {}, "File too large"),
        ("while True: pass", {"cpu_s": 1}, ""),
        ("[open('/dev/null') for _ in range(2000)]", {}, "Too many open files"),
    ],
)
def test_limits_hold_without_namespaces(tmp_path: Path, program: str, limits: dict[str, int], said: str) -> None:
    status, output = run_child(tmp_path, f"l = {program}" if program[0] in "b[o" else program, "rlimits", **limits)
    assert status != 0
    assert said in output


def test_the_switch_off_leaves_no_limits(tmp_path: Path) -> None:
    status, output = run_child(tmp_path, "open('big', 'wb').write(b'x' * (2 << 20))", "off")
    assert (status, output) == (0, "")


OWNER = """
import os, subprocess, sys, time
from pathlib import Path
from workers.sandbox import Limits, child_environment, end_orphans, kill_child, own_orphans, start_child
own_orphans()
folder = Path(sys.argv[1])
program = '''
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("grandchild", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
time.sleep(600)
'''
reader, writer = os.pipe()
with open(folder / "log", "wb") as log:
    child = start_child(
        [sys.executable, "-c", program], folder=folder, environment=child_environment(1, folder),
        limits=Limits(0, 60, 1 << 20), log=log, pipe_fd=writer, level="rlimits",
    )
    while not (folder / "grandchild").exists() or not (folder / "grandchild").read_text():
        time.sleep(0.01)
    pid = int((folder / "grandchild").read_text())
    os.kill(pid, 0)
    kill_child(child)
try:
    os.kill(pid, 0)
except ProcessLookupError:
    print("ended")
"""


def test_a_double_fork_is_ended_without_namespaces(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    owner = subprocess.run(
        [sys.executable, "-c", OWNER, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert owner.stdout == "ended\n", owner.stderr


READER = """
import ctypes, os, sys
from workers.sandbox import hide_environment
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # giving up root hid it already; show it again
def seen():
    reader, writer = os.pipe()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
        try:
            text = open(f"/proc/{os.getppid()}/environ").read()
        except PermissionError:
            text = "refused"
        os.write(writer, (b"secret" if "SECRET=hush" in text else text.encode()))
        os._exit(0)
    os.close(writer)
    os.wait()
    return os.read(reader, 100).decode()
print(seen())
hide_environment()
print(seen())
"""


def test_a_stage_cannot_read_its_workers_variables() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SECRET": "hush"}
    done = subprocess.run([sys.executable, "-c", READER], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["secret", "refused"], done.stderr


def test_killing_ends_a_child_at_once(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with open(tmp_path / "log", "wb") as log:
        child = start_child(
            [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
            folder=tmp_path,
            environment=child_environment(1, ROOT),
            limits=Limits(0, 60, MEGABYTE),
            log=log,
            pipe_fd=writer,
        )
        time.sleep(0.2)
        assert kill_child(child) != 0
    os.close(writer)
    assert os.read(reader, 1) == b"", "nobody holds the pipe any more"
    os.close(reader)
