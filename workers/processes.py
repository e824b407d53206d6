"""Processes of `bitwright-server up`: started together, started again when one dies, ended together."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.supervisor import CODE_FOLDER

log = logging.getLogger(__name__)
RESTART_AFTER_S = 1.0
END_LIMIT_S = 15.0


@dataclass
class ManagedProcess:
    """One command that is kept running."""

    name: str
    arguments: Sequence[str]
    environment: dict[str, str]
    restarts: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _started_at: float = 0.0

    def keep_running(self) -> None:
        """Start it, or start it again when it died, but at most once a second."""
        process = self._process
        if process is not None and process.poll() is None:
            return
        if process is not None:
            if time.monotonic() - self._started_at < RESTART_AFTER_S:
                return
            self.restarts += 1
            log.warning("%s ended with status %s; starting it again", self.name, process.returncode)
        environment = {**os.environ, **self.environment, "PYTHONPATH": str(CODE_FOLDER)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", *self.arguments], stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        self._started_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def ask_to_end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def end(self, deadline: float) -> None:
        """Wait until `deadline` (monotonic), then kill whatever is left of it. Leases of killed stages run out."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("%s does not end; killing it", self.name)
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all of it has ended
        self._process.wait()


def end_all(processes: Sequence[ManagedProcess]) -> None:
    for process in processes:
        process.ask_to_end()
    deadline = time.monotonic() + END_LIMIT_S
    for process in processes:
        process.end(deadline)
