"""The demo: the whole server on this machine, one real study to its verdict.

make demo           leaves the server running and prints the dashboard's address
make demo EXIT=1    stops there; the last line is a JSON summary
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bitwright import Client, Study

EXAMPLES = Path(__file__).parent
MODEL = EXAMPLES / "models" / "digits_resnet.onnx"
DATA = EXAMPLES / "data" / "digits.npz"
BUDGETS = {"latency_ms": "0.7x", "size_bytes": "0.2x"}
HARDWARE = "cpu-local"
PORT = 8300
START_S, STUDY_S = 60.0, 900.0

console = Console(stderr=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exit", action="store_true", help="stop after the verdict and print a JSON line")
    parser.add_argument("--data-folder", type=Path, default=Path(".bitwright"), help="where the server keeps its data")
    options = parser.parse_args()
    with _server(options.data_folder) as url, Client(url) as client:
        console.print(f"submitting {MODEL.name} with budgets {BUDGETS}")
        study = client.submit(MODEL, data=DATA, hardware=HARDWARE, budgets=BUDGETS, name="demo: digits ResNet")
        study = _wait(client, study)
        if study.state != "succeeded":
            console.print(f"[red]the study {study.state}[/]: {study.error}")
            return 1
        folder = options.data_folder / "demo" / study.id
        files = client.download(study.id, folder)
        report = client.report(study.id)
        summary = summarize(study, report, next(path for path in files if path.suffix == ".onnx"), options.data_folder)
        console.print(report["targets"][0]["verdict"]["sentence"])
        console.print(f"study: {url}/studies/{study.id}")
        if options.exit:
            print(json.dumps(summary))
            return 0
        console.print("the server stays up; Ctrl-C ends it")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


def summarize(study: Study, report: dict[str, Any], artifact: Path, data_folder: Path) -> dict[str, Any]:
    """The verdict's figures in one object: chosen beside full precision, uniform INT8 and HAWQ-V2."""
    target = report["targets"][0]
    rows = {name: row for row in target["assemblies"] for name in (row["name"], *row["also"])}
    chosen = rows[target["verdict"]["chosen"]]
    return {
        "study": study.id,
        "state": study.state,
        "verdict": target["verdict"]["kind"],
        "hardware": target["hardware"],
        "chosen": {"name": chosen["name"], **_figures(chosen)},
        "fp32": _figures(rows["fp32"]),
        "uniform_int8": _figures(rows["uniform w8a8"]),
        "hawq_v2": _figures(rows["hessian_trace"]),
        "budgets": {budget["resource"]: budget["limit"] for budget in target["budgets"]},
        "gap": chosen["gap"],
        "latency_fit_mape": target["latency_fit"]["loo_mape"],
        "artifact": str(artifact.resolve().relative_to(data_folder.resolve())),
    }


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    accuracy = row["report"]["accuracy"] if row["report"] else None
    return {
        "latency_ms_measured": row["measured"]["median_ms"],
        "latency_ms_predicted": row["predicted"]["latency_ms"],
        "size_bytes": row["size_bytes"],
        "size_bytes_counted": row["predicted"]["size_bytes"],
        "kl": row["select"]["loss"]["value"] if row["select"] else None,
        "kl_report": row["report"]["loss"]["value"] if row["report"] else None,
        "accuracy": accuracy["value"] if accuracy else None,
    }


def _wait(client: Client, study: Study) -> Study:
    """Poll the study and show the stage it is in."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("queued", total=None)
        for seen in client.changes(study.id, timeout_s=STUDY_S):
            study = seen
            progress = seen.progress
            bars.update(
                task,
                description=f"{seen.stage or seen.state}: {progress.message or progress.unit if progress else ''}"[:48],
                completed=progress.done if progress else 0,
                total=progress.total if progress else None,
            )
    return study


@contextmanager
def _server(data_folder: Path) -> Iterator[str]:
    """`bitwright-server up` on a free port, ended with everything it started."""
    port = _free_port()
    command = [sys.executable, "-m", "workers.server_cli", "up", "--data-folder", str(data_folder), "--port", str(port)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    data_folder.mkdir(parents=True, exist_ok=True)
    log_path = data_folder / "server.log"
    with log_path.open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            yield _address(server, log_path)
        finally:
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()


def _address(server: subprocess.Popen[str], log_path: Path) -> str:
    """The address the server prints once it answers and has a worker."""
    giving_up = threading.Timer(START_S, server.kill)
    giving_up.start()
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if "http://" in line:
                return "http://" + line.split("http://", 1)[1].strip().rstrip("/")
    finally:
        giving_up.cancel()
    raise SystemExit(f"the server did not start within {START_S:g} s; see {log_path}")


def _free_port() -> int:
    """The usual port, or any free one when something else listens there."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("no free port on 127.0.0.1")


if __name__ == "__main__":
    sys.exit(main())
