"""gemm_s8_wgmma.cu on the CPU, with copy engine, barriers and descriptors emulated, against exact integer products."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from kernels.cuda.epilogue import Output
from kernels.cuda.int8 import GEMM_S8_WGMMA, WGMMA_BLOCK_K, WGMMA_TILES, wgmma_shared_bytes, wgmma_threads
from kernels.cuda.random_epilogue import DTYPES, random_epilogue
from kernels.reference import linear
from tests.kernels.cuda.simt.emulator import GuardedArray, Memory, emulate


class EmulatedTensorMap(ctypes.Structure):
    """`struct TensorMap` of simt/hopper_machine.hpp."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("width", ctypes.c_int64), ("height", ctypes.c_int64), ("pitch", ctypes.c_int64),
        ("box_width", ctypes.c_uint32), ("box_height", ctypes.c_uint32), ("unused", ctypes.c_uint64 * 11),
    )  # fmt: skip


def check(seed: int, tile: str, m: int, n: int, k: int, blocks: int, output: Output, unsigned: bool = False) -> None:
    rng = np.random.default_rng(seed)
    device = Memory()
    shape = WGMMA_TILES[tile]

    def operand(rows: int, low: int, high: int, name: str, box: int) -> tuple[np.ndarray, EmulatedTensorMap]:
        pitch = -(-k // 16) * 16 + 16 * int(rng.integers(2))
        stored = rng.integers(low, high, (rows, pitch)).astype(np.uint8 if low == 0 else np.int8)
        held: GuardedArray = device.upload(stored, name)
        return stored[:, :k].astype(np.int64), EmulatedTensorMap(held.address, k, rows, pitch, WGMMA_BLOCK_K, box)

    a, a_map = operand(m, 0 if unsigned else -128, 256 if unsigned else 128, "a", int(shape["BLOCK_M"]))
    b, b_map = operand(n, -128, 128, "b", int(shape["BLOCK_N"]))
    out = device.empty((m, n), DTYPES[output], "out")
    case = random_epilogue(rng, output, m, n, spread=74.0 * 74.0 * np.sqrt(k) + 1)
    kernel = emulate(GEMM_S8_WGMMA, "sm_90a", tile, {"OUTPUT": int(output), "A_UNSIGNED": int(unsigned)})
    kernel.launch(
        device, (blocks,), (wgmma_threads(shape),),
        [a_map, b_map, case.arguments(device.address_of, out.address, n), *map(np.int32, (m, n, k))],
        shared_bytes=wgmma_shared_bytes(shape), seed=seed,
    )  # fmt: skip
    np.testing.assert_array_equal(out.array, case.expected(linear(a, b.T)))


def test_a_block_that_takes_several_tiles_is_exact() -> None:
    for seed, (m, n, k) in enumerate([(1, 1, 1), (130, 300, 200), (70, 520, 1300), (260, 37, 128)]):
        check(seed, "128x256", m, n, k, blocks=1 + seed % 2, output=Output.S8)


@pytest.mark.parametrize(("tile", "output"), [("64x128", Output.F32), ("128x128", Output.S32), ("64x256", Output.F16)])
def test_every_tile_is_exact_with_unsigned_activations(tile: str, output: Output) -> None:
    for seed, (m, n, k) in enumerate([(65, 131, 257), (200, 250, 1100)]):
        check(seed, tile, m, n, k, blocks=2, output=output, unsigned=True)


def test_shared_memory_fits_into_a_multiprocessor() -> None:
    assert max(wgmma_shared_bytes(tile) for tile in WGMMA_TILES.values()) <= 227 * 1024
