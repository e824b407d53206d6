"""A whole stack as an operator runs it: API, worker and reaper as processes, on a database and a broker.

`SqliteStack` keeps all in one folder; `PostgresStack` brings its own PostgreSQL and Redis. Both are killed and
started again piece by piece; nothing of them is shared with another test.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from service.settings import Settings
from service.store.database import Database
from service.store.fleet import live_workers
from service.store.migrate import migrate
from tests.faults.servers import PostgresServer, RedisServer, free_port
from tests.service.stack import quick_settings, study_body

ROOT = Path(__file__).parents[2]
ROLES = ("api", "worker", "reaper")
START_LIMIT_S = 60.0
END_LIMIT_S = 60.0


def wait_until(what: str, holds: Callable[[], Any], limit_s: float = 30.0) -> Any:
    """The first true answer of `holds`; an assertion with the words in `what` when there is none."""
    deadline = time.monotonic() + limit_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:g} s"
        time.sleep(0.02)
    return found


class Stack:
    """Processes by role, the client of their API, and a folder for all they keep."""

    key = ""
    stall_s = 6.0

    def __init__(self, **changes: object) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bitwright-stack-"))
        self.points = self.folder / "points"
        self.points.mkdir()
        self.port = free_port()
        self.settings: Settings = quick_settings(
            self.folder / "data",
            self._database_url(),
            broker_url=self._broker_url(),
            port=self.port,
            worker_silent_s=3.0,
            stall_s=self.stall_s,
            scan_shards=1,  # a worker that was killed counts as live for a while, and would add a shard
            **changes,
        )
        self.database = Database(self.settings.resolved_database_url)
        migrate(self.database)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.cleanups: list[Callable[[], object]] = []
        # No connection is kept: one that the server just closed for idleness would look like a fault.
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=30, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def _database_url(self) -> str:
        return ""

    def _broker_url(self) -> str:
        return ""

    def start(self, *roles: str) -> None:
        for role in roles or ROLES:
            self.spawn(role)
        self.await_ready()

    def spawn(self, role: str, name: str | None = None, *options: str, **environment: str) -> None:
        """Start one process of that role with these options; several of one role have names of their own."""
        with open(self.log(name or role), "ab") as log:
            self.processes[name or role] = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.pausing", role, *options],
                cwd=ROOT,
                env={
                    **os.environ,
                    **self.settings.as_environment(),
                    "FAULT_FOLDER": str(self.points),
                    "PYTHONPATH": str(ROOT),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def await_ready(self) -> None:
        """Wait until what was started serves."""
        if "api" in self.processes:
            wait_until("the API answers", self._answers, START_LIMIT_S)
        if "worker" in self.processes:
            wait_until("the worker is there", self.worker_ids, START_LIMIT_S)

    def _answers(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def worker_ids(self) -> list[str]:
        with self.database.read() as session:
            return [row.id for row in live_workers(session, self.settings.worker_silent_s)]

    def is_running(self, name: str) -> bool:
        return name in self.processes and self.processes[name].poll() is None

    def kill(self, name: str) -> None:
        """kill -9 of the process and its whole session, as the kernel or a power cut does it."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self, name: str, limit_s: float = 20.0) -> int:
        """SIGTERM, and the exit status."""
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(limit_s)

    def revive(self) -> None:
        """Start again what ended by itself, as `up`, systemd and compose do."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None and name in ROLES:
                self.spawn(name)

    def pool_processes(self, name: str = "worker") -> list[int]:
        """Process ids of a worker's pool: they run the stages."""
        return _children(self.processes[name].pid)

    def stage_processes(self) -> list[int]:
        """Process ids of all stage children, in whatever namespace."""
        listed = subprocess.run(["ps", "axww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
        rows = (line.split(None, 1) for line in listed.splitlines()[1:])
        mine = f"{self.settings.data_folder.absolute()}/stages/"
        return [int(pid) for pid, arguments in rows if "workers.stage_child" in arguments and mine in arguments]

    def clean_up(self) -> None:
        """Undo what a fault left to be undone."""
        while self.cleanups:
            self.cleanups.pop()()

    def arm(self, point: str) -> None:
        """The next process that comes by this point stops there; see `tests.faults.pausing`."""
        (self.points / f"arm.{point}").touch()

    def await_point(self, point: str) -> int:
        """Wait until a process stands at the point; its process id."""
        here = self.points / f"at.{point}"
        wait_until(f"a process comes to {point}", here.exists)
        return int(here.read_text())

    def release(self) -> None:
        """Nobody is stopped at any point any more, and whoever stands there goes on."""
        for file in self.points.glob("a*"):  # arm.* and at.*
            if file.name.startswith("at."):
                (self.points / file.name.replace("at.", "go.")).touch()
            file.unlink(missing_ok=True)

    def rearm(self) -> None:
        """Points may be armed again: forget earlier releases."""
        for file in self.points.iterdir():
            file.unlink(missing_ok=True)

    def submit(self, content: bytes | None = None, **tiny: object) -> str:
        """A new study whose model nobody has sent before; returns its id."""
        content = content or b"\x08\x0a" + os.urandom(64)
        answer = self.client.post("/v1/models", files={"file": ("net.onnx", content)})
        assert answer.status_code in (200, 201), answer.text
        body = study_body(str(answer.json()["id"]), options={"tiny": tiny} if tiny else {})
        answer = self.client.post("/v1/studies", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def study(self, study_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/studies/{study_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait(self, study_id: str, limit_s: float = END_LIMIT_S) -> dict[str, Any]:
        """The study once it has ended."""

        def ended() -> dict[str, Any] | None:
            self.revive()
            try:
                answer = self.client.get(f"/v1/studies/{study_id}")
            except httpx.TransportError:
                return None
            found = answer.json() if answer.status_code == 200 else {}
            return found if found.get("is_terminal") else None

        return dict(wait_until(f"study {study_id} ends", ended, limit_s))

    def events(self, study_id: str) -> list[dict[str, Any]]:
        return list(self.client.get(f"/v1/studies/{study_id}/events?limit=1000").json()["items"])

    def close(self) -> None:
        self.release()
        self.client.close()
        for name in list(self.processes):
            self.kill(name)
        self.database.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class SqliteStack(Stack):
    """SQLite and a folder of messages, as `bitwright-server up` has them."""

    key = "sqlite"
    stall_s = 3600.0  # nothing that happens to a folder may need the watchdog


class PostgresStack(Stack):
    """PostgreSQL and Redis, as production has them."""

    key = "postgresql"

    def __init__(self, **changes: object) -> None:
        self.postgres = PostgresServer()
        self.redis = RedisServer()
        self.postgres.start()
        self.redis.start()
        super().__init__(**changes)

    def _database_url(self) -> str:
        return self.postgres.url("postgres")

    def _broker_url(self) -> str:
        return self.redis.url()

    def close(self) -> None:
        super().close()
        self.redis.stop()
        self.postgres.stop()


STACKS: dict[str, type[Stack]] = {stack.key: stack for stack in (SqliteStack, PostgresStack)}


def _children(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "ax", "-o", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listed.splitlines()[1:])
    return [int(pid) for pid, of in rows if int(of) == parent]
