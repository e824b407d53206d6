"""The exactness cases: right kernels pass them on the fake device and on the emulator, wrong ones do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_exactness, gpu_shapes
from benchmarks.gpu_bench import Bench
from kernels.backends import cuda_models
from kernels.backends.cuda_fake import FakeCudaDevice
from kernels.op_shape import Conv2dShape, LinearShape, OpShape
from tests.kernels.cuda.emulated_device import EmulatedCudaDevice

SMALL = {
    "linear": LinearShape(5, 72, 19),
    "conv2d": Conv2dShape(1, 6, 5, 4, 9, (3, 2), (2, 1), (1, 0, 0, 1), groups=3),
    "depthwise": Conv2dShape(1, 7, 6, 5, 7, (3, 3), (1, 1), (1, 1, 1, 1), groups=7),
}


def bench(device: FakeCudaDevice, folder: Path) -> Bench:
    return Bench(device, is_dry=True, folder=folder, seconds=600.0)


def test_every_case_passes_on_the_fake_device(tmp_path: Path) -> None:
    cases = gpu_exactness.cases(bench(FakeCudaDevice(), tmp_path))
    assert {"linear w4a16", "conv2d w4a4 epilogues", "depthwise w8a8 epilogues", "requantize"} < set(cases)
    for name, case in cases.items():
        right, wrong, kernels = gpu_exactness.check(bench(FakeCudaDevice(), tmp_path), name, case, 6, 60.0)
        assert (right, wrong) == (6, []), name
        assert sum(kernels.values()) == 6


@pytest.mark.parametrize("name", ["linear w8a8", "linear w4a4", "linear w4a16", "conv2d w4a8", "depthwise w8a8"])
def test_epilogues_pass_on_the_kernels_themselves(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def small(kind: str, rng: object) -> OpShape:
        return SMALL[kind]

    monkeypatch.setattr(gpu_shapes, "random_op", small)
    here = bench(EmulatedCudaDevice(), tmp_path)
    right, wrong, _ = gpu_exactness.check(here, name, gpu_exactness.cases(here)[f"{name} epilogues"], 4, 60.0)
    assert (right, wrong) == (4, [])


def test_a_wrong_epilogue_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_models, "_residual", lambda output, e, shape: None)
    here = bench(FakeCudaDevice(), tmp_path)
    right, wrong, _ = gpu_exactness.check(here, "any", gpu_exactness.cases(here)["linear w8a8 epilogues"], 12, 60.0)
    assert 0 < right < 12, "those without a residual are right"
    assert "outputs are off" in wrong[0]
