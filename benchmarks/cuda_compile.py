"""CUDA kernels without a GPU: how long they compile, what machine code comes out, and what a step of INT4 costs.

Every kernel in its default tile, for every architecture, from a cold cache in two processes; the machine code is read
back and compared with the capability table. Opponent of the 4-bit paths: PTX's own `mma.s4`, which compiles everywhere
but is emulated from sm_90 on. Counted are the arithmetic instructions that one step of 64 along K executes beside the
tensor cores, in a kernel that does nothing else (`int4_step.cu`); in the tiled products each unpacking serves many
multiplications.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from benchmarks.bars import Bar, at_least, at_most, finish, print_table
from kernels.cuda import lane_model
from kernels.cuda.capability import ARCHITECTURES, INSTRUCTIONS, chosen_instruction, lowering
from kernels.cuda.catalog import KERNELS
from kernels.cuda.compile import compile_kernel, compile_text, nvrtc_version
from kernels.cuda.disassembly import arithmetic_count, disassemble, matrix_opcodes
from kernels.cuda.packing import pack_int4, unpack_int4
from kernels.cuda.probe import PROBED, probe
from kernels.cuda.source import KernelSource, read_source
from kernels.errors import UnsupportedInstruction

PROCESSES = 2
SECONDS = 60.0
STEPS_PER_LOOP = 4
FEWER_THAN_EMULATED = 5.0
STEP_PATHS = {"w4a8 (x16)": 8, "w4a4 (x16)": 4, "mma.s4": 0}
MODEL_SHAPES = ((16, 8, 64), (32, 16, 128), (40, 21, 200))


@dataclass(frozen=True)
class Compiled:
    """One kernel on one architecture; `seconds` of the compiler alone. `rejected`: the architecture lacks it."""

    kernel: str
    arch: str
    seconds: float
    rejected: bool
    as_expected: bool
    emulated: bool = False
    spills: int = 0
    registers: int = 0
    opcodes: tuple[str, ...] = ()
    loop_matrix: int = 0
    loop_arithmetic: int = 0


def main() -> int:
    started = time.perf_counter()
    pairs = [(source, arch) for source in KERNELS for arch in ARCHITECTURES]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        compiled = []
        for done, result in enumerate(pool.map(_compile, pairs, chunksize=4), 1):
            compiled.append(result)
            print(f"\r{done}/{len(pairs)} {result.kernel} {result.arch}".ljust(60), end="", file=sys.stderr)
        print(file=sys.stderr)
        seconds = time.perf_counter() - started
        differing = sum(pool.map(_differences, ARCHITECTURES))
    steps = {name: {arch: step_arithmetic(path, arch) for arch in ARCHITECTURES} for name, path in STEP_PATHS.items()}
    major, minor = nvrtc_version()
    print(f"NVRTC {major}.{minor}, {len(KERNELS)} kernels x {len(ARCHITECTURES)} architectures in {seconds:.1f} s\n")
    _print_seconds(compiled)
    _print_machine_code(compiled)
    _print_steps(steps)
    for c in compiled:
        if not c.as_expected or (c.spills and not c.emulated):
            print(f"not as promised: {c.kernel} on {c.arch}: {'+'.join(c.opcodes) or 'rejected'}, {c.spills} spills")
    return finish("cuda_compile", bars(compiled, seconds, differing, steps, _wrong_in_models()))


def bars(
    compiled: Sequence[Compiled], seconds: float, differing: int, steps: dict[str, dict[str, float]], wrong: int
) -> list[Bar]:
    """What the run promises."""
    emulating = [arch for arch in ARCHITECTURES if lowering("mma.m16n8k64.s4", arch).emulated]
    fewer = {
        name: min(steps["mma.s4"][arch] / steps[name][arch] for arch in emulating)
        for name in STEP_PATHS
        if "x16" in name
    }
    unexpected = sum(not c.as_expected for c in compiled)
    spills = sum(c.spills for c in compiled if not c.emulated)
    return [
        at_least("kernels x architectures", len(compiled), "pairs", len(KERNELS) * len(ARCHITECTURES)),
        at_most("compiled and read back", seconds, "s", SECONDS),
        at_most("machine code that differs from the capability table", unexpected, "pairs", 0),
        at_most("instructions probed that differ from the table", differing, "entries", 0),
        at_most("spills outside emulated instructions", spills, "accesses", 0),
        *(
            at_least(f"{name} against emulated mma.s4, fewer instructions a step", times, "x", FEWER_THAN_EMULATED)
            for name, times in fewer.items()
        ),
        at_most("wrong elements in fragment models and packing", wrong, "elements", 0),
    ]


def step_arithmetic(path: int, arch: str) -> float:
    """Instructions beside the tensor cores that one step of K 64 executes, for a 16 x 8 tile of one warp."""
    cubin = compile_text(read_source("int4_step.cu"), "int4_step", arch, {"STEP": path}).code
    loop = disassemble(cubin)["int4_step"].main_loop
    assert loop is not None
    return arithmetic_count(loop.opcodes) / STEPS_PER_LOOP


def _compile(pair: tuple[KernelSource, str]) -> Compiled:
    source, arch = pair
    started = time.perf_counter()
    try:
        cubin = compile_kernel(source, arch).code
    except UnsupportedInstruction:
        return Compiled(source.name, arch, time.perf_counter() - started, True, arch in source.rejected_by)
    seconds = time.perf_counter() - started
    function = disassemble(cubin)[source.entry]
    instruction = chosen_instruction(source.instructions, arch)
    expected = {lowering(instruction, arch).opcode} if instruction else set()
    loop = function.main_loop.opcodes if function.main_loop else ()
    return Compiled(
        source.name,
        arch,
        seconds,
        rejected=False,
        as_expected=function.matrix_opcodes == expected and arch not in source.rejected_by,
        emulated=instruction is not None and lowering(instruction, arch).emulated,
        spills=function.spills,
        registers=function.registers,
        opcodes=tuple(sorted(function.matrix_opcodes)),
        loop_matrix=len(matrix_opcodes(loop)),
        loop_arithmetic=arithmetic_count(loop),
    )


def _differences(arch: str) -> int:
    return sum(found != INSTRUCTIONS[name][arch] for name, found in probe(arch, PROBED).items())


def _wrong_in_models() -> int:
    """Elements on which the lane-by-lane models or the packing differ from plain integer products."""
    rng = np.random.default_rng(0)
    wrong = 0
    for m, n, k in MODEL_SHAPES:
        w = rng.integers(-8, 8, (n, k))
        words = pack_int4(w)
        wrong += int((unpack_int4(words, k) != w).sum())
        for bits, tile, factor in (
            (8, lane_model.w4a8_tile, 16), (4, lane_model.w4a4_tile, 256), (4, lane_model.s4_tile, 1),
        ):  # fmt: skip
            x = rng.integers(-(1 << bits - 1), 1 << bits - 1, (m, k))
            operand = x.astype(np.int8) if bits == 8 else pack_int4(x)
            wrong += int((lane_model.gemm_words(operand, words, tile) != factor * (x @ w.T)).sum())
    return wrong


def _print_seconds(compiled: Sequence[Compiled]) -> None:
    header = ["seconds", *(arch.removeprefix("sm_") for arch in ARCHITECTURES), "sum"]
    rows = []
    for source in KERNELS:
        row = [c for c in compiled if c.kernel == source.name]
        cells = ["reject" if c.rejected else f"{c.seconds:.2f}" for c in row]
        rows.append([source.name, *cells, f"{sum(c.seconds for c in row):.1f}"])
    print_table(header, rows)
    print()


def _print_machine_code(compiled: Sequence[Compiled]) -> None:
    shown = [c for c in compiled if c.loop_matrix and c.arch in ("sm_75", "sm_80", "sm_90a", "sm_120a")]
    rows = [
        [
            c.kernel, c.arch, "+".join(c.opcodes) + (" (emulated)" if c.emulated else ""), c.registers, c.loop_matrix,
            c.loop_arithmetic, c.loop_arithmetic / c.loop_matrix, c.spills,
        ]
        for c in shown
    ]  # fmt: skip
    header = ["kernel", "arch", "tensor-core opcodes", "registers", "in main loop", "arithmetic", "each", "spills"]
    print_table(header, rows)
    print()


def _print_steps(steps: dict[str, dict[str, float]]) -> None:
    header = ["instructions a step of K 64", *(arch.removeprefix("sm_") for arch in ARCHITECTURES)]
    print_table(header, [[name, *(row[arch] for arch in ARCHITECTURES)] for name, row in steps.items()])


if __name__ == "__main__":
    sys.exit(main())
