"""One step of each 4-bit path: exact, and as cheap in machine code as the capability table's choice rests on."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import reference
from kernels.cuda import packing
from kernels.cuda.capability import ARCHITECTURES, lowering
from kernels.cuda.compile import compile_kernel
from kernels.cuda.disassembly import arithmetic_count, disassemble, matrix_opcodes
from kernels.cuda.int4 import INT4_STEP
from tests.kernels.cuda.simt.emulator import Memory, emulate

LANE = np.arange(32)
G, T = LANE // 4, LANE % 4
STEPS = 4
MOST_PER_STEP = {"w4a8": 12, "w4a4": 24, "s4": 4}
# Where int8 products are cut down, every one of them also copies its accumulators.
CUT_DOWN, COPIES_PER_STEP = "sm_103a", 8
LEAST_EMULATED = 150


def step_arithmetic(arch: str, path: str) -> float:
    """Operations beside products per step of the main loop, with the subroutines that it calls."""
    function = disassemble(compile_kernel(INT4_STEP, arch, path).code)[INT4_STEP.entry]
    assert function.spills == 0
    assert function.main_loop is not None
    return arithmetic_count(function.main_loop.opcodes) / STEPS


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_unpacking_costs_what_was_promised_and_emulation_does_not(arch: str) -> None:
    extra = COPIES_PER_STEP if arch == CUT_DOWN else 0
    for path in ("w4a8", "w4a4"):
        assert step_arithmetic(arch, path) <= MOST_PER_STEP[path] + extra
    if lowering("mma.m8n8k32.s4", arch).emulated:
        assert step_arithmetic(arch, "s4") >= LEAST_EMULATED
    else:
        assert step_arithmetic(arch, "s4") <= MOST_PER_STEP["s4"]


@pytest.mark.parametrize("arch", ["sm_75", "sm_90a"])
def test_an_int8_path_uses_int8_products_only(arch: str) -> None:
    expected = {lowering("mma.m8n8k16.s8" if arch == "sm_75" else "mma.m16n8k32.s8", arch).opcode}
    for path in ("w4a8", "w4a4"):
        function = disassemble(compile_kernel(INT4_STEP, arch, path).code)[INT4_STEP.entry]
        assert set(matrix_opcodes(function.opcodes)) == expected


def fragments(path: str, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Registers of every lane and step: activations as operand A, then the weights' two words as B."""
    words = packing.pack_int4(w)
    steps = []
    for step in range(words.shape[1] // 8):
        b = [words[G, 8 * step + 2 * T + i] for i in (0, 1)]
        if path == "w4a8":
            block = x[:, 64 * step : 64 * (step + 1)].copy().view("<u4")  # 16 words of 4 bytes a row
            a = [block[G + row, 4 * T + at] for base in (0, 2) for at in (base, base + 1) for row in (0, 8)]
        else:
            rows = packing.pack_int4(x)
            a = [rows[G + row, 8 * step + 2 * T + i] for i in (0, 1) for row in (0, 8)]
        filler = [np.zeros_like(b[0])] * (-(len(a) + 2) % 4)
        steps.append(np.stack([*a, *b, *filler], axis=1))
    return np.stack(steps)


@pytest.mark.parametrize(("path", "factor"), [("w4a8", 16), ("w4a4", 256), ("s4", 1)])
def test_sums_are_the_reference_times_the_factor(path: str, factor: int) -> None:
    rng = np.random.default_rng(factor)
    limit = 128 if path == "w4a8" else 8
    k = 64 * STEPS
    x, w = rng.integers(-limit, limit, (16, k), dtype=np.int8), rng.integers(-8, 8, (8, k), dtype=np.int8)
    device = Memory()
    operands = device.upload(fragments(path, x, w), "operands")
    out = device.empty((32, 4), np.int32, "out")
    emulate(INT4_STEP, "sm_80", path).launch(device, (1,), (32,), [operands, out, np.int32(STEPS)])
    expected = factor * reference.linear(x.astype(np.int64), w.T.astype(np.int64))
    rows, columns = np.stack([G, G, G + 8, G + 8], axis=1), np.stack([2 * T, 2 * T + 1] * 2, axis=1)
    assert np.array_equal(out.array, expected[rows, columns])
