"""Sandbox: how a stage's child is started and how all of it is ended.

| level        | what holds                                                                              |
|--------------|-----------------------------------------------------------------------------------------|
| `namespaces` | own user, network (unreachable) and PID namespace: killing its init kills every process |
| `rlimits`    | limits, own session, dies with the supervisor; a double fork could survive              |

Both levels: empty working folder, scrubbed environment, no new privileges, limits on address space, CPU time,
file size, open files, and no core dump.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

_NAMESPACES = ("unshare", "--net", "--map-root-user", "--pid", "--fork", "--kill-child")
_WITH_PROC = (*_NAMESPACES, "--mount-proc")
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
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


def isolation_level() -> str:
    """`namespaces` or `rlimits`: what children get on this machine."""
    return "namespaces" if namespace_prefix() else "rlimits"


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
    argv: Sequence[str], *, folder: Path, environment: dict[str, str], limits: Limits, log: IO[bytes], pipe_fd: int
) -> subprocess.Popen[bytes]:
    """Start `argv` in `folder`; `pipe_fd` stays open in it, output goes to `log`.

    Call it from a thread that lives as long as the child: the child dies with the thread that forked it.
    """
    return subprocess.Popen(
        [*namespace_prefix(), *argv],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        pass_fds=(pipe_fd,),
        preexec_fn=_restrict(limits, os.getpid()),
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
    return child.wait()
