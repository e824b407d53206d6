"""Saved candidates: one file per layer, so that shards finish different layers and a stopped one goes on."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kernels.recipe import Recipe
from search.candidates.calibration import quantized_tensors
from search.candidates.candidate_set import CandidateSet
from search.candidates.finish import Progress, finish_candidates, split_recipes
from search.data.fingerprint import add_chunks
from search.graph import Graph
from search.simulation.simulator import Arrays, Simulator

Recipes = Mapping[tuple[str, str], Recipe]
_VERSION = 1


def finish_missing(
    simulator: Simulator,
    recipes: Recipes,
    chunks: Sequence[Arrays],
    folder: Path,
    progress: Progress | None = None,
    *,
    layers: Collection[str] | None = None,
) -> CandidateSet:
    """`finish_candidates` of these layers (all by default); those the folder holds are read, the others left there.

    No candidate depends on another layer's, so candidates finished in shards are those finished together.
    """
    graph = simulator.graph
    wanted = {key: recipe for key, recipe in recipes.items() if layers is None or key[0] in layers}
    makeable, excluded = split_recipes(graph, wanted)
    saved = CandidateFolder(folder)
    prints = _fingerprints(simulator, makeable, chunks)
    found = {name: part for name, key in prints.items() if (part := saved.load(name, key)) is not None}
    missing = {key: recipe for key, recipe in makeable.items() if key[0] not in found}
    if missing:
        finished = finish_candidates(simulator, missing, chunks, progress)
        for name in dict.fromkeys(name for name, _ in missing):
            found[name] = _of_layer(graph, finished, name, missing)
            saved.save(name, prints[name], found[name])
    quantizers = {key: quantizer for part in found.values() for key, quantizer in part.quantizers.items()}
    return CandidateSet(
        candidates={key: found[key[0]].candidates[key] for key in makeable},
        quantizers={key: quantizers[key] for key in quantized_tensors(graph, makeable)},
        excluded=excluded,
        samples=sum(len(next(iter(chunk.values()))) for chunk in chunks),
    )


class CandidateFolder:
    """Finished candidates on disk, one file per layer; those of other inputs, or damaged ones, count as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, layer: str) -> Path:
        return self.folder / f"candidate_{hashlib.sha256(layer.encode()).hexdigest()[:32]}.npz"

    def save(self, layer: str, fingerprint: str, candidates: CandidateSet) -> None:
        """Whole or not at all."""
        document, arrays = candidates.to_parts()
        path = self.path(layer)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, document=np.array(json.dumps(document)), fingerprint=np.array(fingerprint), **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)

    def load(self, layer: str, fingerprint: str) -> CandidateSet | None:
        """The layer's candidates if they were finished from the same inputs."""
        try:
            with self.path(layer).open("rb") as file, np.load(file, allow_pickle=False) as data:
                if str(data["fingerprint"]) != fingerprint:
                    return None
                return CandidateSet.from_parts(json.loads(str(data["document"])), data)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None


def _of_layer(graph: Graph, finished: CandidateSet, layer: str, recipes: Recipes) -> CandidateSet:
    own = {key: recipe for key, recipe in recipes.items() if key[0] == layer}
    return CandidateSet(
        candidates={key: finished.candidates[key] for key in own},
        quantizers={key: finished.quantizers[key] for key in quantized_tensors(graph, own)},
        samples=finished.samples,
    )


def _fingerprints(simulator: Simulator, recipes: Recipes, chunks: Sequence[Arrays]) -> dict[str, str]:
    """Per layer: a hash of everything its candidates are made from."""
    common = hashlib.sha256(f"{_VERSION}\0{simulator.graph.sha256}\0{type(simulator).__name__}\0".encode())
    add_chunks(common, chunks)
    by_layer: dict[str, list[Any]] = {}
    for (name, precision), recipe in recipes.items():
        by_layer.setdefault(name, []).append([precision, recipe.to_json()])
    prints = {}
    for name, asked in by_layer.items():
        digest = common.copy()
        digest.update(json.dumps([name, asked], sort_keys=True).encode())
        prints[name] = digest.hexdigest()
    return prints
