"""gemm_s8.cu itself, run thread by thread on the CPU, against exact integer products: every tile, edge and epilogue."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.cuda.epilogue import Output
from kernels.cuda.int8 import GEMM_S8, gemm_tile
from kernels.cuda.random_epilogue import DTYPES, random_epilogue
from kernels.cuda.source import Defines
from kernels.reference import linear
from tests.kernels.cuda.simt.emulator import Memory, Statistics, emulate

Array = np.ndarray[Any, Any]
# Small tiles walk the same code with fewer threads, so that many shapes fit into a test.
SMALL: dict[str, Defines] = {
    "32x32": gemm_tile(32, 32, 64, 3, 1, 2),
    "64x32": gemm_tile(64, 32, 128, 2, 2, 1),
    "16x64": gemm_tile(16, 64, 64, 4, 1, 2),
}


def check(
    seed: int, tile: Defines, m: int, n: int, k: int, *, output: Output = Output.S8, arch: str = "sm_80",
    align: int = 16, unsigned: bool = False, splits: int = 0,
) -> Statistics:  # fmt: skip
    """One random product of a shape, compared in every element and around them."""
    rng = np.random.default_rng(seed)
    device = Memory()

    def operand(rows: int, low: int, high: int, name: str) -> tuple[Array, Any, int]:
        ld = -(-k // align) * align + align * int(rng.integers(2))
        stored = rng.integers(low, high, (rows, ld)).astype(np.uint8 if low == 0 else np.int8)
        return stored[:, :k].astype(np.int64), device.upload(stored, name), ld

    a, a_buffer, lda = operand(m, 0 if unsigned else -128, 256 if unsigned else 128, "a")
    b, b_buffer, ldb = operand(n, -128, 128, "b")
    ld_out = n + int(rng.integers(2)) * int(rng.integers(1, 9))
    out = device.empty((m, ld_out), DTYPES[output], "out")
    case = random_epilogue(rng, output, m, n, spread=74.0 * 74.0 * np.sqrt(k) + 1, ld_residual=ld_out)
    blocks = -(-m // int(tile["BLOCK_M"])) * -(-n // int(tile["BLOCK_N"]))
    area = int(tile["BLOCK_M"]) * int(tile["BLOCK_N"])
    partial = device.empty((max(1, splits) * blocks * area,), np.int32, "partial") if splits else None
    arrivals = device.upload(np.zeros(blocks, np.uint32), "arrivals") if splits else None
    macros = {
        **tile, "OUTPUT": int(output), "ALIGN_A": align, "ALIGN_B": align, "A_UNSIGNED": int(unsigned),
        "SPLIT_K": int(splits > 0),
    }  # fmt: skip
    kernel = emulate(GEMM_S8, arch, more_defines=macros)
    sizes = [np.int32(value) for value in (m, n, k, lda, ldb)]
    statistics = kernel.launch(
        device, (blocks, 1, max(1, splits)), (32 * int(tile["WARPS_M"]) * int(tile["WARPS_N"]),),
        [a_buffer, b_buffer, case.arguments(device.address_of, out.address, ld_out), *sizes, partial, arrivals],
        shared_bytes=int(tile["STAGES"]) * (int(tile["BLOCK_M"]) + int(tile["BLOCK_N"])) * int(tile["BLOCK_K"]),
        seed=seed,
    )  # fmt: skip
    np.testing.assert_array_equal(out.array[:, :n], case.expected(linear(a, b.T)))
    assert (out.array[:, n:].view(np.uint8) == 0xCD).all()
    if arrivals is not None:
        assert not arrivals.array.any()
    return statistics


CASES = [
    ("32x32", Output.S8, False), ("32x32", Output.U8, True), ("64x32", Output.F32, False), ("64x32", Output.F16, True),
    ("16x64", Output.S32, False), ("16x64", Output.BF16, True),
]  # fmt: skip


@pytest.mark.parametrize(("tile", "output", "unsigned"), CASES)
def test_random_shapes_are_exact(tile: str, output: Output, unsigned: bool) -> None:
    for seed in range(6):
        rng = np.random.default_rng([seed, *tile.encode()])
        m, n, k = (int(rng.integers(1, top)) for top in (90, 90, 300))
        check(seed, SMALL[tile], m, n, k, output=output, unsigned=unsigned)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (33, 31, 65), (32, 32, 64), (1, 70, 128), (65, 1, 15)])
def test_edges_are_exact(m: int, n: int, k: int) -> None:
    check(3, SMALL["32x32"], m, n, k)


@pytest.mark.parametrize("align", [1, 4])
def test_rows_without_alignment_are_exact(align: int) -> None:
    for seed, k in enumerate((1, 3, 7, 70, 133)):
        check(seed, SMALL["32x32"], 35, 37, k, align=align)


@pytest.mark.parametrize("unsigned", [False, True])
def test_turing_composes_the_same_product_of_quarters(unsigned: bool) -> None:
    check(7, SMALL["32x32"], 40, 45, 170, arch="sm_75", unsigned=unsigned)


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_blocks_that_share_k_give_the_exact_sum(splits: int) -> None:
    check(11, SMALL["16x64"], 18, 70, 300, splits=splits)
    check(12, SMALL["16x64"], 3, 130, 64, splits=splits)


@pytest.mark.parametrize("tile", GEMM_S8.tiles)
def test_every_shipped_tile_is_exact_and_reads_shared_memory_without_conflicts(tile: str) -> None:
    shape = GEMM_S8.tiles[tile]
    m, n = int(shape["BLOCK_M"]) - 3, int(shape["BLOCK_N"]) + 5
    statistics = check(1, shape, m, n, 2 * int(shape["BLOCK_K"]) + 9)
    assert statistics.ldmatrix_rows_of_eight > 0
    assert statistics.ldmatrix_conflicts == 0
