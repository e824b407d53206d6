"""Scan: one forward per (group, precision) on finished candidates, for the metrics `kl` and `gauss_newton`.

`kl` is ZeroQ's sensitivity (Cai et al. 2020) on real data: the loss between the full-precision model and the
model with one group quantized. `gauss_newton` adds what pairs do to each other, ½·E[zᵀ(diag p − ppᵀ)z′] of their
output changes z, from the same forwards; see `search.sensitivity.scan_rows`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from search.assembly import Assembly
from search.candidates.assemble import assemble
from search.candidates.candidate_set import CandidateSet
from search.data.fingerprint import add_array, add_chunks
from search.errors import BadSubmission
from search.groups import LayerGroup
from search.loss.model_loss import ModelLoss
from search.sensitivity.downstream_refit import FEWEST_SAMPLES, can_refit, perturb_refitted, with_whole_tail
from search.sensitivity.estimate import Sensitivity
from search.sensitivity.scan_rows import Array, Key, Row, RowFolder, ScanRows
from search.simulation.simulator import Arrays, Simulator
from search.simulation.torch_simulator import TorchSimulator

Progress = Callable[[int, int], None]

_FULL_PRECISION = Assembly({}, {})
# Each block runs full precision once for all its keys, and is what a stopped scan can lose.
_BLOCK_KEYS = 32
_ROW_VERSION = 3
_NOT_REFITTED = (
    f"Sensitivities were measured without refitting later layers: that needs dynamic-batch chunks of {FEWEST_SAMPLES} "
    "samples and a graph whose ops all run in torch."
)


def scan(
    simulator: Simulator,
    groups: Sequence[LayerGroup],
    candidates: CandidateSet,
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    progress: Progress | None = None,
    *,
    folder: Path | None = None,
    refit: bool = True,
) -> dict[str, Sensitivity]:
    """`kl` and `gauss_newton` of every (group, precision) that all the group's layers have a candidate for."""
    return scan_rows(simulator, groups, candidates, loss, chunks, progress, folder=folder, refit=refit).sensitivities()


def scan_rows(
    simulator: Simulator,
    groups: Sequence[LayerGroup],
    candidates: CandidateSet,
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    progress: Progress | None = None,
    *,
    folder: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    refit: bool = True,
) -> ScanRows:
    """The rows of shard i of n: groups i, i+n, …; merge shards with `scan_rows.merge`.

    With `refit`, losses are those left after the layers behind the group have been refitted, as they will be in any
    allocation (see `search.sensitivity.downstream_refit`); where chunks are too small for that, or forwards run in
    ONNX Runtime, they are measured without and a note says so.

    With a `folder`, finished rows are kept there and never computed twice for the same model, data, loss and
    candidate. `progress(done, total)` counts the shard's rows. Raises `BadSubmission` (`model_output_nonfinite`) when
    the full-precision model itself gives NaN or infinity.
    """
    index, count = shard
    mine = {group.name for group in list(groups)[index::count]}
    members = {group.name: group.layers for group in groups}
    positions = {key: position for position, key in enumerate(scan_keys(groups, candidates)) if key[0] in mine}
    built = {
        (name, precision): assemble(simulator.graph, dict.fromkeys(members[name], precision), candidates)
        for name, precision in positions
    }
    if refit and can_refit(simulator, with_whole_tail(chunks)):
        chunks, refitted = with_whole_tail(chunks), True
    else:
        refitted = False
    common = _fingerprint_inputs(simulator, loss, chunks, refitted)
    prints = {key: _fingerprint(common, assembly) for key, assembly in built.items()}
    keys = list(positions)
    store = RowFolder(folder) if folder is not None else None
    found: dict[Key, Row] = {}
    if store is not None:
        known = {key: row for key in keys if (row := store.load(key, prints[key])) is not None}
        found = {key: replace(row, position=positions[key]) for key, row in known.items()}
    missing = [key for key in keys if key not in found]
    done = len(keys) - len(missing)
    if progress is not None:
        progress(done, len(keys))
    for start in range(0, len(missing), _BLOCK_KEYS):
        block = missing[start : start + _BLOCK_KEYS]
        measured = _measure(simulator, [built[key] for key in block], loss, chunks, refitted)
        for key, (losses, factor) in zip(block, measured, strict=True):
            row = found[key] = Row(key, positions[key], losses, factor, prints[key])
            if store is not None:
                store.save(row)
        done += len(block)
        if progress is not None:
            progress(done, len(keys))
    notes = (_NOT_REFITTED,) if refit and not refitted else ()
    return ScanRows(tuple(found[key] for key in keys), loss.unit, notes)


def scan_keys(groups: Sequence[LayerGroup], candidates: CandidateSet) -> list[Key]:
    """Every (group, precision) of a whole scan, in its order."""
    return [
        (group.name, precision)
        for group in groups
        for precision in candidates.precisions(group.layers[0])
        if all((layer, precision) in candidates.candidates for layer in group.layers)
    ]


def _measure(
    simulator: Simulator,
    assemblies: Sequence[Assembly],
    loss: ModelLoss,
    chunks: Sequence[Arrays],
    refit: bool,
) -> Iterator[tuple[Array, Array]]:
    """Losses (n,) and factor (n, K) of each assembly over all chunks."""
    losses: list[list[Array]] = [[] for _ in assemblies]
    factors: list[list[Array]] = [[] for _ in assemblies]
    for number, chunk in enumerate(chunks):
        # Full precision as the first assembly comes from the forward that perturb shares, at no cost of its own.
        everything = [_FULL_PRECISION, *assemblies]
        if refit:
            assert isinstance(simulator, TorchSimulator)
            results = perturb_refitted(simulator, chunk, everything)
        else:
            results = iter(simulator.perturb(chunk, everything))
        reference = next(results)
        _check_reference(reference, loss)
        for index, outputs in enumerate(results):
            losses[index].append(loss.per_sample(reference, outputs, chunk))
            factors[index].append(loss.factor(reference, outputs, chunk, sketch_seed=number).astype(np.float32))
    for loss_parts, factor_parts in zip(losses, factors, strict=True):
        yield np.concatenate(loss_parts), np.concatenate(factor_parts)


def _check_reference(reference: Arrays, loss: ModelLoss) -> None:
    for each in loss.outputs:
        if not np.isfinite(reference[each.output]).all():
            raise BadSubmission(
                f"output {each.output!r} of the submitted model is not finite on the calibration data",
                hint="check the weights and the preprocessing of the data",
                code="model_output_nonfinite",
            )


def _fingerprint_inputs(simulator: Simulator, loss: ModelLoss, chunks: Sequence[Arrays], refit: bool) -> bytes:
    kind = type(simulator).__name__
    digest = hashlib.sha256(f"{_ROW_VERSION}\0{simulator.graph.sha256}\0{kind}\0{refit}\0".encode())
    digest.update(json.dumps(loss.to_json(), sort_keys=True).encode())
    add_chunks(digest, chunks)
    return digest.digest()


def _fingerprint(common: bytes, assembly: Assembly) -> str:
    """Names all a row depends on: the inputs, the candidates built, and the quantizers of what they read and write."""
    digest = hashlib.sha256(common)
    for layer, candidate in assembly.candidates.items():
        digest.update(json.dumps([layer, candidate.precision.name, candidate.recipe.to_json()]).encode())
        weight = candidate.weight
        parts: dict[str, Array | None] = {
            "codes": weight.codes, "scale": weight.scale, "zero": weight.zero_point, "bias": candidate.bias
        }  # fmt: skip
        for name, part in parts.items():
            if part is not None:
                add_array(digest, name, part)
    for tensor, quantizer in sorted(assembly.quantizers.items()):
        digest.update(f"{tensor}\0{quantizer!r}\0{tensor in assembly.output_quantized}\0".encode())
    return digest.hexdigest()
