"""Sandbox: how a stage's child is started and how all of it is ended.

| level        | what holds                                                                              |
|--------------|-----------------------------------------------------------------------------------------|
| `namespaces` | own user, network (unreachable) and PID namespace: killing its init kills every process |
| `rlimits`    | limits, own session, dies with the supervisor, which adopts and ends what forks away    |
| `off`        | own session only: for systems without these calls, and for an operator who says so      |

The first two: no new privileges, limits on address space, CPU time, file size, open files, and no core dump. All:
empty working folder and scrubbed environment.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import psutil

_NAMESPACES = ("unshare", "--net", "--map-root-user", "--pid", "--fork", "--kill-child")
_WITH_PROC = (*_NAMESPACES, "--mount-proc")
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_CHILD_SUBREAPER = 36
OPEN_FILES = 1024
PROCESSES = 4096
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """Bounds of one child; `memory_bytes` 0 leaves the address space free."""

    memory_bytes: int
    cpu_s: int
    file_bytes: int


@lru_cache
def namespace_prefix() -> tuple[str, ...]:
    """The command that puts a child into its own namespaces, or nothing where this machine forbids them."""
    if shutil.which("unshare") is None:
        return ()
    for prefix in (_WITH_PROC, _NAMESPACES):
        probe = subprocess.run([*prefix, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if probe.returncode == 0:
            return prefix
    return ()


class SandboxUnavailable(Exception):
    """The operator demands an isolation this machine does not allow."""


def isolation_level(wish: str = "auto") -> str:
    """`namespaces`, `rlimits` or `off`: what children get here. Raises `SandboxUnavailable` for a wish that fails."""
    if wish == "off" or sys.platform != "linux":
        if wish in ("namespaces", "rlimits"):
            raise SandboxUnavailable(f"{wish} exist on Linux only, this is {sys.platform}")
        return "off"
    if wish == "rlimits":
        return "rlimits"
    if namespace_prefix():
        return "namespaces"
    if wish == "namespaces":
        raise SandboxUnavailable("this machine forbids user namespaces, or lacks the program unshare")
    return "rlimits"


def hide_environment() -> None:
    """Keep other processes of this user, stage children among them, from reading this one's variables and memory."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


_owns_orphans = False


def own_orphans() -> None:
    """Say that this process has no children but stages: what a stage forks away comes to it and is ended with it."""
    global _owns_orphans
    if sys.platform == "linux":
        _owns_orphans = _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def child_environment(threads: int, code_folder: Path) -> dict[str, str]:
    """All that a child learns of its surroundings: where programs and code are, and how many threads to use."""
    thread_count = str(threads)
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(code_folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": thread_count,
        "MKL_NUM_THREADS": thread_count,
        "OPENBLAS_NUM_THREADS": thread_count,
    }


def start_child(
    argv: Sequence[str],
    *,
    folder: Path,
    environment: dict[str, str],
    limits: Limits,
    log: IO[bytes],
    pipe_fd: int,
    level: str = "auto",
) -> subprocess.Popen[bytes]:
    """Start `argv` in `folder`; `pipe_fd` stays open in it, output goes to `log`. `level` as in `isolation_level`.

    Call it from a thread that lives as long as the child: the child dies with the thread that forked it.
    """
    level = isolation_level(level)
    prefix = namespace_prefix() if level == "namespaces" else ()
    return subprocess.Popen(
        [*prefix, *argv],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        pass_fds=(pipe_fd,),
        preexec_fn=os.setsid if level == "off" else _restrict(limits, os.getpid()),
    )


def _restrict(limits: Limits, parent: int) -> Callable[[], None]:
    def restrict() -> None:
        os.setsid()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the supervisor died before the line above
            os._exit(1)
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if limits.memory_bytes:
            _limit(resource.RLIMIT_AS, limits.memory_bytes)
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 5))
        _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
        _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
        _limit(resource.RLIMIT_NPROC, PROCESSES)
        _limit(resource.RLIMIT_CORE, 0)

    return restrict


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))


def kill_child(child: subprocess.Popen[bytes]) -> int:
    """End the child with everything it started, at once; returns its exit status."""
    if child.poll() is None:
        try:
            # The first process in the session: with namespaces it is `unshare`, whose death kills the inner init.
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # gone between the poll and the signal
    status = child.wait()
    if _owns_orphans:
        end_orphans()
    return status


def end_orphans() -> int:
    """Kill every process below this one, until there is none; returns how many. For `own_orphans` processes only."""
    ended = 0
    while family := psutil.Process().children(recursive=True):
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
                ended += 1
        psutil.wait_procs(family, timeout=5.0)
    return ended
