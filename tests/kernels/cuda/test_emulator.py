"""The emulator itself: it must compute what a GPU computes, and it must notice what a GPU may hide."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.cuda.simt.emulator import EmulatedKernel, Memory, SimulationError, emulate_text

COPY = """
#include "primitives.cuh"
KERNEL void copy(const s32* from, s32* to, s32 n, s32 beyond) {
  const s32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n + beyond) to[i] = from[i] + beyond;
}
"""
REVERSE = """
#include "primitives.cuh"
KERNEL void reverse(const s32* from, s32* to) {
  DYNAMIC_SHARED(bytes);
  s32* words = reinterpret_cast<s32*>(bytes);
  words[threadIdx.x] = from[threadIdx.x];
  if (WITH_BARRIER) __syncthreads();
  to[threadIdx.x] = words[blockDim.x - 1 - threadIdx.x];
}
"""
STAGED = """
#include "primitives.cuh"
KERNEL void staged(const u8* from, u8* to) {
  DYNAMIC_SHARED(bytes);
  cp_async_16(shared_address(bytes) + 16 * threadIdx.x, from + 16 * threadIdx.x, 16);
  cp_async_commit();
  if (WITH_WAIT) cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 16; ++i) to[16 * threadIdx.x + i] = bytes[16 * (blockDim.x - 1 - threadIdx.x) + i];
  cp_async_wait<0>();
}
"""
DIVERGENT = """
#include "primitives.cuh"
KERNEL void divergent(u32* to) {
  if (threadIdx.x % 2 || MODE == 0) to[threadIdx.x] = shuffle_xor(threadIdx.x, 1);
  else if (MODE == 1) __syncthreads();
  else sync_warp();
}
"""
SHARED_MISUSE = """
#include "primitives.cuh"
KERNEL void misuse(const u8* from) {
  DYNAMIC_SHARED(bytes);
  cp_async_16(shared_address(bytes) + OFFSET, from, 16);
  cp_async_commit();
  if (WAIT) cp_async_wait<0>();
}
"""


def run_copy(n: int, beyond: int) -> np.ndarray:
    device = Memory()
    values = np.arange(n, dtype=np.int32)
    source, target = device.upload(values, "from"), device.empty((n,), np.int32, "to")
    emulate_text(COPY, "copy").launch(
        device, (-(-(n + beyond) // 64),), (64,), [source, target, np.int32(n), np.int32(beyond)]
    )
    return target.array


@pytest.mark.parametrize("n", [1, 63, 64, 1000, 5000])
def test_a_grid_of_threads_runs(n: int) -> None:
    assert (run_copy(n, 0) == np.arange(n)).all()


def test_one_element_too_many_is_noticed_behind_a_whole_vector() -> None:
    with pytest.raises(SimulationError, match=r"illegal access \(block 1,0,0 thread 0,0,0\).* \+256 bytes"):
        run_copy(64, 1)


def test_a_write_into_the_last_vector_is_noticed() -> None:
    with pytest.raises(SimulationError, match="wrote outside buffer 'to'"):
        run_copy(62, 1)


def reverse(with_barrier: int, seed: int) -> bool:
    device = Memory()
    values = np.arange(96, dtype=np.int32)
    source, target = device.upload(values, "from"), device.empty((96,), np.int32, "to")
    kernel = emulate_text(REVERSE, "reverse", defines={"WITH_BARRIER": with_barrier})
    kernel.launch(device, (1,), (96,), [source, target], shared_bytes=384, seed=seed)
    return bool((target.array == values[::-1]).all())


def test_a_missing_barrier_gives_wrong_results() -> None:
    assert all(reverse(1, seed) for seed in range(5))
    assert not any(reverse(0, seed) for seed in range(5))


def staged(with_wait: int, seed: int) -> bool:
    device = Memory()
    values = np.arange(64 * 16, dtype=np.uint8)
    source, target = device.upload(values, "from"), device.empty((64 * 16,), np.uint8, "to")
    kernel = emulate_text(STAGED, "staged", defines={"WITH_WAIT": with_wait})
    kernel.launch(device, (1,), (64,), [source, target], shared_bytes=1024, seed=seed)
    return bool((target.array == values.reshape(64, 16)[::-1].ravel()).all())


def test_a_missing_wait_gives_wrong_results() -> None:
    assert all(staged(1, seed) for seed in range(5))
    assert not any(staged(0, seed) for seed in range(5))


def divergent(mode: int) -> EmulatedKernel:
    device = Memory()
    target = device.empty((32,), np.uint32, "to")
    kernel = emulate_text(DIVERGENT, "divergent", defines={"MODE": mode})
    kernel.launch(device, (1,), (32,), [target])
    assert (target.array == np.arange(32) ^ 1).all()
    return kernel


def test_lanes_that_part_are_noticed() -> None:
    divergent(0)
    with pytest.raises(SimulationError, match="deadlock, 32 threads never end"):
        divergent(1)
    with pytest.raises(SimulationError, match="lanes of one warp are at"):
        divergent(2)


@pytest.mark.parametrize(
    ("offset", "wait", "message"),
    [(8, 1, "not a multiple of 16"), (1024, 1, "lie outside 1024 bytes"), (0, 0, "copies under way")],
)
def test_misuse_of_shared_memory_is_named(offset: int, wait: int, message: str) -> None:
    device = Memory()
    source = device.upload(np.zeros(16, np.uint8), "from")
    kernel = emulate_text(SHARED_MISUSE, "misuse", defines={"OFFSET": offset, "WAIT": wait})

    def launch() -> None:
        for seed in range(4):
            kernel.launch(device, (1,), (1,), [source], shared_bytes=1024, seed=seed)

    with pytest.raises(SimulationError, match=message):
        launch()


def test_arguments_are_checked_against_the_kernel() -> None:
    device = Memory()
    array = device.empty((4,), np.int32, "from")
    kernel = emulate_text(COPY, "copy")
    with pytest.raises(SimulationError, match="takes 4 arguments, not 2"):
        kernel.launch(device, (1,), (1,), [array, array])
    with pytest.raises(SimulationError, match="argument 2 has 8 bytes, the kernel takes 4"):
        kernel.launch(device, (1,), (1,), [array, array, np.int64(4), np.int32(0)])
