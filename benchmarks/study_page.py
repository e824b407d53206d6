"""The study page of a model with 1,000 layers in headless Chromium: what crosses the wire, and how soon it is seen.

A report as `evaluate` writes it (six precisions per layer, 200 points of the front, nine assemblies) is published
through the store; the API runs as a process of its own. Every load starts with an empty cache.

    python -m benchmarks.study_page [--layers 1000] [--loads 5] [--screenshot page.png]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import insert

from benchmarks.bars import at_most, finish, print_table
from benchmarks.service_load import api_process, free_port
from service.blobs import Blobs
from service.settings import Settings
from service.store.database import Database
from service.store.models import ArtifactRow, ModelRow, StageRow, StudyRow

PRECISIONS = ("fp32", "w8a8", "w8a8-dynamic", "w4a8", "w4a16-g32", "w8a16")
BITS = {"fp32": 32, "w8a8": 8, "w8a8-dynamic": 8, "w4a8": 4, "w4a16-g32": 4, "w8a16": 8}
FRONT_POINTS, ASSEMBLIES = 200, 9
STUDY, SLUG = "study_0000000000000001", "cpu-1"
FIRST_PAINT = """() => new Promise(done => {
  const seen = () => performance.getEntriesByName("first-contentful-paint")[0];
  if (seen()) return done(seen().startTime);
  new PerformanceObserver(() => seen() && done(seen().startTime)).observe({type: "paint", buffered: true});
})"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--screenshot", type=Path)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium on this machine: install the package chromium")
    with tempfile.TemporaryDirectory(prefix="bitwright-page-") as folder, sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        settings = Settings(data_folder=Path(folder), port=free_port())
        with api_process(settings, lambda made: publish(made, options.layers)) as (port, _):
            loads = [load(browser, port) for _ in range(options.loads + 1)][1:]  # the first one warms the server
            if options.screenshot:
                load(browser, port, options.screenshot)
        browser.close()
    paint_ms, drawn_ms = (statistics.median(one[name] for one in loads) for name in ("paint_ms", "drawn_ms"))
    parts = loads[-1]["parts"]
    print_table(("resource", "bytes on the wire"), sorted(parts.items(), key=lambda part: -part[1]))
    print_table(
        ("load", "first paint ms", "charts drawn ms"),
        [(number + 1, one["paint_ms"], one["drawn_ms"]) for number, one in enumerate(loads)],
    )
    bars = [
        at_most(f"study page of {options.layers} layers, all resources gzipped", sum(parts.values()) / 1e3, "kB", 600),
        at_most("first contentful paint, empty cache", paint_ms, "ms", 1000),
    ]
    return finish("study_page", bars, charts_drawn_ms=drawn_ms)


def load(browser: Browser, port: int, screenshot: Path | None = None) -> dict[str, Any]:
    """One visit with an empty cache: bytes of every answer with its head, first paint, and when all charts stand."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    protocol = context.new_cdp_session(page)
    protocol.send("Network.enable")
    names: dict[str, str] = {}
    parts: dict[str, int] = {}
    protocol.on("Network.responseReceived", lambda told: names.update({told["requestId"]: told["response"]["url"]}))

    def finished(told: dict[str, Any]) -> None:
        address = names.get(told["requestId"], "")
        if address.startswith("http"):
            parts[address.split(str(port), 1)[-1]] = int(told["encodedDataLength"])

    protocol.on("Network.loadingFinished", finished)
    page.goto(f"http://127.0.0.1:{port}/studies/{STUDY}", wait_until="commit")
    paint_ms = page.evaluate(FIRST_PAINT)
    page.wait_for_selector("main[data-drawn=true]", timeout=60_000)
    drawn_ms = page.evaluate("performance.now()")
    if screenshot:
        page.screenshot(path=screenshot, full_page=True)
    assert page.locator("#layers tbody tr").count() > 0
    context.close()
    return {"paint_ms": paint_ms, "drawn_ms": drawn_ms, "parts": parts}


def publish(settings: Settings, layers: int) -> None:
    """A finished study with one report in the store."""
    blobs = Blobs(settings.resolved_blob_url)
    settings.upload_folder.mkdir(parents=True, exist_ok=True)
    path = settings.upload_folder / "report.json"
    path.write_text(json.dumps(report(layers)))
    print(f"report.json has {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    blob = blobs.adopt(path)
    spec = {
        "model": "model_1",
        "dataset": None,
        "seed": 0,
        "options": {},
        "targets": [
            {
                "hardware": SLUG,
                "operating_point": {"batch": 1, "threads": 1, "dims": {}},
                "budgets": {"latency_ms": "0.6x"},
                "tolerance": None,
            }
        ],
    }
    verdict = {"hardware": SLUG, "verdict": "chosen", "chosen": "gauss_newton", "sentence": "It is as good as it gets."}
    at = 1.7e9
    database = Database(settings.resolved_database_url)
    with database.write() as session:
        session.execute(
            insert(ModelRow).values(
                id="model_1", sha256="0", name="big.onnx", size_bytes=10**8, files=[], created_at=at
            )
        )
        session.execute(
            insert(StudyRow).values(
                id=STUDY, name="A thousand layers", model_id="model_1", spec=spec, spec_hash="0", state="succeeded",
                version=9, verdicts=[verdict], created_at=at, updated_at=at + 99, finished_at=at + 99,
            )
        )  # fmt: skip
        session.execute(
            insert(StageRow).values(
                id="stage_1", study_id=STUDY, position=0, kind="evaluate", shard=0, target=0, queue="q", pending=0,
                state="succeeded", attempt=1, max_attempts=3, fence=1, not_before=at, started_at=at, finished_at=at + 9,
            )
        )  # fmt: skip
        session.execute(
            insert(ArtifactRow).values(
                id="artifact_1", study_id=STUDY, stage_id="stage_1", target=0, name="report.json",
                media_type="application/json", sha256=blob.sha256, size_bytes=blob.size_bytes, created_at=at,
            )
        )  # fmt: skip
    database.close()


def report(count: int) -> dict[str, Any]:
    """A report with numbers as varied as real ones, so that it compresses no better than they do."""
    chance = random.Random(0)
    names = [f"/model/layers.{number // 8}/block_{number % 8}/attn/MatMul_{number}" for number in range(count)]
    layers = [layer(name, chance) for name in names]
    front = []
    precisions = {one["name"]: "fp32" for one in layers}
    order = chance.sample(names, count)
    for point in range(FRONT_POINTS):
        for name in order[point * count // FRONT_POINTS : (point + 1) * count // FRONT_POINTS]:
            precisions[name] = chance.choice(PRECISIONS[1:])
        loss = 10 ** (-6 + 5 * point / FRONT_POINTS) * chance.uniform(0.9, 1.1)
        front.append({"cost": 90 - 0.3 * point, "loss": loss, "exact": True, "precisions": dict(precisions)})
    sources = ["full_precision", "uniform", "uniform", "metric", "metric", "metric", "front", "front", "front"]
    labels = ["fp32", "uniform w8a8", "uniform w4a8", "gauss_newton", "kl", "hessian_trace", "f1", "f2", "f3"]
    assemblies = [assembly(label, source, layers, chance) for label, source in zip(labels, sources, strict=True)][
        :ASSEMBLIES
    ]
    target = {
        "hardware": SLUG, "device": "A processor", "runtime": "onnxruntime_cpu", "runtime_version": "1",
        "session_options": {}, "operating_point": {"batch": 1, "threads": 1, "dims": {}},
        "budgets": [{"resource": "latency_ms", "asked": "latency_ms ≤ 0.6x", "limit": 60.0}],
        "verdict": {"kind": "chosen", "chosen": "gauss_newton", "runner_up": "kl", "sentence": "", "infeasible": None},
        "latency_fit": {"sentence": "Predicted from 900 rows.", "runs": 16, "loo_mape": 0.02, "loo_max": 0.1},
        "assemblies": assemblies, "front": front, "front_resource": "latency_us", "layers": layers,
        "unquantized": [{"node": f"/softmax_{n}", "op_type": "Softmax", "reason": "no such kernel"} for n in range(60)],
        "artifacts": [],
    }  # fmt: skip
    return {"schema_version": 1, "loss": {"unit": "nats"}, "notes": [], "targets": [target]}


def layer(name: str, chance: random.Random) -> dict[str, Any]:
    weights = chance.randrange(1, 200) * 4096
    scale = 10 ** chance.uniform(-8, -3)
    choices = [
        {
            "precision": precision,
            "loss": 0.0
            if precision == "fp32"
            else scale * chance.uniform(0.5, 2) * (40 if BITS[precision] == 4 else 1),
            "standard_error": scale / 10,
            "costs": {
                "latency_us": weights * BITS[precision] / 1e6 * chance.uniform(0.8, 1.2),
                "size_bytes": weights * BITS[precision] / 8 + chance.randrange(900),
                "bops": float(weights * BITS[precision]),
            },
        }
        for precision in PRECISIONS
    ]
    chosen = chance.choice(PRECISIONS)
    return {
        "name": name, "kind": "matmul", "op_shape": "linear", "macs": weights, "weights": weights, "precision": chosen,
        "group": name, "choices": choices,
        "reason": f"adds {scale:.2g} to the loss; w8a8 would lose {scale * chance.random():.2g} less but costs "
        f"{chance.uniform(1, 90):.3g} µs where {chance.uniform(1, 90):.3g} µs are left",
    }  # fmt: skip


def assembly(name: str, source: str, layers: list[dict[str, Any]], chance: random.Random) -> dict[str, Any]:
    full = source == "full_precision"
    ms = 100.0 if full else chance.uniform(45, 62)
    loss = 0.0 if full else 10 ** chance.uniform(-5, -2)
    quality = {
        "loss": {"value": loss, "ci_low": loss * 0.8, "ci_high": loss * 1.3},
        "accuracy": {"value": 0.9, "ci_low": 0.88, "ci_high": 0.92},
    }
    return {
        "name": name, "also": [], "source": source, "metric": None, "gap": 0.0, "discarded": None,
        "meets_budgets": True,
        "precisions": {one["name"]: "fp32" if full else one["precision"] for one in layers},
        "predicted": {"latency_ms": ms * chance.uniform(0.96, 1.04), "size_bytes": 1e8}, "surrogate_loss": loss,
        "measured": {"median_ms": ms, "ci_low_ms": ms * 0.99, "ci_high_ms": ms * 1.01, "samples": 100},
        "size_bytes": 400_000_000 if full else chance.randrange(60, 110) * 10**6, "select": quality, "report": quality,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
