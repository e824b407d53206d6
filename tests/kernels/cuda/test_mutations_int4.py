"""4-bit kernels with one synchronization, or one step of their arithmetic, taken away must fail on the CPU."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest

from kernels.cuda.epilogue import Output
from kernels.cuda.int4 import GEMM_W4A8
from tests.kernels.cuda import int4_cases, test_gemm_w4a16
from tests.kernels.cuda.int4_cases import Problem
from tests.kernels.cuda.simt.emulator import EmulatedKernel, SimulationError, emulate_text
from tests.kernels.cuda.test_gemm_w4a16 import Layer

SEEDS = range(3)
W4A8, W4A16 = "src/int4_gemm.cuh", "gemm_w4a16.cu"
MUTATIONS = {
    "nothing": (W4A8, "constexpr int RASTER_GROUP = 8;", "constexpr int RASTER_GROUP = 1;"),
    "one group fewer is waited for": (W4A8, "cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();"),
    "no barrier before a stage is read": (W4A8, "__syncthreads();\n      if (step", "if (step"),
    "the stage that is read is filled": (W4A8, "read = 0, write = STAGES - 1;", "read = 0, write = 0;"),
    "a total is taken before its group ends": (W4A8, "if (!group_ends) return;", "if (group_ends) return;"),
    "nothing of weights only": (W4A16, "constexpr int RASTER_GROUP = 8;", "constexpr int RASTER_GROUP = 1;"),
    "too few of its own copies are waited for": (W4A16, "cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();"),
    "no barrier before activations are read": (W4A16, "__syncthreads();\n    if (step", "if (step"),
    "warps along K add up without turns": (W4A16, "    __syncthreads();\n  }\n}\n\nKERNEL", "  }\n}\n\nKERNEL"),
    "a group's sums are kept": (W4A16, "  zero(sums);\n}\n", "}\n"),
}  # fmt: skip


def mutated(file: str, old: str, new: str) -> str:
    """The text of the kernel with one place changed."""
    folder = resources.files("kernels.cuda")
    text = folder.joinpath(file).read_text()
    assert text.count(old) == 1
    text = text.replace(old, new)
    if file == W4A16:
        return text
    return folder.joinpath(GEMM_W4A8.file).read_text().replace('#include "int4_gemm.cuh"', text)


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_taken_away_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, old, new = MUTATIONS[name]
    text = mutated(file, old, new)

    def emulate_mutant(source: object, arch: str, tile: str, defines: dict[str, int]) -> EmulatedKernel:
        return emulate_text(text, source.entry, arch, {**source.defines(tile), **defines})  # type: ignore[attr-defined]

    module = test_gemm_w4a16 if file == W4A16 else int4_cases
    monkeypatch.setattr(module, "emulate", emulate_mutant)
    right = [(_weights_only if file == W4A16 else _product)(seed) for seed in SEEDS]
    assert all(right) if name.startswith("nothing") else not all(right)


def _product(seed: int) -> bool:
    problem = Problem.random(GEMM_W4A8, 20, 60, 700, seed)
    scale = 2.0 ** np.random.default_rng(seed).integers(-4, 1, (6, 60))
    expected = problem.x.astype(np.float64) @ (problem.weight.T * np.repeat(scale, 128, axis=0)[:700])
    try:
        found = problem.run(Output.F32, {}, scale=scale, group=128, seed=seed)
    except SimulationError:
        return False
    return bool((found == expected).all())


def _weights_only(seed: int) -> bool:
    layer = Layer(12, 60, 1100, 128, seed=seed)
    try:
        return bool((layer.run(align=4, seed=seed) == layer.exact).all())
    except (SimulationError, AssertionError):
        return False
