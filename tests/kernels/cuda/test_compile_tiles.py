"""Every tile of the 8-bit products keeps its sums in registers."""

from __future__ import annotations

import pytest

from kernels.cuda import int8
from kernels.cuda.compile import compile_kernel
from kernels.cuda.disassembly import disassemble
from tests.kernels.cuda.compiled import check_compiled


@pytest.mark.parametrize("tile", int8.GEMM_S8.tiles)
def test_tile_of_warps(tile: str) -> None:
    check_compiled(int8.GEMM_S8, "sm_86", tile)


@pytest.mark.parametrize("tile", int8.GEMM_S8_WGMMA.tiles)
def test_tile_of_warpgroups(tile: str) -> None:
    columns = int8.WGMMA_TILES[tile]["BLOCK_N"]
    function = disassemble(compile_kernel(int8.GEMM_S8_WGMMA, "sm_90a", tile).code)[int8.GEMM_S8_WGMMA.entry]
    assert function.matrix_opcodes == {f"IGMMA.64x{columns}x32.S8.S8"}
    assert function.spills == 0
