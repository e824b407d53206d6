"""What every kernel must be on every architecture: compiled or rejected as expected, on the right units, unspilled."""

from __future__ import annotations

import pytest

from kernels.cuda.capability import chosen_instruction, lowering
from kernels.cuda.compile import compile_kernel
from kernels.cuda.disassembly import Function, disassemble
from kernels.cuda.source import KernelSource
from kernels.errors import UnsupportedInstruction


def check_compiled(source: KernelSource, arch: str, tile: str | None = None) -> Function | None:
    """The kernel's machine code, from a cold cache; None where it is rightly rejected."""
    if arch in source.rejected_by:
        with pytest.raises(UnsupportedInstruction, match=f"{arch} lacks an instruction of kernel '{source.name}'"):
            compile_kernel(source, arch, tile)
        return None
    function = disassemble(compile_kernel(source, arch, tile).code)[source.entry]
    instruction = chosen_instruction(source.instructions, arch)
    expected = {lowering(instruction, arch).opcode} if instruction else set()
    assert function.matrix_opcodes == expected
    # Where the instruction is emulated the kernel is only an opponent, and its extra work may need more registers.
    assert function.spills == 0 or (instruction and lowering(instruction, arch).emulated)
    assert 0 < function.registers <= 255
    return function
