"""Measuring a whole model: its missing rows, its calibration assemblies built and timed, and the fit of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kernels.backends.base import Backend
from kernels.backends.cuda import Cuda
from kernels.hardware_profile import HardwareProfile
from kernels.latency_table import LatencyTable
from kernels.microbench import Refused, empty_table, measure_missing
from kernels.operating_point import OperatingPoint
from kernels.precision import FP32
from kernels.recipe import Recipe
from search.artifact.qdq import export_assembly
from search.candidates.assemble import assemble
from search.candidates.candidate_set import CandidateSet
from search.candidates.finish import finish_candidates
from search.errors import BadSubmission, UnsupportedOp
from search.graph import Graph
from search.groups import group_layers
from search.latency.assemblies import CalibrationAssembly, calibration_assemblies, count_assemblies
from search.latency.coefficients import EndToEndRun, contradicted
from search.latency.cuda_network import network_builder
from search.latency.fit import LatencyFit, fit_latency
from search.latency.guided import guided_assemblies
from search.latency.measure import Build, NetworkTimer, random_inputs
from search.latency.rows import LayerRow, distinct_pairs, required_rows
from search.latency.terms import latency_terms
from search.onnx_import import operating_shapes
from search.simulation.onnxruntime_simulator import OnnxRuntimeSimulator
from search.simulation.simulator import Arrays
from search.simulation.torch_simulator import TorchSimulator

Progress = Callable[[int, int, str], None]
NOISE_RULES = ("min-max",)
BYTE = 8
"""Narrower activations mix with nothing (`search.candidates.recipes`), so no fit is made of them unasked."""
GOOD_MEANS, GOOD_MAX = (0.015, 0.018, 0.025), 0.10
"""Errors at which no more runs are taken; the mean before each further round, left out and on what a solver chose by
the fit before (fits to 21 runs with 1.3 % left out have been 2.9 % off on allocations that were chosen by them)."""
RUNS_PER_ROUND = 8
"""How many more random assemblies are timed (and as many guided ones as ever) while errors are larger.
A run that the others contradict by more than `GOOD_MAX` is timed again, whichever of the two is right.
In OpenVINO a transformer at 64 tokens, timed as one measurement does, went from 2.2 % with 20 runs and 2.1 % with 33
to 1.85 % with 46."""


@dataclass(frozen=True)
class MeasuredModel:
    """A latency table that now holds every row of the model, and the fit from its rows to end-to-end time."""

    table: LatencyTable
    fit: LatencyFit


def measure_model(
    graph: Graph,
    profile: HardwareProfile,
    backend: Backend,
    point: OperatingPoint,
    *,
    table: LatencyTable | None = None,
    candidates: CandidateSet | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: Callable[[LatencyTable], None] | None = None,
) -> MeasuredModel:
    """Rows and fit of one model on the device at hand; rows that `table` holds are not timed again.

    Time does not depend on the values of the codes, so without `candidates` they are finished on seeded noise.
    `checkpoint` gets the table as it grows: pass its last one as `table` to go on after an interruption.

    A pair that the runtime did not run as asked has no row; layers left with full precision alone are in the fit's
    constant, and its notes name both. Raises `BadSubmission` (`nothing_to_measure`) when no layer can be quantized.
    """
    report = progress or (lambda done, total, what: None)
    shapes = operating_shapes(graph, point)
    rows = required_rows(graph, shapes, profile)
    measured = measure_missing(
        backend,
        profile,
        distinct_pairs(rows),
        point.threads,
        table or empty_table(profile),
        progress=lambda done, total: report(done, total, "op rows"),
        checkpoint=checkpoint,
    )
    table = measured.table
    inputs = random_inputs(graph, shapes, seed)
    if candidates is None:
        report(0, 1, "candidates from noise")
        candidates = noise_candidates(graph, profile, rows, inputs)
    kept, dropped = _usable(rows, table, point.threads, candidates, measured.refused)
    if not kept:
        raise BadSubmission(
            "no layer of the model can be quantized on this profile, so there is nothing to measure",
            hint="see the reasons beside each layer (python -m search audit)",
            code="nothing_to_measure",
        )
    terms = latency_terms(graph, shapes, profile, kept, table, point.threads)
    layers = {name for name, _, _ in kept}
    groups = [group for group in group_layers(graph) if layers.issuperset(group.layers)]
    possible = count_assemblies(groups, terms)

    build = (
        network_builder(graph, candidates, shapes, backend.device, backend.clock(point.threads), table, point.threads)
        if isinstance(backend, Cuda)
        else builder(graph, candidates, profile)
    )

    timer = NetworkTimer(
        build,
        inputs,
        backend,
        profile,
        point,
        shares=terms.class_shares,
        progress=lambda done, total: report(done, total, "end-to-end runs"),
    )

    def fitted(assemblies: Sequence[CalibrationAssembly], known: Sequence[EndToEndRun] = ()) -> LatencyFit:
        return fit_latency(
            terms,
            # full precision first, whatever was timed again
            sorted(timer.measure(assemblies, known), key=lambda run: bool(run.precisions)),
            profile=profile.slug,
            point=point,
            model=graph.content_hash,
            table_version=table.version,
            possible=possible,
        )

    def with_more(fit: LatencyFit, more: Sequence[CalibrationAssembly]) -> LatencyFit:
        doubtful = contradicted(terms, fit.runs, GOOD_MAX)
        again = [CalibrationAssembly(run.name, run.precisions) for run in doubtful]
        return fitted([*again, *more], [run for run in fit.runs if run not in doubtful])

    filling = calibration_assemblies(groups, terms, seed=seed)
    before = fitted(filling)
    guided = guided_assemblies(groups, before, seed)
    fit = fitted(guided, before.runs)

    for more, mean in enumerate(GOOD_MEANS, start=1):
        if (is_good(fit, mean) and foresaw(before, guided, fit.runs, mean)) or len(fit.runs) >= possible:
            break
        random = calibration_assemblies(groups, terms, count=len(filling) + more * RUNS_PER_ROUND, seed=seed)
        before, guided = fit, guided_assemblies(groups, fit, seed + more)
        fit = with_more(fit, [*random, *guided])
    if contradicted(terms, fit.runs, GOOD_MAX):
        fit = with_more(fit, [])
    return MeasuredModel(table, replace(fit, notes=(*fit.notes, *dropped)))


def is_good(fit: LatencyFit, mean: float) -> bool:
    """Whether the fit's own errors are small enough to rely on it, the mean at most `mean`; unknown errors are not."""
    if fit.loo_mape is None or fit.loo_max is None:
        return False
    return fit.loo_mape <= mean and fit.loo_max <= GOOD_MAX


def foresaw(fit: LatencyFit, guided: Sequence[CalibrationAssembly], runs: Sequence[EndToEndRun], mean: float) -> bool:
    """Whether a fit predicted what was chosen by it before that was timed, with a relative error of `mean` at most."""
    chosen = {frozenset(each.precisions.items()) for each in guided}
    chosen -= {frozenset(run.precisions.items()) for run in fit.runs}
    errors = [
        abs(fit.predict(run.precisions) / run.median_us - 1)
        for run in runs
        if frozenset(run.precisions.items()) in chosen
    ]
    return not errors or sum(errors) / len(errors) <= mean


def builder(graph: Graph, candidates: CandidateSet, profile: HardwareProfile) -> Build:
    """Turns precisions per layer into the serialized model that the profile's runtime would deploy."""

    def build(precisions: Mapping[str, str]) -> bytes:
        model = export_assembly(graph, assemble(graph, precisions, candidates), profile.runtime)
        return bytes(model.SerializeToString(deterministic=True))

    return build


def noise_candidates(graph: Graph, profile: HardwareProfile, rows: list[LayerRow], inputs: Arrays) -> CandidateSet:
    """Candidates good enough to be timed: finished on one batch of noise by the cheapest rule."""
    recipes: dict[tuple[str, str], Recipe] = {
        (layer, precision.name): profile.recipe(op.kind, precision)
        for layer, op, precision in rows
        if precision != FP32 and precision.activation_bits >= BYTE
    }
    try:
        simulator: TorchSimulator | OnnxRuntimeSimulator = TorchSimulator(graph)
    except UnsupportedOp:
        simulator = OnnxRuntimeSimulator(graph)
    return finish_candidates(simulator, recipes, [inputs], rules=NOISE_RULES)


def _usable(
    rows: list[LayerRow],
    table: LatencyTable,
    threads: int,
    candidates: CandidateSet,
    refused: Iterable[Refused],
) -> tuple[list[LayerRow], list[str]]:
    """Rows that were measured and can be built; layers without full precision or any other precision are dropped."""
    kept: list[LayerRow] = []
    notes: list[str] = []
    excluded = {entry.node: entry.reason for entry in candidates.excluded}
    reasons = {(entry.signature, entry.precision): entry.reason for entry in refused}
    for layer, op, precision in rows:
        buildable = precision == FP32 or (layer, precision.name) in candidates.candidates
        if buildable and table.has(op, precision, threads):
            kept.append((layer, op, precision))
        else:
            if buildable:
                why = reasons.get((op.signature, precision.name), "it has no row")
            else:
                why = excluded.get(layer, "it has no candidate")
            notes.append(f"{layer} is not offered in {precision}: {why}")
    by_layer: dict[str, set[str]] = {}
    for layer, _, precision in kept:
        by_layer.setdefault(layer, set()).add(precision.name)
    whole = {layer for layer, names in by_layer.items() if FP32.name in names and len(names) > 1}
    return [row for row in kept if row[0] in whole], notes
