"""A whole study on a GPU, up to its verdict: the fake device runs every assembly by the kernels of its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import images, small_cnn

from kernels.backends.cuda import Cuda
from kernels.backends.cuda_fake import FakeCudaDevice
from kernels.backends.cuda_kernels import OurKernels
from kernels.backends.cuda_opponents import opponents
from kernels.profiles.cuda import cuda_profile
from search import pipeline
from search.evaluation import evaluate
from search.study_folder import StudyFolder

QUIET: Callable[..., None] = lambda *_: None  # noqa: E731


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeCudaDevice(arch="sm_80")
    profile = replace(cuda_profile("cuda-local", device.identity, device.arch), measurable_here=True)
    backend = Cuda(profile, device, [OurKernels(device), *opponents(device)])
    monkeypatch.setattr(StudyFolder, "profile", lambda folder, hardware: profile)
    for module in (pipeline, evaluate):
        monkeypatch.setattr(module, "backend_for", lambda profile: backend)


def test_a_study_of_a_gpu_ends_in_a_verdict_measured_there(tmp_path: Path, gpu: None) -> None:
    onnx.save(small_cnn(width=32).model, tmp_path / "model.onnx")
    np.savez(tmp_path / "dataset.npz", **images(384))
    spec: dict[str, Any] = {
        "targets": [{"hardware": "cuda-local", "operating_point": {"batch": 24}, "budgets": {"size_bytes": "0.6x"}}],
        "options": {"scan_samples": 64, "front_points": 4, "metrics": ["kl"]},
    }
    for stage in pipeline.STAGES:
        pipeline.STAGES[stage](spec, tmp_path, QUIET)
    (target,) = json.loads((tmp_path / "report.json").read_text())["targets"]
    assert target["runtime"] == "cuda"
    assert target["verdict"]["kind"] in ("chosen", "no_gain")
    built = {row["name"]: row for row in target["assemblies"]}
    assert all(row["measured"]["median_ms"] > 0 and row["discarded"] is None for row in built.values())
    full = built["fp32"]["select"]["loss"]["value"]
    assert 0 < full < min(row["select"]["loss"]["value"] for name, row in built.items() if name != "fp32"), (
        "full precision runs in half there, and what that loses is said"
    )
