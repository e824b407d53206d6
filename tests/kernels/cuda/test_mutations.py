"""Kernels with one synchronization taken away must fail on the CPU: the proof that the proof can fail."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest

from kernels.cuda.epilogue import EpilogueArguments, Output
from kernels.cuda.int8 import GEMM_S8, WGMMA_TILES, gemm_tile, wgmma_shared_bytes, wgmma_threads
from tests.kernels.cuda.simt.emulator import EmulatedKernel, Memory, SimulationError, emulate_text
from tests.kernels.cuda.test_gemm_s8_wgmma import EmulatedTensorMap

M, N, K = 30, 60, 700
SEEDS = range(4)


def mutated(file: str, entry: str, arch: str, defines: dict[str, int], old: str, new: str) -> EmulatedKernel:
    text = resources.files("kernels.cuda").joinpath(file).read_text()
    assert text.count(old) == 1
    return emulate_text(text.replace(old, new), entry, arch, defines)


def agrees(run: str, kernel: EmulatedKernel, seed: int) -> bool:
    """Whether a product comes out right; an error of the simulation counts as wrong."""
    rng = np.random.default_rng(seed)
    device = Memory()
    pitch = -(-K // 16) * 16
    a, b = (rng.integers(-128, 128, (rows, pitch), np.int8) for rows in (M, N))
    a_held, b_held = device.upload(a, "a"), device.upload(b, "b")
    out = device.empty((M, N), np.int32, "out")
    epilogue = EpilogueArguments(out=out.address, ld_out=N)
    try:
        if run == "gemm_s8":
            sizes = [np.int32(value) for value in (M, N, K, pitch, pitch)]
            kernel.launch(
                device, (2,), (64,), [a_held, b_held, epilogue, *sizes, None, None], shared_bytes=12288, seed=seed
            )
        else:
            tile = WGMMA_TILES["64x128"]
            maps = [
                EmulatedTensorMap(a_held.address, K, M, pitch, 128, 64),
                EmulatedTensorMap(b_held.address, K, N, pitch, 128, 128),
            ]
            kernel.launch(
                device, (1,), (wgmma_threads(tile),), [*maps, epilogue, *map(np.int32, (M, N, K))],
                shared_bytes=wgmma_shared_bytes({**tile, "STAGES": 2}), seed=seed,
            )  # fmt: skip
    except SimulationError:
        return False
    return bool((out.array == a[:, :K].astype(np.int64) @ b[:, :K].astype(np.int64).T).all())


GEMM = {**gemm_tile(32, 32, 64, 3, 1, 2), "OUTPUT": int(Output.S32)}
WGMMA = {**WGMMA_TILES["64x128"], "STAGES": 2, "OUTPUT": int(Output.S32)}
MUTATIONS = {
    "nothing": ("gemm_s8", "constexpr int RASTER_GROUP = 8;", "constexpr int RASTER_GROUP = 1;"),
    "one group fewer is waited for": ("gemm_s8", "cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();"),
    "no barrier before a stage is read": ("gemm_s8", "__syncthreads();\n    if (tile", "if (tile"),
    "the stage that is read is filled": ("gemm_s8", "write = STAGES - 1;", "write = 0;"),
    "nothing of wgmma": ("gemm_s8_wgmma", "constexpr int RASTER_GROUP = 8;", "constexpr int RASTER_GROUP = 1;"),
    "a stage is freed before its products are done": ("gemm_s8_wgmma", "wgmma_wait<1>();", "wgmma_wait<2>();"),
    "a stage is read before it is full": (
        "gemm_s8_wgmma", "mbarrier_wait(barriers.full(turn.stage), turn.round);", "",
    ),
    "a stage is filled before it is empty": (
        "gemm_s8_wgmma", "mbarrier_wait(barriers.empty(turn.stage), turn.round ^ 1);", "",
    ),
    "sums are read before they are done": ("gemm_s8_wgmma", "wgmma_wait<0>();", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_missing_synchronization_shows(name: str) -> None:
    run, old, new = MUTATIONS[name]
    arch, defines = ("sm_80", GEMM) if run == "gemm_s8" else ("sm_90a", WGMMA)
    kernel = mutated(f"{run}.cu", GEMM_S8.entry if run == "gemm_s8" else run, arch, defines, old, new)
    right = [agrees(run, kernel, seed) for seed in SEEDS]
    assert all(right) if name.startswith("nothing") else not all(right)
