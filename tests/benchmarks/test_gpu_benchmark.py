"""The GPU benchmark without a GPU: it says so, and its dry run goes through sections in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_networks import encoder, resnet50
from kernels.errors import BackendUnavailable
from search.onnx_import import graph_from_model

# What a GPU image need not hold: the search's solver, another runtime, the service and its command line.
ABSENT = (
    "pulp",
    "highspy",
    "openvino",
    "typer",
    "rich",
    "fastapi",
    "sqlalchemy",
    "celery",
    "matplotlib",
)
BLOCK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from benchmarks import gpu, gpu_exactness, gpu_speed, gpu_validation
import kernels.backends.cuda_profile, kernels.backends.cuda_driver
"""


def test_without_a_gpu_it_says_so_and_exits_with_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def none(dry_run: bool) -> None:
        raise BackendUnavailable("there is no NVIDIA driver on this machine", code="cuda_no_driver")

    monkeypatch.setattr(gpu, "connect", none)
    monkeypatch.setenv(gpu.RESULTS, str(tmp_path))
    assert gpu.main([]) == gpu.NO_GPU
    assert capsys.readouterr().out.strip() == "nothing to measure: there is no NVIDIA driver on this machine"


def test_a_dry_run_fills_the_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(gpu.RESULTS, str(tmp_path))
    assert gpu.main(["--dry-run", "--only", "encoder"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["dry_run"] is True
    assert [(section["section"], section["status"]) for section in results["sections"]] == [("encoder", "done")]
    assert any("uniform-w8a8" in name for name in results["sections"][0])
    assert json.loads((tmp_path / "latency_table_encoder.json").read_text())["rows"]
    closing = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert closing["benchmark"] == "gpu"
    assert "encoder" in (tmp_path / "gpu.log").read_text()


def test_a_section_that_fails_or_is_too_slow_keeps_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(gpu.RESULTS, str(tmp_path))
    sections = (
        gpu.Section("unknown", 60.0),
        gpu.Section("exactness", 0.2),
        gpu.Section("sanitizer", 9.0, ("no-such",)),
    )
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    assert gpu.main(["--dry-run"]) == 1
    found = json.loads((tmp_path / "results.json").read_text())["sections"]
    assert [section["status"] for section in found] == ["failed", "timed out", "not installed"]


def test_it_needs_only_what_a_gpu_image_holds() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_networks_have_the_shapes_of_their_papers() -> None:
    graph = graph_from_model(resnet50(size=64))
    assert len(graph.layers) == 54
    assert sum(layer.weight_count for layer in graph.layers) == 25_502_912
    blocks = graph_from_model(encoder(depth=2))
    assert sum(layer.weight_count for layer in blocks.layers) == 2 * 12 * 768 * 768
