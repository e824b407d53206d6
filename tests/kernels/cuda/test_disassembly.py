"""Reading machine code: functions, loops, called subroutines, spills."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kernels.cuda import disassembly
from kernels.cuda.compile import compile_text
from kernels.cuda.disassembly import arithmetic_count, disassemble, matrix_opcodes, parse_listing
from kernels.errors import BackendUnavailable, KernelsError

LISTING = """
	//----- nvinfo : EIATTR_REGCOUNT
	.align		4
        /*0000*/ 	.byte	0x04, 0x2f
        /*0004*/ 	.word	index@(product)
        /*0008*/ 	.word	0x00000048
	.section	.text.product,"ax",@progbits
.text.product:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0020*/              @!PT LDS RZ, [RZ] ;
        /*0030*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0040*/                   CALL.REL.NOINC `($__internal_0_$emulated) ;
        /*0050*/                   CALL.REL.NOINC `($__internal_0_$emulated) ;
        /*0060*/              @!P0 BRA `(.L_x_1) ;
        /*0070*/                   STG.E [R2.64], R4 ;
        /*0080*/                   EXIT ;
$__internal_0_$emulated:
        /*0090*/                   LOP3.LUT R6, R6, 0xf, RZ, 0xc0, !PT ;
        /*00a0*/                   IMMA.16832.S8.S8.SAT R4, R8.ROW, R2.COL, RZ ;
        /*00b0*/                   RET.REL.NODEC R12 `(product) ;
.L_x_2:
        /*00c0*/                   BRA `(.L_x_2);
        /*00d0*/                   NOP;
	.section	.text.other,"ax",@progbits
.text.other:
        /*0000*/              @P1  STL [R1], R2 ;
        /*0010*/                   LDL R2, [R1] ;
        /*0020*/                   EXIT ;
"""


def test_a_loop_holds_what_its_calls_execute() -> None:
    product = parse_listing(LISTING)["product"]
    assert product.registers == 0x48
    assert product.matrix_opcodes == {"IMMA.16832.S8.S8"}
    assert len(product.loops) == 1
    assert product.main_loop is not None
    executed = product.main_loop.opcodes
    assert matrix_opcodes(executed) == ["IMMA.16832.S8.S8"] * 2
    assert arithmetic_count(executed) == 3  # one addition, one LOP3 per call
    assert "LDS" not in executed


def test_accesses_to_local_memory_are_spills() -> None:
    functions = parse_listing(LISTING)
    assert functions["other"].spills == 2
    assert functions["product"].spills == 0
    assert functions["other"].main_loop is None


def test_what_the_compiler_emits_is_read() -> None:
    text = """
    extern "C" __global__ void first(int* x) { x[threadIdx.x] *= 3; }
    extern "C" __global__ void second(float* x, int n) { for (int i = 0; i < n; ++i) x[i] = sqrtf(x[i]) + 1; }
    """
    functions = disassemble(compile_text(text, "first", "sm_80", {}).code)
    assert {"first", "second"} <= set(functions)
    assert functions["first"].main_loop is None
    assert functions["second"].main_loop is not None
    assert functions["second"].registers > 0


def test_bytes_that_are_no_cubin_are_refused() -> None:
    with pytest.raises(KernelsError, match="cannot read the cubin") as caught:
        disassemble(b"nothing")
    assert caught.value.code == "disassembly_failed"


def test_without_nvdisasm_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disassembly._nvdisasm.cache_clear()
    monkeypatch.setattr(disassembly.metadata, "files", lambda name: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="nvdisasm is not installed") as caught:
        disassemble(b"")
    assert caught.value.code == "no_disassembler"
    disassembly._nvdisasm.cache_clear()


def test_a_disassembler_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("nvdisasm", 120)

    monkeypatch.setattr(subprocess, "run", never)
    with pytest.raises(KernelsError, match="took longer than") as caught:
        disassemble(b"")
    assert caught.value.code == "disassembly_failed"
