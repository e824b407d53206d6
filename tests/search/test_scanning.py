"""Shards of a scan put together are the scan, bit for bit, and nothing that was saved is computed again."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import study_folder

import search.candidates.saved as saved_candidates
import search.sensitivity.scan as sensitivity_scan
from search.pipeline import STAGES
from search.scanning import scan_shard
from search.sensitivity.storage import load_sensitivities
from search.stages import STAGES as STAGE_NAMES

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET: Callable[..., None] = lambda *_: None  # noqa: E731
SPEC: dict[str, Any] = {
    "targets": [{"hardware": "fake"}],
    "seed": 1,
    "options": {"scan_samples": 128, "metrics": ["gauss_newton", "kl"]},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = study_folder(tmp_path_factory.mktemp("whole") / "study")
    STAGES["scan"](SPEC, folder, QUIET)
    return folder


def share(source: Path, target: Path) -> None:
    """What a shard saved reaches the folder of another stage."""
    (target / "saved").mkdir(exist_ok=True)
    for path in (source / "saved").iterdir():
        (target / "saved" / path.name).write_bytes(path.read_bytes())


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("computed again")


@pytest.mark.parametrize("count", [2, 3])
def test_shards_are_the_scan_bit_for_bit(
    whole: Path, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = study_folder(tmp_path / "merged")
    for index in reversed(range(count)):
        part = study_folder(tmp_path / f"part{index}")
        scan_shard({**SPEC, "shard": [index, count]}, part, QUIET)
        share(part, merged)
    monkeypatch.setattr(saved_candidates, "finish_wanted", refuse)
    monkeypatch.setattr(sensitivity_scan, "_measure", refuse)
    STAGES["scan"](SPEC, merged, QUIET)
    for name in ("candidates_0.json", "sensitivity_0.json", "loss_0.json"):
        assert (merged / name).read_text() == (whole / name).read_text()
    for name in ("candidates_0.npz", "interactions_0.npz"):
        with np.load(merged / name) as found, np.load(whole / name) as expected:
            assert found.files == expected.files
            for array in expected.files:
                np.testing.assert_array_equal(found[array], expected[array])


def test_an_interrupted_scan_goes_on_where_it_stopped(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study_folder(tmp_path / "study")
    monkeypatch.setattr(sensitivity_scan, "_BLOCK_KEYS", 2)
    sound, calls = sensitivity_scan._measure, []

    def dies(*arguments: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(arguments[1]))
        return sound(*arguments)

    monkeypatch.setattr(sensitivity_scan, "_measure", dies)
    with pytest.raises(KeyboardInterrupt):
        STAGES["scan"](SPEC, folder, QUIET)
    rows = len([path for path in (folder / "saved").iterdir() if not path.name.startswith("candidate")])
    assert rows == 6
    monkeypatch.setattr(saved_candidates, "finish_wanted", refuse)
    monkeypatch.setattr(sensitivity_scan, "_measure", sound)
    done: list[int] = []
    STAGES["scan"](SPEC, folder, lambda finished, *_: done.append(finished))
    assert done[0] == rows
    assert load_sensitivities(folder, "_0")["kl"] == load_sensitivities(whole, "_0")["kl"]


def test_a_new_device_needs_only_the_precisions_it_adds(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study_folder(tmp_path / "study")
    narrow = {**SPEC, "options": {**SPEC["options"], "precisions": ["w8a8"]}}
    STAGES["scan"](narrow, folder, QUIET)
    sound, built = sensitivity_scan._measure, []

    def counted(simulator: Any, assemblies: Any, *rest: Any) -> Any:
        built.extend({candidate.precision.name for each in assemblies for candidate in each.candidates.values()})
        return sound(simulator, assemblies, *rest)

    monkeypatch.setattr(sensitivity_scan, "_measure", counted)
    STAGES["scan"](SPEC, folder, QUIET)
    assert built
    assert load_sensitivities(folder, "_0")["kl"].increases == load_sensitivities(whole, "_0")["kl"].increases


def test_every_stage_can_be_run_alone() -> None:
    for kind, reference in STAGE_NAMES.items():
        module, _, function = reference.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), kind
    assert {kind: STAGE_NAMES[kind].rpartition(":")[2] for kind in STAGES} == {kind: kind for kind in STAGES}
