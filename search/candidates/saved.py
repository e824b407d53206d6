"""Saved candidates: one file each, so that shards finish different layers, other runtimes take what they have in
common, and a stopped scan goes on."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from search.candidates.calibration import quantized_tensors
from search.candidates.candidate_set import CandidateSet
from search.candidates.finish import Progress, finish_wanted, split_recipes
from search.candidates.recipes import Recipes, Wanted, wanted_of
from search.data.fingerprint import add_chunks
from search.simulation.simulator import Arrays, Simulator, count_samples

_VERSION = 2


def finish_missing(
    simulator: Simulator,
    recipes: Sequence[Recipes],
    chunks: Sequence[Arrays],
    folder: Path,
    progress: Progress | None = None,
    *,
    layers: Collection[str] | None = None,
) -> tuple[CandidateSet, ...]:
    """The candidates of each runtime, of these layers (all by default): `finish_candidates` of their union.

    Those the folder holds are read, the others left there. No candidate depends on another, so those finished in shards
    or for other runtimes are those finished together.
    """
    graph = simulator.graph
    split = [
        split_recipes(graph, {key: recipe for key, recipe in own.items() if layers is None or key[0] in layers})
        for own in recipes
    ]
    wanted = wanted_of(makeable for makeable, _ in split)
    saved = CandidateFolder(folder)
    prints = _fingerprints(simulator, wanted, chunks)
    found = {each: part for each, key in prints.items() if (part := saved.load(key)) is not None}
    if missing := [each for each in wanted if each not in found]:
        finished, calibration = finish_wanted(simulator, missing, chunks, progress)
        for each in missing:
            found[each] = CandidateSet(
                candidates={(each.layer, each.precision): finished[each]},
                quantizers={key: calibration.quantizers[key] for key in quantized_tensors(graph, [each])},
                samples=calibration.samples,
            )
            saved.save(prints[each], found[each])
    quantizers = {key: quantizer for part in found.values() for key, quantizer in part.quantizers.items()}
    samples = sum(count_samples(chunk) for chunk in chunks)
    return tuple(
        CandidateSet(
            candidates={key: found[Wanted(*key, recipe)].candidates[key] for key, recipe in makeable.items()},
            quantizers={key: quantizers[key] for key in quantized_tensors(graph, wanted_of([makeable]))},
            excluded=excluded,
            samples=samples,
        )
        for makeable, excluded in split
    )


class CandidateFolder:
    """Finished candidates on disk, each named by all it was made from; damaged ones count as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, fingerprint: str) -> Path:
        return self.folder / f"candidate_{fingerprint[:32]}.npz"

    def save(self, fingerprint: str, candidate: CandidateSet) -> None:
        """Whole or not at all."""
        document, arrays = candidate.to_parts()
        path = self.path(fingerprint)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, document=np.array(json.dumps(document)), fingerprint=np.array(fingerprint), **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)

    def load(self, fingerprint: str) -> CandidateSet | None:
        """The candidate finished from these inputs, with the quantizers of what it reads and writes."""
        try:
            with self.path(fingerprint).open("rb") as file, np.load(file, allow_pickle=False) as data:
                if str(data["fingerprint"]) != fingerprint:
                    return None
                return CandidateSet.from_parts(json.loads(str(data["document"])), data)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None


def _fingerprints(simulator: Simulator, wanted: Sequence[Wanted], chunks: Sequence[Arrays]) -> dict[Wanted, str]:
    """A hash of everything each candidate is made from."""
    common = hashlib.sha256(f"{_VERSION}\0{simulator.graph.sha256}\0{type(simulator).__name__}\0".encode())
    add_chunks(common, chunks)
    prints = {}
    for each in wanted:
        digest = common.copy()
        digest.update(json.dumps([each.layer, each.precision, each.recipe.to_json()], sort_keys=True).encode())
        prints[each] = digest.hexdigest()
    return prints
