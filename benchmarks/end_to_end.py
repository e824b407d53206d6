"""From file to verdict: seconds and peak memory per stage, and the chosen assembly against runtime defaults.

The opponents are what a user has without us: the submitted file and a uniform w8a8 file, each opened in ONNX Runtime
and in OpenVINO with default options. All are timed in one interleaved run. A later target takes what an earlier one's
scan has found.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bars import Bar, at_least, at_most, finish, print_table
from benchmarks.models import resnet18
from kernels.cpu import has_bf16, this_cpu
from kernels.microbench import measure_interleaved
from kernels.operating_point import OperatingPoint
from kernels.registry import BF16_PROFILE
from search.artifact.qdq import export_assembly
from search.artifact.session import open_model
from search.candidates.assemble import assemble
from search.candidates.refit import refit_sequentially
from search.data.chunking import chunk_size
from search.data.dataset import load_dataset, split_dataset
from search.evaluation.quality import run_in_chunks
from search.graph import Graph
from search.latency.measure import END_TO_END, random_inputs, runner
from search.onnx_import import operating_shapes
from search.pipeline import STAGES
from search.simulation.torch_simulator import TorchSimulator
from search.study_folder import StudyFolder

EXAMPLES = Path(__file__).parent.parent / "examples"
PROFILES = {"cpu-local": "onnxruntime_cpu", "cpu-local-openvino": "openvino"}
BUDGETS: dict[str, dict[str, Any]] = {BF16_PROFILE: {"latency_ms": "1.5x"}}
"""There full precision is faster than int8 on small models, so the question is what fewer bytes cost in time."""
MEMORY_UNIT = 1024  # ru_maxrss counts kilobytes
CASES: dict[str, dict[str, Any]] = {
    "digits_resnet": {"budgets": {"latency_ms": "0.7x", "size_bytes": "0.2x"}, "options": {}},
    "digits_vit": {"budgets": {"latency_ms": "0.85x", "size_bytes": "0.2x"}, "options": {}},
    "resnet18": {"budgets": {"latency_ms": "0.5x", "size_bytes": "0.2x"}, "options": {"scan_samples": 48}},
}
NOISE_IMAGES = 144
"""ResNet-18 has random weights, so its samples are noise too; few, because only cost is looked at."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the models whose name contains this text")
    options = parser.parse_args()
    bars: list[Bar] = []
    stages: list[list[Any]] = []
    compared: list[list[Any]] = []
    for case in CASES:
        if options.only not in case:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            known = Path(scratch) / "known"
            for hardware in profiles_here():
                folder = Path(scratch) / hardware
                _lay_out(case, folder)
                if known.exists():
                    shutil.copytree(known, folder / "saved")
                spec = {
                    "targets": [{"hardware": hardware, "budgets": CASES[case]["budgets"] | BUDGETS.get(hardware, {})}],
                    "options": CASES[case]["options"],
                }
                spent = {name: _in_child(name, spec, folder) for name in STAGES}
                # What a scan found belongs to the model; what was measured is the target's own.
                shutil.copytree(folder / "saved", known, ignore=shutil.ignore_patterns("latency*"), dirs_exist_ok=True)
                report = json.loads((folder / "report.json").read_text())["targets"][0]
                total_s = sum(seconds for seconds, _ in spent.values())
                peak_mb = max(memory for _, memory in spent.values()) / 1e6
                stages.append([case, hardware, *(spent[name][0] for name in STAGES), total_s, peak_mb])
                compared += _against_defaults(case, hardware, folder, report)
                bars += _bars(case, hardware, report)
                print(f"{case} on {hardware}: {total_s:.0f} s, {report['verdict']['sentence']}", file=sys.stderr)
    print_table(["model", "hardware", *(f"{name} s" for name in STAGES), "total s", "peak MB"], stages)
    print()
    print_table(["model", "hardware", "assembly", "latency ms", "MB", "loss (report)", "verdict"], compared)
    return finish("end_to_end", bars)


def profiles_here() -> dict[str, str]:
    """Profile to runtime; OpenVINO in bfloat16, which its defaults use, where this CPU has units for it."""
    return PROFILES | ({BF16_PROFILE: "openvino"} if has_bf16(this_cpu()) else {})


def _lay_out(case: str, folder: Path) -> None:
    folder.mkdir()
    if case == "resnet18":
        resnet18(folder / "model.onnx")
        images = np.random.default_rng(0).normal(size=(NOISE_IMAGES, 3, 224, 224)).astype(np.float32)
        np.savez(folder / "dataset.npz", image=images)
        return
    shutil.copyfile(EXAMPLES / "models" / f"{case}.onnx", folder / "model.onnx")
    shutil.copyfile(EXAMPLES / "data" / "digits.npz", folder / "dataset.npz")


def _in_child(stage: str, spec: Mapping[str, Any], folder: Path) -> tuple[float, float]:
    """Seconds and peak bytes of one stage, each in a process of its own as the service runs it."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    began = time.perf_counter()
    child = context.Process(target=_run_stage, args=(stage, spec, folder, send))
    child.start()
    send.close()
    try:
        peak = receive.recv()
    except EOFError:
        raise SystemExit(f"stage {stage} of {folder} failed; its trace stands above") from None
    child.join()
    return time.perf_counter() - began, float(peak)


def _run_stage(stage: str, spec: Mapping[str, Any], folder: Path, send: Any) -> None:
    STAGES[stage](spec, folder, lambda done, total, unit, message: None)
    send.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MEMORY_UNIT)


def _against_defaults(case: str, hardware: str, folder: Path, report: Mapping[str, Any]) -> list[list[Any]]:
    """Rows of the chosen artifact, fp32 and uniform w8a8; the last row is the chosen one."""
    study = StudyFolder(folder)
    graph, loss = study.graph(), study.loss(0)
    path = study.dataset_path()
    assert path is not None
    data = split_dataset(load_dataset(path, graph), 0)
    size = chunk_size(graph, data.report)
    finished = assemble(graph, _uniform(report), study.candidates(0))
    uniform = refit_sequentially(TorchSimulator(graph), finished, data.calibrate.chunks(size))
    int8 = export_assembly(graph, uniform, profiles_here()[hardware]).SerializeToString(deterministic=True)
    models = {
        f"fp32, {runtime} defaults": open_model(folder / "model.onnx", runtime, 1, {}) for runtime in PROFILES.values()
    }
    models |= {f"uniform w8a8, {runtime} defaults": open_model(int8, runtime, 1, {}) for runtime in PROFILES.values()}
    sizes = {name: len(int8) if "w8a8" in name else (folder / "model.onnx").stat().st_size for name in models}
    chosen = next((row for row in report["assemblies"] if row["name"] == report["verdict"]["chosen"]), None)
    if chosen is not None:
        stated = json.loads((folder / "session_options_0.json").read_text())["session_options"]
        models["chosen"] = open_model(folder / "artifact_0.onnx", profiles_here()[hardware], 1, stated)
        sizes["chosen"] = chosen["size_bytes"]
    inputs = _inputs(graph, study)
    arms = {name: runner(model, inputs) for name, model in models.items()}
    timed = measure_interleaved(arms, threads=1, protocol=END_TO_END)
    rows = []
    reference = None
    for name, model in models.items():
        outputs = run_in_chunks(model.run, data.report, size)
        reference = reference or outputs
        lost = float(loss.per_sample(reference, outputs).mean())
        latency_ms = timed[name].median_us / 1000
        rows.append([case, hardware, name, latency_ms, sizes[name] / 1e6, lost, report["verdict"]["kind"]])
        model.close()
    return rows


def _uniform(report: Mapping[str, Any]) -> dict[str, str]:
    return dict(next(row for row in report["assemblies"] if row["name"] == "uniform w8a8")["precisions"])


def _inputs(graph: Graph, study: StudyFolder) -> dict[str, Any]:
    return random_inputs(graph, operating_shapes(graph, OperatingPoint()))


def _bars(case: str, hardware: str, report: Mapping[str, Any]) -> list[Bar]:
    """The chosen assembly keeps its budgets as measured and loses no more than any uniform one that keeps them."""
    label = f"{case} on {hardware}"
    row = next((row for row in report["assemblies"] if row["name"] == report["verdict"]["chosen"]), None)
    if row is None:
        return [Bar(f"{label}: verdict", 0.0, "", "chosen or no_gain", False)]
    limits = {budget["resource"]: budget["limit"] for budget in report["budgets"]}
    uniform = [
        other["select"]["loss"]["value"]
        for other in report["assemblies"]
        if other["source"] == "uniform" and other["meets_budgets"] and other["select"]
    ]
    lost = row["select"]["loss"]["value"]
    return [
        at_most(f"{label}: latency", row["measured"]["median_ms"], "ms", limits["latency_ms"]),
        at_most(f"{label}: size", row["size_bytes"], "bytes", limits["size_bytes"]),
        at_most(
            f"{label}: counted over disk bytes", abs(row["predicted"]["size_bytes"] / row["size_bytes"] - 1), "", 0.01
        ),
        Bar(f"{label}: loss", lost, "select split", "<= every uniform that fits", all(lost <= u for u in uniform)),
        at_least(f"{label}: layers run as exported", float(row["discarded"] is None), "", 1.0),
    ]


if __name__ == "__main__":
    sys.exit(main())
