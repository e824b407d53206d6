"""Scale-out: one scan by two workers against one, each with one compute thread, through the whole server.

Both runs start a server of their own with nothing stored: API, broker, reaper and the workers as processes. What is
timed is the scan alone, from the moment the first part of it is taken until the merged scan is stored, by the server's
own clock. The sensitivities of both runs are compared bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from sqlalchemy import select

from benchmarks.bars import at_least, finish, print_table
from benchmarks.models import transformer
from service.blobs import Blobs
from service.settings import Settings
from service.store.database import Database
from service.store.models import StageRow

SAMPLES, TOKENS, WIDTH = 768, 16, 384
GOAL = 1.7
START_S, SCAN_S = 120.0, 1500.0
SCANS = ("scan_shard", "scan")


@dataclass(frozen=True)
class Scan:
    """One scan: wall seconds, how many stages it took, and a hash of what it found."""

    workers: int
    seconds: float
    stages: int
    digest: str


@contextlib.contextmanager
def server(settings: Settings, workers: int) -> Iterator[str]:
    """`up` and as many more workers as are wanted; the address once all of them are announced."""
    environment = {**os.environ, **settings.as_environment(), "OMP_NUM_THREADS": "1"}
    log = (settings.data_folder / "server.log").open("wb")
    commands = [["up"], *[["worker"]] * (workers - 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "workers.server_cli", *command], env=environment, stdout=log, stderr=log
        )
        for command in commands
    ]
    url = f"http://127.0.0.1:{settings.port}"
    try:
        deadline = time.monotonic() + START_S
        while len(_workers(url)) < workers:
            assert time.monotonic() < deadline, (settings.data_folder / "server.log").read_text()
            time.sleep(0.25)
        yield url
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
        log.close()


def _workers(url: str) -> list[dict[str, Any]]:
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
        return list(httpx.get(f"{url}/readyz").json()["workers"])
    return []


def scan(model: Path, data: Path, folder: Path, workers: int) -> Scan:
    """Submit a study to a fresh server and wait until its scan has succeeded."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir()
    settings = Settings(data_folder=folder, port=port, stage_threads=1, hardware=("fake",))
    with server(settings, workers) as url, httpx.Client(base_url=url, timeout=120) as http:
        model_id = http.post("/v1/models", files={"file": ("model.onnx", model.read_bytes())}).json()["id"]
        dataset_id = http.post("/v1/datasets", files={"file": ("data.npz", data.read_bytes())}).json()["id"]
        point = {"batch": 1, "threads": 1, "dims": {"tokens": TOKENS}}
        target = {"hardware": "fake", "operating_point": point, "budgets": {"size_bytes": "0.5x"}}
        options = {"losses": {onnx.load(model).graph.output[0].name: {"kind": "mse"}}}
        body = {"model": model_id, "dataset": dataset_id, "targets": [target], "options": options}
        study = http.post("/v1/studies", json=body)
        assert study.status_code == 201, study.text
        address = study.headers["location"]
        deadline = time.monotonic() + SCAN_S
        while True:
            seen = http.get(address).json()
            stages = [stage for stage in seen["stages"] if stage["kind"] in SCANS]
            if stages[-1]["state"] == "succeeded":
                break
            assert not seen["is_terminal"], seen["error"]
            assert time.monotonic() < deadline, seen
            print(f"{workers} worker(s): {seen['stage']} {seen['progress']}", file=sys.stderr)
            time.sleep(3)
        http.post(f"{address}/cancel")
    return _found(settings, workers)


def _found(settings: Settings, workers: int) -> Scan:
    database, blobs = Database(settings.resolved_database_url), Blobs(settings.resolved_blob_url)
    with database.read() as session:
        rows = list(session.scalars(select(StageRow).where(StageRow.kind.in_(SCANS)).order_by(StageRow.position)))
    begun = min(row.started_at for row in rows if row.started_at is not None)
    ended = rows[-1].finished_at
    assert ended is not None
    digest = hashlib.sha256()
    for output in rows[-1].outputs or []:
        if output["name"] in ("sensitivity_0.json", "interactions_0.npz"):
            with blobs.open(output["sha256"]) as file:
                digest.update(_content(output["name"], file))
    database.close()
    return Scan(workers, ended - begun, len(rows), digest.hexdigest())


def _content(name: str, file: Any) -> bytes:
    if name.endswith(".json"):
        return json.dumps(json.load(file), sort_keys=True).encode()
    with np.load(file) as arrays:  # a zip carries the time it was written
        return b"".join(arrays[key].tobytes() for key in sorted(arrays.files))


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bitwright-scale-") as folder:
        root = Path(folder)
        model = transformer(root / "model.onnx")
        random = np.random.default_rng(0)
        np.savez(root / "data.npz", embeddings=random.standard_normal((SAMPLES, TOKENS, WIDTH), dtype=np.float32))
        scans = [scan(model, root / "data.npz", root / f"server{count}", count) for count in (1, 2)]
    print_table(
        ("workers", "stages of the scan", "seconds", "speed-up"),
        [(each.workers, each.stages, each.seconds, scans[0].seconds / each.seconds) for each in scans],
    )
    same = scans[0].digest == scans[1].digest
    print("sensitivities and interactions are equal bit for bit" if same else "sensitivities differ")
    return finish(
        "scale_out",
        [
            at_least("one scan by two workers against one", scans[0].seconds / scans[1].seconds, "x", GOAL),
            at_least("equal bit for bit", float(same), "", 1.0),
        ],
        cores=os.cpu_count(),
    )


if __name__ == "__main__":
    sys.exit(main())
