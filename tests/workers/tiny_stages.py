"""Stage functions small enough to watch: they follow the contract of `search.pipeline.STAGES` without any search.

`spec["options"]["tiny"]` makes one misbehave: {"kind": …, "how": "user_error" | "crash" | "die" | "sleep" | …}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRINTED = ("\x1b[31ma warning\x1b[0m of a library", "reading", "<img src=x onerror=window.hacked=1> {a|b}")
Progress = Callable[[int, int, str, str], None]


class TinyError(Exception):
    """An error as search raises them."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


def misbehave(kind: str, spec: dict[str, Any], folder: Path, progress: Progress) -> None:
    asked = spec["options"].get("tiny", {})
    if "ledger" in asked:
        with open(asked["ledger"], "a") as ledger:
            ledger.write(f"{kind}\n")
    if asked.get("kind") != kind:
        return
    once = asked.get("once")
    if once is not None:
        marker = Path(once)
        if marker.exists():
            return
        marker.write_text("been here")
    how = asked["how"]
    if how == "hold":
        progress(1, 100, "naps", "holding")
        await_file(asked["until"])
    if how == "print":
        print(PRINTED[0])
        print(PRINTED[1], Path.cwd() / "model.onnx", "/usr/lib/python3/site.py", file=sys.stderr)
        print(PRINTED[2])
        await_file(asked["until"])
    if how == "user_error":
        raise TinyError("op_unsupported", "the model has the op Loop", "export it without control flow")
    if how == "crash":
        raise RuntimeError("a fault of ours")
    if how == "die":
        ctypes.string_at(0)  # a segmentation fault, as native code has them
    if how == "sleep":
        progress(1, 100, "naps", "sleeping")
        time.sleep(float(asked["seconds"]))
    if how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pid_file = asked["pid_file"]
        subprocess.Popen(
            [sys.executable, "-c", f"import os,time; open({pid_file!r},'w').write('x'); time.sleep(600)"],
            start_new_session=True,
        )
        time.sleep(600)
    if how == "network":
        socket.create_connection(("127.0.0.1", int(asked["port"])), timeout=2).close()
    if how == "flood":
        fd = int(sys.argv[sys.argv.index("--pipe") + 1])
        while True:
            os.write(fd, b"x" * 65536)
    if how == "chatter":
        while True:
            print("x" * 1000)
    if how == "hoard":
        for number in range(1000):
            (folder / f"hoard_{number}").write_bytes(b"x" * (1 << 20))
            time.sleep(0.02)
    if how == "link":
        (folder / "evil.json").symlink_to("/etc/passwd")
    if how == "secrets":
        raise TinyError("environment", json.dumps(dict(os.environ)), "")


def await_file(path: str) -> None:
    """Stand here until a test makes that file."""
    while not Path(path).exists():
        time.sleep(0.02)


def result(folder: Path, names: dict[str, Any], **summary: Any) -> dict[str, Any]:
    for name, content in names.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return {"outputs": list(names), "summary": summary}


def check(spec: dict[str, Any], folder: Path, progress: Progress) -> dict[str, Any]:
    misbehave("check", spec, folder, progress)
    if spec["options"].get("tiny", {}).get("how") == "link":
        return {"outputs": ["evil.json"], "summary": {}}
    size = (folder / "model.onnx").stat().st_size
    return result(folder, {"graph.json": {"size_bytes": size}}, layers=2)


ROWS = 4


def scan_row(row: int, spec: dict[str, Any], folder: Path) -> None:
    """One row of a scan, kept in `saved/` and never computed where it lies there already."""
    (folder / "saved").mkdir(exist_ok=True)
    path = folder / "saved" / f"row_{row}.json"
    if path.exists():
        return
    asked = spec["options"].get("tiny", {})
    if "rows" in asked:
        with open(asked["rows"], "a") as computed:
            computed.write(f"{row}\n")
        time.sleep(float(asked.get("row_s", 0)))
    if asked.get("die_at_row") == row and not Path(asked["once"]).exists():
        if Path(asked["once"]).parent.exists():  # else it dies each time
            Path(asked["once"]).write_text("been here")
        os._exit(9)
    if asked.get("hold_at_row") == row and not Path(asked["once"]).exists():
        Path(asked["once"]).write_text("been here")
        await_file(asked["until"])
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"row": row}))
    partial.rename(path)


def scan_shard(spec: dict[str, Any], folder: Path, progress: Progress) -> dict[str, Any]:
    misbehave("scan_shard", spec, folder, progress)
    index, count = spec["shard"]
    for row in range(index, ROWS, count):
        scan_row(row, spec, folder)
        progress(row, ROWS, "candidates", f"layer {row}")
    return result(folder, {})


def scan(spec: dict[str, Any], folder: Path, progress: Progress) -> dict[str, Any]:
    assert all("budgets" not in target for target in spec["targets"])
    misbehave("scan", spec, folder, progress)
    for row in range(ROWS):
        scan_row(row, spec, folder)
        progress(row + 1, ROWS, "candidates", f"layer {row}")
    size = json.loads((folder / "graph.json").read_text())["size_bytes"]
    done = result(folder, {"sensitivity.json": {"a": size * 0.01}})
    misbehave("scan output", spec, folder, progress)
    return done


def measure(spec: dict[str, Any], folder: Path, progress: Progress) -> dict[str, Any]:
    misbehave("measure", spec, folder, progress)
    return result(folder, {"latency_0.json": {"a": 10.0}})


def solve(spec: dict[str, Any], folder: Path, progress: Progress) -> dict[str, Any]:
    misbehave("solve", spec, folder, progress)
    latency = json.loads((folder / "latency_0.json").read_text())["a"]
    return result(folder, {"plans_0.json": plans(spec["targets"][0], latency), "question_0.npz": "the question"})


def evaluate(spec: dict[str, Any], folder: Path, progress: Progress) -> dict[str, Any]:
    misbehave("evaluate", spec, folder, progress)
    (target,) = spec["targets"]
    hardware = target["hardware"]
    if "evaluator" in spec:
        finalists = [
            {"name": name, "file": f"finalist_{position}.onnx", "source": "metric", "meets_budgets": True,
             "latency_ms": 1.0 + position, "size_bytes": 10}
            for position, name in enumerate(("fp32", "mixed"))
        ]  # fmt: skip
        return result(folder, {each["file"]: "x" for each in finalists}, finalists=finalists)
    hostile = "<img src=x onerror=window.hacked=1>{a|b}</script>"
    return result(
        folder,
        {
            "report.json": {"schema_version": 1, "loss": {"unit": "nats"}, "targets": [document(hardware, hostile)]},
            "report.html": "<!doctype html><title>report</title><p>tiny",
            "front.json": [{"hardware": hardware, "front": FRONT, "assemblies": []}],
            "bit_plan_0.json": {"layers": []},
            "session_options_0.json": {},
            "artifact_0.onnx": "x" * 1000,
        },
        verdicts=[{"hardware": hardware, "verdict": "chosen", "chosen": hostile, "sentence": f"{hostile} is chosen."}],
    )


def plans(target: dict[str, Any], latency: float) -> dict[str, Any]:
    """What a solve leaves of one target, as search writes it; costs of the front in microseconds."""
    front = [{**point, "cost": 1000 * point["cost"], "gap": 0.0} for point in FRONT]
    plan = {
        "name": "gauss_newton", "source": "metric", "metric": "gauss_newton", "precisions": {"a": "w4a8", "b": "w8a8"},
        "predicted": {"latency_ms": latency}, "surrogate_loss": 0.03, "gap": 0.0,
    }  # fmt: skip
    return {
        "plans": [plan], "limits": {"latency_ms": 1.8}, "front": front, "front_resource": "latency_us",
        "front_metric": "gauss_newton", "full_precision": {"latency_ms": 3.0, "size_bytes": 40_000}, "infeasible": None,
        "lookup": {
            "groups": [{"layers": ["a"], "precisions": ["w4a8"]}, {"layers": ["b"], "precisions": ["w8a8"]}],
            "points": [[point["cost"], point["loss"], 0.0, "00"] for point in front],
        },
        "same_as": {}, "hardware": target["hardware"],
    }  # fmt: skip


def answer(spec: dict[str, Any], folder: Path, progress: Progress) -> dict[str, Any]:
    misbehave("answer", spec, folder, progress)
    (target,) = spec["targets"]
    assert (folder / "question_0.npz").read_text() == json.dumps("the question").strip('"')
    found = {
        "hardware": target["hardware"], "metric": spec.get("metric") or "gauss_newton", "limits": target["budgets"],
        "precisions": {"a": "w4a8"}, "predicted": {"latency_ms": 1.0}, "surrogate_loss": 0.2, "gap": 0.0,
        "infeasible": None,
    }  # fmt: skip
    return result(folder, {"answer.json": found}, answer=found)


def verdict(spec: dict[str, Any], folder: Path, progress: Progress) -> dict[str, Any]:
    (target,) = spec["targets"]
    metric = spec["evaluator"]["metric"]
    best = max(spec["evaluations"], key=lambda each: each["metrics"][metric])
    found = {"hardware": target["hardware"], "verdict": "chosen", "chosen": best["finalist"]}
    report = {"schema_version": 1, "loss": {"unit": "nats"}, "targets": [document(found["hardware"], best["finalist"])]}
    return result(folder, {"report.json": report}, verdicts=[{**found, "sentence": f"{best['finalist']} is chosen."}])


FRONT = [
    {"cost": 1.0 + 0.2 * step, "loss": 0.5 / (1 + step) ** 2, "exact": True, "precisions": {"a": "w4a8", "b": "w8a8"}}
    for step in range(8)
]


def document(hardware: str, hostile: str) -> dict[str, Any]:
    """One target of a report, as search writes it."""

    def assembly(
        name: str, source: str, ms: float, loss: float, size: int, discarded: str | None = None
    ) -> dict[str, Any]:
        quality = {
            "loss": {"value": loss, "ci_low": loss * 0.9, "ci_high": loss * 1.1},
            "accuracy": {"value": 1 - loss},
        }
        return {
            "name": name, "also": [], "source": source, "metric": None, "precisions": {}, "gap": 0.0,
            "predicted": {"latency_ms": ms * 1.02}, "size_bytes": size, "discarded": discarded,
            "measured": {"median_ms": ms, "ci_low_ms": ms * 0.98, "ci_high_ms": ms * 1.02, "samples": 30},
            "select": quality, "report": quality,
        }  # fmt: skip

    def layer(name: str, precision: str, loss: float) -> dict[str, Any]:
        return {
            "name": name, "kind": "conv2d", "op_shape": None, "macs": 1000, "weights": 4096, "precision": precision,
            "group": name, "reason": f"{precision} saves the most time per loss",
            "choices": [{"precision": precision, "loss": loss, "standard_error": loss / 10, "costs": {}}],
        }  # fmt: skip

    return {
        "hardware": hardware, "device": "tiny", "runtime": "tiny", "front": FRONT, "front_resource": "latency_us",
        "budgets": [{"resource": "latency_ms", "asked": "latency_ms ≤ 0.6x full precision", "limit": 1.8}],
        "verdict": {"kind": "chosen", "chosen": hostile, "runner_up": "uniform w8a8", "sentence": ""},
        "latency_fit": {"sentence": "Predicted from 12 table rows and 8 end-to-end runs.", "runs": 8},
        "assemblies": [
            assembly("fp32", "full_precision", 3.0, 0.0, 40_000),
            assembly("uniform w8a8", "uniform", 1.9, 0.02, 10_000),
            assembly(hostile, "metric", 1.7, 0.03, 8_000),
            assembly("uniform w4a8", "uniform", 1.2, 0.4, 5_000, "the runtime ran conv1 in float"),
        ],
        "layers": [layer(hostile, "w4a8", 0.02), layer("b", "w8a8", 0.004), layer("head", "fp32", 0.0)],
        "precisions": [{"precision": "w4a8", "op": "linear", "recipe": hostile, "sentence": f"4 bit {hostile}"}],
        "unquantized": [], "artifacts": [],
    }  # fmt: skip


STAGES = {
    "check": check, "scan_shard": scan_shard, "scan": scan, "measure": measure, "solve": solve, "evaluate": evaluate,
    "answer": answer, "verdict": verdict,
}  # fmt: skip
