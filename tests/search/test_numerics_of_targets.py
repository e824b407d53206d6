"""Targets whose runtimes compute one precision differently, in one study: each by its own recipe, nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_cnn, study_folder

import search.candidates.saved as saved_candidates
import search.sensitivity.saved_traces as saved_traces
import search.sensitivity.scan as sensitivity_scan
from kernels.registry import load_profile
from search.candidates.candidate_set import CandidateSet
from search.pipeline import STAGES
from search.scanning import scan_shard

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET: Callable[..., None] = lambda *_: None  # noqa: E731
FILES = ("candidates_{}.json", "sensitivity_{}.json", "loss_{}.json")
MODEL = small_cnn()
ARRAYS = ("candidates_{}.npz", "interactions_{}.npz")


def spec(*hardware: str) -> dict[str, Any]:
    targets = [{"hardware": slug, "budgets": {"size_bytes": "0.6x"}} for slug in hardware]
    options = {
        "scan_samples": 128, "front_points": 4, "estimates": True, "metrics": ["kl", "gauss_newton", "hessian_trace"],
    }  # fmt: skip
    return {"targets": targets, "seed": 1, "options": options}


def take_up(source: Path, target: Path) -> None:
    """What one stage saved reaches the folder of another."""
    (target / "saved").mkdir(exist_ok=True)
    for path in (source / "saved").iterdir():
        (target / "saved" / path.name).write_bytes(path.read_bytes())


class Computed:
    """What a scan computes: candidates finished, rows measured, traces taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.candidates: list[Any] = []
        self.rows: list[Any] = []
        self.traces = 0
        finish, measure, traces = (
            saved_candidates.finish_wanted, sensitivity_scan._measure, saved_traces.mean_traces,
        )  # fmt: skip

        def finished(simulator: Any, wanted: Any, *rest: Any, **named: Any) -> Any:
            self.candidates += wanted
            return finish(simulator, wanted, *rest, **named)

        def measured(simulator: Any, assemblies: Any, *rest: Any) -> Any:
            for assembly in assemblies:
                built = ((name, one.precision.name, one.recipe) for name, one in assembly.candidates.items())
                self.rows.append(tuple(built))
            return measure(simulator, assemblies, *rest)

        def traced(*given: Any, **named: Any) -> Any:
            self.traces += 1
            return traces(*given, **named)

        monkeypatch.setattr(saved_candidates, "finish_wanted", finished)
        monkeypatch.setattr(sensitivity_scan, "_measure", measured)
        monkeypatch.setattr(saved_traces, "mean_traces", traced)

    def take(self) -> tuple[int, int, int]:
        """How much was computed since it was last asked, each thing once."""
        assert len(set(self.candidates)) == len(self.candidates)
        assert len(set(self.rows)) == len(self.rows)
        found = len(self.candidates), len(self.rows), self.traces
        self.candidates, self.rows, self.traces = [], [], 0
        return found


def assert_same_scan(found: Path, at: int, expected: Path, of: int) -> None:
    for name in FILES:
        assert (found / name.format(at)).read_text() == (expected / name.format(of)).read_text()
    for name in ARRAYS:
        with np.load(found / name.format(at)) as one, np.load(expected / name.format(of)) as other:
            assert one.files == other.files
            for array in other.files:
                np.testing.assert_array_equal(one[array], other[array])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every runtime scanned in a study of its own."""
    torch.set_num_threads(1)
    folders = {}
    for slug in ("fake", "t4"):
        folders[slug] = study_folder(tmp_path_factory.mktemp("alone") / slug)
        STAGES["scan"](spec(slug), folders[slug], QUIET)
    return folders


def test_a_new_target_needs_only_the_recipes_it_adds(
    alone: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, computed = study_folder(tmp_path / "study"), Computed(monkeypatch)
    take_up(alone["fake"], folder)
    done = STAGES["scan"](spec("fake", "t4", "h200"), folder, QUIET)
    sets = [CandidateSet.load(folder, f"_{position}") for position in (0, 1)]
    assert computed.take() == (len(sets[1].candidates), len(sets[1].candidates), 0), "traces depend on no recipe"
    assert done["summary"]["candidates"] == sum(len(each.candidates) for each in sets)
    kinds = {layer.name: layer.op_kind for layer in MODEL.layers}
    for position, slug in enumerate(("fake", "t4")):
        assert_same_scan(folder, position, alone[slug], 0)
        for (name, precision), recipe in sets[position].recipes.items():
            assert recipe == load_profile(slug).recipes[kinds[name], precision]
    assert not (folder / "candidates_2.json").exists(), "the h200 computes as the t4 does and takes its scan"
    STAGES["scan"](spec("h200", "fake"), folder, QUIET)
    assert computed.take() == (0, 0, 0)
    assert_same_scan(folder, 1, alone["fake"], 0)


def test_shards_of_the_union_are_every_targets_scan_bit_for_bit(
    alone: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged, computed = study_folder(tmp_path / "merged"), Computed(monkeypatch)
    for index in range(2):
        part = study_folder(tmp_path / f"part{index}")
        scan_shard({**spec("t4", "fake"), "shard": [index, 2]}, part, QUIET)
        take_up(part, merged)
    pairs = sum(len(CandidateSet.load(folder, "_0").candidates) for folder in alone.values())
    assert computed.take() == (pairs, pairs, 1)
    for slug, folder in alone.items():
        STAGES["scan"](spec(slug), merged, QUIET)
        assert_same_scan(merged, 0, folder, 0)
    assert computed.take() == (0, 0, 0), "what the shards left is all it takes"


def test_shards_without_data_scan_each_targets_own_dimensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, computed = study_folder(tmp_path / "study"), Computed(monkeypatch)
    (folder / "dataset.npz").unlink()
    request = spec("fake", "t4")
    request["options"]["metrics"] = ["weight_error"]
    for position, target in enumerate(request["targets"]):
        target["operating_point"] = {"dims": {"N": position + 1}}
    scan_shard({**request, "shard": [0, 1]}, folder, QUIET)
    assert computed.take()[0] > 0
    for target in request["targets"]:
        STAGES["scan"]({**request, "targets": [target]}, folder, QUIET)
    assert computed.take() == (0, 0, 0)


def test_a_study_of_two_numerics_ends_in_two_verdicts(tmp_path: Path) -> None:
    folder, request = study_folder(tmp_path / "study"), spec("fake", "t4")
    request["options"] |= {"metrics": ["kl"], "front_points": 2, "scan_samples": 64, "precisions": ["w8a8", "w4a8"]}
    for stage in STAGES:
        done = STAGES[stage](request, folder, QUIET)
    assert [verdict["hardware"] for verdict in done["summary"]["verdicts"]] == ["fake", "t4"]
    assert all(verdict["verdict"] in ("chosen", "no_gain") for verdict in done["summary"]["verdicts"])
    report = json.loads((folder / "report.json").read_text())
    said = []
    for position, target in enumerate(report["targets"]):
        names = {row["recipe"] for row in target["precisions"]}
        used = {choice["recipe"] for layer in target["layers"] for choice in layer["choices"]} - {None}
        assert used == names, "no choice of another runtime's"
        plan = json.loads((folder / f"bit_plan_{position}.json").read_text())
        read = [layer["activation"] for layer in plan["layers"] if layer["activation"]]
        assert {tensor["symmetric"] for tensor in read if not tensor["dynamic"]} == {target["hardware"] == "t4"}
        said.append(names)
    assert not said[0] & said[1]
    page = (folder / "report.html").read_text()
    for name in said[0] | said[1]:
        assert name in page
