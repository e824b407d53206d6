"""Scanning a study: the values every scan starts from, and a shard that does the part of some layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from search.candidates.candidate_set import CandidateSet
from search.candidates.recipes import Recipes, recipes_for
from search.candidates.saved import finish_missing
from search.data.chunking import chunk_size
from search.data.dataset import Dataset, Splits, load_dataset, split_dataset
from search.data.synthetic_data import synthesize
from search.errors import UnsupportedOp
from search.graph import Graph
from search.groups import LayerGroup, group_layers
from search.loss.inference import infer_losses
from search.loss.model_loss import ModelLoss
from search.sensitivity.requested import SHARED_SCAN, normalised_loss, save_traces
from search.sensitivity.scan import scan_rows
from search.simulation.onnxruntime_simulator import OnnxRuntimeSimulator
from search.simulation.simulator import Arrays, Simulator, count_samples
from search.simulation.torch_simulator import TorchSimulator
from search.study import Study, Target, parse_study
from search.study_folder import StudyFolder

Progress = Callable[[int, int, str, str], None]
SYNTHETIC_SAMPLES = 384


@dataclass(frozen=True)
class Scanning:
    """What a scan and each of its shards start from: the same values in each, whatever part is theirs.

    `recipes` are keyed by the first target that has them (see `scan_sources`). `loss` is not yet normalised by output.
    `chunks` are the samples whose losses are measured.
    """

    folder: StudyFolder
    graph: Graph
    simulator: Simulator
    recipes: Mapping[int, Recipes]
    calibrate: list[Arrays]
    chunks: list[Arrays]
    loss: ModelLoss

    @classmethod
    def of(cls, folder: StudyFolder, study: Study) -> Scanning:
        graph = folder.graph()
        data, splits = split_data(folder, graph, study)
        simulator = simulator_of(graph)
        size = chunk_size(graph, data)
        recipes = target_recipes(folder, graph, study)
        sample = splits.calibrate.chunks(min(size, len(splits.calibrate)))[0]
        return cls(
            folder,
            graph,
            simulator,
            {recipes.index(own): own for own in recipes},
            splits.calibrate.chunks(size),
            first_samples(splits.calibrate, study.scan_samples).chunks(size),
            infer_losses(graph, simulator.run(sample), study.losses, samples=count_samples(sample), labels=data.labels),
        )

    def candidates(self, progress: Progress, layers: Collection[str] | None = None) -> dict[int, CandidateSet]:
        """Finished candidates of these layers (all by default) for each of `recipes`; what those have in common is
        finished once, what was saved before is read."""
        found = finish_missing(
            self.simulator,
            list(self.recipes.values()),
            self.calibrate,
            self.folder.saved,
            lambda done, total: progress(done, total, "candidates", "calibrate and refit"),
            layers=layers,
        )
        return dict(zip(self.recipes, found, strict=True))

    def normalised_loss(self, candidates: CandidateSet) -> ModelLoss:
        groups = decided_groups(self.graph, candidates)
        return normalised_loss(self.loss, self.simulator, groups, candidates, self.chunks)


def scan_shard(spec: Mapping[str, Any], path: Path, progress: Progress) -> dict[str, Any]:
    """Part i of n of the scans of all targets (`shard: [i, n]`): every n-th layer group under the union of the targets'
    recipes, left in `saved/` for each target's `scan` to take up.

    Equal, bit for bit at one thread, to what `scan` would have computed itself.
    """
    folder, study = StudyFolder(path), parse_study(spec)
    index, count = spec["shard"]
    groups = 0
    for part in _with_equal_samples(folder, study):
        scanning = Scanning.of(folder, part)
        mine = group_layers(scanning.graph)[index::count]
        layers = {name for group in mine for name in group.layers}
        # Several outputs are weighed by what uniform w8a8 loses at each, which takes every layer's candidates.
        needed = layers if len(scanning.loss.outputs) == 1 else None
        for candidates in scanning.candidates(progress, needed).values():
            loss = scanning.normalised_loss(candidates)
            if any(name in SHARED_SCAN for name in study.metrics):
                scan_rows(
                    scanning.simulator,
                    [group for group in decided_groups(scanning.graph, candidates) if group in mine],
                    candidates,
                    loss,
                    scanning.chunks,
                    lambda done, total: progress(done, total, "candidates", "scan sensitivity"),
                    folder=folder.saved,
                )
            # Earlier groups re-run more of the model, so the last shard has the least to do.
            if index == count - 1:
                save_traces(study.metrics, scanning.simulator, loss, scanning.chunks, study.seed, folder.saved)
        groups += len(mine)
    return {"outputs": [], "summary": {"groups": groups}}


def target_recipes(folder: StudyFolder, graph: Graph, study: Study) -> list[Recipes]:
    """What each target's runtime computes."""
    return [recipes_for(graph, folder.profile(target.hardware), study.precisions) for target in study.targets]


def scan_sources(folder: StudyFolder, graph: Graph, study: Study) -> list[int]:
    """Per target the position of the first one with equal recipes: one scan, filed under it, serves them all."""
    recipes = target_recipes(folder, graph, study)
    return [recipes.index(own) for own in recipes]


def _with_equal_samples(folder: StudyFolder, study: Study) -> list[Study]:
    """The study's targets by the samples they are scanned on: synthetic ones take a target's dimensions."""
    if folder.dataset_path() is not None:
        return [study]
    by_dims: dict[tuple[tuple[str, int], ...], list[Target]] = {}
    for target in study.targets:
        by_dims.setdefault(target.point.dims, []).append(target)
    return [replace(study, targets=tuple(targets)) for targets in by_dims.values()]


def decided_groups(graph: Graph, candidates: CandidateSet) -> tuple[LayerGroup, ...]:
    """Groups that have a decision to make: every layer of theirs has a candidate."""
    return tuple(group for group in group_layers(graph) if all(candidates.precisions(name) for name in group.layers))


def simulator_of(graph: Graph) -> Simulator:
    """Our differentiable program where it knows every op, ONNX Runtime's forwards otherwise."""
    try:
        return TorchSimulator(graph)
    except UnsupportedOp:
        return OnnxRuntimeSimulator(graph)


def study_data(folder: StudyFolder, graph: Graph, study: Study) -> Dataset:
    """The study's samples, or synthetic ones where it has none."""
    path = folder.dataset_path()
    if path is not None:
        return load_dataset(path, graph)
    return synthesize(graph, SYNTHETIC_SAMPLES, study.seed, dims=dict(study.targets[0].point.dims))


def split_data(folder: StudyFolder, graph: Graph, study: Study) -> tuple[Dataset, Splits]:
    """All samples, and their seeded split."""
    data = study_data(folder, graph, study)
    return data, split_dataset(data, study.seed)


def first_samples(data: Dataset, count: int) -> Dataset:
    return data.take(np.arange(min(count, len(data))))
