"""Load on the API: polls that find nothing new beside a bare FastAPI hello. Lists: `benchmarks.service_list`.

Both servers are processes of their own under the same uvicorn; rounds alternate between them. 16 connections poll 64
studies with their ETags.

    python -m benchmarks.service_load [--rounds 7] [--round-s 2]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil

from benchmarks.bars import Bar, at_least, at_most, finish, print_table
from benchmarks.http_load import Load, put_load, request_bytes
from service.settings import Settings
from service.store.database import Database
from service.store.fleet import announce_worker
from service.store.migrate import migrate
from service.version import VERSION

CONNECTIONS, POLLED = 16, 64
START_LIMIT_S = 60.0
HELLO = """
import uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.get("/hello")
async def hello() -> dict[str, str]:
    return {"hello": "world"}
uvicorn.run(app, host="127.0.0.1", port={port}, log_level="warning", access_log=False)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round-s", type=float, default=2.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bitwright-load-") as folder:
        bars = poll_bars(Path(folder), options.rounds, options.round_s)
    return finish("service_load", bars)


def poll_bars(folder: Path, rounds: int, round_s: float) -> list[Bar]:
    """Polls against hello, round by round; the ratio is the median of the rounds' ratios."""
    with (
        _hello() as hello_port,
        api_process(Settings(data_folder=folder / "polls", port=free_port())) as (api_port, api),
    ):
        polls = _poll_requests(api_port)
        hellos = [[request_bytes(hello_port, "/hello")]] * CONNECTIONS
        put_load(hello_port, hellos, 0.5)
        put_load(api_port, polls, 0.5)
        pairs: list[tuple[Load, Load]] = []
        for number in range(rounds):
            pairs.append((put_load(hello_port, hellos, round_s), put_load(api_port, polls, round_s)))
            print(
                f"round {number + 1}: hello {pairs[-1][0].per_second:.0f}/s, polls {pairs[-1][1].per_second:.0f}/s",
                file=sys.stderr,
            )
        rss_bytes = psutil.Process(api.pid).memory_info().rss
    rows = [
        (
            name,
            statistics.median(load.per_second for load in loads),
            statistics.median(load.percentile_ms(0.5) for load in loads),
            statistics.median(load.percentile_ms(0.99) for load in loads),
            dict(sum((load.statuses for load in loads), start=type(loads[0].statuses)())),
        )
        for name, loads in (("bare hello", [one for one, _ in pairs]), ("ETag polls", [one for _, one in pairs]))
    ]
    print_table(("requests", "per second", "p50 ms", "p99 ms", "statuses"), rows)
    ratio = statistics.median(polls.per_second / hello.per_second for hello, polls in pairs)
    unchanged = min(polls.statuses[304] / polls.statuses.total() for _, polls in pairs)
    return [
        at_least("ETag polls against a bare hello", ratio, "ratio", 0.6),
        at_least("polls answered 304", unchanged, "share", 1.0),
        at_most("bytes of a poll that finds nothing new", pairs[-1][1].answer_bytes, "B", 1000),
        at_most("memory of the API process", rss_bytes / 1e6, "MB", 150),
    ]


def _poll_requests(port: int) -> list[list[bytes]]:
    """Real studies that wait for a worker, polled with the ETags they have."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        model = http.post("/v1/models", files={"file": ("net.onnx", b"\x08\x0atiny")}).json()["id"]
        polls = []
        for number in range(POLLED):
            target = {"hardware": "cpu-1", "budgets": {"latency_ms": 1.0 + number}}
            made = http.post("/v1/studies", json={"model": model, "targets": [target]})
            made.raise_for_status()
            study = made.json()["id"]
            etag = http.get(f"/v1/studies/{study}").headers["etag"]
            polls.append(request_bytes(port, f"/v1/studies/{study}", If_None_Match=etag))
    return [polls[first::CONNECTIONS] for first in range(CONNECTIONS)]


@contextlib.contextmanager
def api_process(
    settings: Settings, prepare: Callable[[Settings], None] | None = None
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """`bitwright-server api` as a process of its own, on a migrated database with one worker announced."""
    database = Database(settings.resolved_database_url)
    migrate(database)
    with database.write() as session:
        announce_worker(
            session,
            worker_id="worker_1",
            host="here",
            version=VERSION,
            queues=["nothing"],
            sandbox="rlimits",
            profiles=[{"slug": "cpu-1", "device": {"name": "cpu"}}],
        )
    database.close()
    if prepare is not None:
        prepare(settings)
    environment = {**os.environ, **settings.as_environment(), "BITWRIGHT_LOG_LEVEL": "WARNING"}
    command = [sys.executable, "-m", "workers.server_cli", "api"]
    with _process(command, settings.port, "/healthz", environment) as process:
        yield settings.port, process


@contextlib.contextmanager
def _hello() -> Iterator[int]:
    port = free_port()
    with _process([sys.executable, "-c", HELLO.replace("{port}", str(port))], port, "/hello", dict(os.environ)):
        yield port


@contextlib.contextmanager
def _process(
    command: list[str], port: int, path: str, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {command}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
