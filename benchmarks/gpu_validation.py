"""Validation: whole networks of our kernels in a CUDA graph, against what table rows and the fit say they take."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx

from benchmarks import gpu_networks
from benchmarks.bars import at_most
from benchmarks.gpu_bench import Bench
from kernels.backends.cuda import Cuda
from kernels.backends.cuda_detect import DriverFacts
from kernels.backends.cuda_kernels import OurKernels
from kernels.backends.cuda_opponents import opponents
from kernels.hardware_profile import HardwareProfile
from kernels.interleaving import Protocol
from kernels.latency_table import LatencyTable
from kernels.microbench import empty_table, measure_missing
from kernels.operating_point import OperatingPoint
from kernels.precision import FP32
from kernels.profiles.cuda import cuda_profile
from search.candidates.finish import finish_candidates
from search.graph import Graph, OperatingShapes
from search.groups import group_layers
from search.latency.assemblies import calibration_assemblies
from search.latency.cuda_network import CudaNetwork, network_builder
from search.latency.fit import fit_latency
from search.latency.measure import NetworkTimer, random_inputs
from search.latency.rows import LayerRow, distinct_pairs, required_rows
from search.latency.terms import latency_terms
from search.onnx_import import graph_from_model, operating_shapes
from search.simulation.torch_simulator import TorchSimulator

ROW_TIMING = Protocol(warmup_us=3_000.0, sample_us=0.0, min_samples=30, max_samples=60, arm_seconds=0.15)
RUN_TIMING = Protocol(warmup_us=5_000.0, sample_us=0.0, min_samples=30, max_samples=60, arm_seconds=0.3)
RUNS, UNSEEN = 16, 6
PERCENT = 100.0
ROWS_SHARE = 0.65
"""Of a section's time, for the table; whole networks have the rest."""


def validate_resnet50(bench: Bench) -> None:
    if bench.is_dry:
        validate(bench, "resnet50", gpu_networks.resnet50((1, 1), 8, 32), OperatingPoint(batch=2))
    else:
        validate(bench, "resnet50", gpu_networks.resnet50(), OperatingPoint(batch=32))


def validate_encoder(bench: Bench) -> None:
    if bench.is_dry:
        validate(bench, "encoder", gpu_networks.encoder(1, 32, 2), OperatingPoint(batch=1, dims=(("tokens", 8),)))
    else:
        validate(bench, "encoder", gpu_networks.encoder(), OperatingPoint(batch=8, dims=(("tokens", 128),)))


def profile_here(bench: Bench) -> HardwareProfile:
    facts: DriverFacts | None = getattr(bench.device, "facts", None)
    if facts is None:
        return replace(cuda_profile("fake-gpu", bench.device.identity, bench.device.arch), measurable_here=True)
    from kernels.backends.cuda_profile import profile_of

    return profile_of(facts, bench.device.arch)


def validate(bench: Bench, name: str, model: onnx.ModelProto, point: OperatingPoint) -> None:
    """Rows, runs, the fit left one out at a time, and its error on assemblies it never saw."""
    graph, profile = graph_from_model(model), profile_here(bench)
    contenders = [OurKernels(bench.device, avoid=bench.avoid), *opponents(bench.device)]
    backend = Cuda(profile, bench.device, contenders, bench.running)
    shapes = operating_shapes(graph, point)
    rows = required_rows(graph, shapes, profile)
    path = bench.folder / f"latency_table_{name}.json"
    bench.note("not compared", dict(backend.missing))

    def save(table: LatencyTable) -> None:
        path.write_text(json.dumps(table.to_json(), indent=1))

    def measure() -> None:
        started = LatencyTable.loads(path.read_text()) if path.exists() else empty_table(profile)
        measured = measure_missing(
            backend, profile, distinct_pairs(rows), point.threads, started, protocol=ROW_TIMING, checkpoint=save
        )
        save(measured.table)
        bench.note("rows", len(measured.table.rows))
        bench.note("rows took s", bench.seconds - bench.left_s)
        bench.note("refused", [f"{each.signature} {each.precision}: {each.reason[:200]}" for each in measured.refused])
        bench.note("left out", {" ".join(pair): why for pair, why in backend.reasons.items() if why})
        bench.note("kernels", sorted({row.executed_kernel.split(" /")[0] for row in measured.table.rows}))

    bench.part(f"{name}: rows", measure, ROWS_SHARE * bench.seconds)
    table = LatencyTable.loads(path.read_text()) if path.exists() else empty_table(profile)
    bench.part(
        f"{name}: runs", lambda: fit_and_predict(bench, name, graph, backend, shapes, rows, table, point), bench.left_s
    )


def fit_and_predict(
    bench: Bench,
    name: str,
    graph: Graph,
    backend: Cuda,
    shapes: OperatingShapes,
    rows: list[LayerRow],
    table: LatencyTable,
    point: OperatingPoint,
) -> None:
    """Whole networks of the layers that have rows, the fit of the first ones and its error on the others."""
    profile = backend.profile
    # Neighbours share tensors, so activations of 4 and of 8 bits cannot stand in one network.
    eight = [row for row in rows if row[2].activation_bits >= 8]
    kept = _whole([row for row in eight if table.has(row[1], row[2], point.threads)])
    small = replace(point, batch=1)
    noise = random_inputs(graph, operating_shapes(graph, small))
    recipes = {(layer, p.name): profile.recipe(op.kind, p) for layer, op, p in kept if p != FP32}
    candidates = finish_candidates(TorchSimulator(graph), recipes, [noise], rules=("min-max",))
    kept = _whole([row for row in kept if row[2] == FP32 or (row[0], row[2].name) in candidates.candidates])
    bench.note("candidates at s", bench.seconds - bench.left_s)
    terms = latency_terms(graph, shapes, profile, kept, table, point.threads)
    layers = {layer for layer, _, _ in kept}
    groups = [group for group in group_layers(graph) if layers.issuperset(group.layers)]
    build = network_builder(graph, candidates, shapes, backend.device, backend.clock(1), table, point.threads)
    inputs = random_inputs(graph, shapes)
    count = 8 if bench.is_dry else RUNS + UNSEEN
    assemblies = calibration_assemblies(groups, terms, count=count)
    runs = NetworkTimer(build, inputs, backend, profile, point, protocol=RUN_TIMING).measure(assemblies)
    seen = runs if bench.is_dry else runs[:RUNS]
    fit = fit_latency(terms, seen, profile=profile.slug, point=point, model=graph.content_hash)
    bench.note("runs", {run.name: round(run.median_us, 2) for run in runs})
    bench.note("predicted", {run.name: round(fit.predict(run.precisions), 2) for run in runs})
    for run in runs:
        if run.name.startswith("uniform-"):
            _list_kernels(bench, graph, build, run.name, run.precisions, inputs)
    assert fit.loo_mape is not None
    bench.bar(at_most(f"{name}: left one out, mean", PERCENT * fit.loo_mape, "%", 5.0))
    unseen = [abs(fit.predict(run.precisions) / run.median_us - 1) for run in runs[len(seen) :]]
    if unseen:
        bench.bar(at_most(f"{name}: unseen assemblies, mean", PERCENT * float(np.mean(unseen)), "%", 5.0))


def _whole(rows: list) -> list:  # type: ignore[type-arg]
    """Rows of layers that have full precision and something else."""
    names: dict[str, set[str]] = {}
    for layer, _, precision in rows:
        names.setdefault(layer, set()).add(precision.name)
    return [row for row in rows if FP32.name in names[row[0]] and len(names[row[0]]) > 1]


def _list_kernels(bench: Bench, graph: Graph, build, name, precisions, inputs) -> None:  # type: ignore[no-untyped-def]
    network = build(precisions)
    assert isinstance(network, CudaNetwork)
    network.run(inputs)
    counts: dict[str, int] = {}
    for op in network.executed_ops():
        counts[op.op_type] = counts.get(op.op_type, 0) + 1
    bench.note(f"executed: {name}", counts)
    network.close()
