"""Probe: what an architecture makes of each matrix instruction, found by compiling a kernel of that one instruction.

The capability table is checked against this, and an architecture newer than the table can be asked by it.
"""

from __future__ import annotations

from kernels.cuda.capability import Lowering
from kernels.cuda.compile import compile_text
from kernels.cuda.disassembly import Function, disassemble, matrix_opcodes
from kernels.errors import UnsupportedInstruction

# Per instruction: what PTX calls it, and how many registers A, B and C take.
_MMA = {
    "mma.m8n8k16.s8": ("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32", 1, 1, 2),
    "mma.m8n8k16.u8s8": ("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32", 1, 1, 2),
    "mma.m16n8k32.s8": ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", 4, 2, 4),
    "mma.m16n8k32.u8s8": ("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32", 4, 2, 4),
    "mma.m8n8k32.s4": ("mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32", 1, 1, 2),
    "mma.m8n8k32.u4s4": ("mma.sync.aligned.m8n8k32.row.col.s32.u4.s4.s32", 1, 1, 2),
    "mma.m16n8k64.s4": ("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32", 4, 2, 4),
    "mma.m16n8k64.u4s4": ("mma.sync.aligned.m16n8k64.row.col.s32.u4.s4.s32", 4, 2, 4),
    "mma.m16n8k256.b1": ("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc", 4, 2, 4),
    "mma.m16n8k8.f16": ("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", 2, 1, 4),
    "mma.m16n8k16.f16": ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 4, 2, 4),
    "mma.m16n8k16.bf16": ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 4, 2, 4),
    "mma.m16n8k32.e4m3": ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", 4, 2, 4),
    "mma.m16n8k32.e2m1": ("mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e2m1.e2m1.f32", 4, 2, 4),
}
_WGMMA = {
    "wgmma.m64n8k32.s8": ("wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8", 4, "1"),
    "wgmma.m64n256k32.s8": ("wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8", 128, "1"),
    "wgmma.m64n8k32.e4m3": ("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3", 4, "1, 1, 1"),
}
_TCGEN05 = {"tcgen05.i8": "i8", "tcgen05.f8f6f4": "f8f6f4"}
PROBED = (*_MMA, *_WGMMA, *_TCGEN05)


def probe(arch: str, instructions: tuple[str, ...] = PROBED) -> dict[str, Lowering]:
    """What each instruction becomes on `arch`; several machine instructions for one are `emulated`."""
    kernels = {name: f"probe_{number}" for number, name in enumerate(instructions)}
    accepted = [name for name in instructions if _compiles(name, kernels[name], arch)]
    found = dict.fromkeys(instructions, Lowering())
    if accepted:
        text = "\n".join(probe_source(name, kernels[name]) for name in accepted)
        functions = disassemble(compile_text(text, "", arch, {}, name="probe").code)
        found |= {name: _lowering(functions[kernels[name]]) for name in accepted}
    return found


def probe_source(instruction: str, entry: str) -> str:
    """A kernel that loads the operands of one instruction, runs it once and stores what it gives."""
    if instruction in _MMA:
        return _mma_source(entry, *_MMA[instruction])
    if instruction in _WGMMA:
        return _wgmma_source(entry, *_WGMMA[instruction])
    return (
        f'extern "C" __global__ void {entry}(unsigned long long a, unsigned b) {{ asm volatile("{{ .reg .pred p; '
        f'setp.ne.b32 p, %1, 0; tcgen05.mma.cta_group::1.kind::{_TCGEN05[instruction]} [%1], %0, %0, %1, p; }}" '
        f':: "l"(a), "r"(b)); }}'
    )


def _mma_source(entry: str, ptx: str, a: int, b: int, c: int) -> str:
    kind, letter = ("float", "f") if ".f32." in ptx else ("int", "r")
    names = [f"%{i}" for i in range(a + b + c)]
    groups = (names[:c], names[c : c + a], names[c + a :], names[:c])
    operands = ", ".join("{" + ", ".join(group) + "}" for group in groups)
    outputs = ", ".join(f'"+{letter}"(c[{i}])' for i in range(c))
    inputs = ", ".join(f'"r"(in[{i}])' for i in range(a + b))
    return (
        f'extern "C" __global__ void {entry}({kind}* out, const unsigned* from) {{ {kind} c[{c}]; unsigned in[{a + b}];'
        f" for (int i = 0; i < {c}; ++i) c[i] = out[threadIdx.x * {c} + i];"
        f" for (int i = 0; i < {a + b}; ++i) in[i] = from[threadIdx.x * {a + b} + i];"
        f' asm volatile("{ptx} {operands};" : {outputs} : {inputs});'
        f" for (int i = 0; i < {c}; ++i) out[threadIdx.x * {c} + i] = c[i]; }}"
    )


def _wgmma_source(entry: str, ptx: str, c: int, scales: str) -> str:
    kind, letter = ("float", "f") if ".f32." in ptx else ("int", "r")
    registers = ", ".join(f"%{i}" for i in range(c))
    outputs = ", ".join(f'"+{letter}"(c[{i}])' for i in range(c))
    return (
        f'extern "C" __global__ void {entry}({kind}* out, unsigned long long a) {{ {kind} c[{c}] = {{}};'
        f' asm volatile("wgmma.fence.sync.aligned;");'
        f' asm volatile("{ptx} {{{registers}}}, %{c}, %{c}, {scales};" : {outputs} : "l"(a));'
        f' asm volatile("wgmma.commit_group.sync.aligned;"); asm volatile("wgmma.wait_group.sync.aligned 0;");'
        f" for (int i = 0; i < {c}; ++i) out[threadIdx.x * {c} + i] = c[i]; }}"
    )


def _compiles(instruction: str, entry: str, arch: str) -> bool:
    try:
        compile_text(probe_source(instruction, entry), entry, arch, {}, name=instruction)
    except UnsupportedInstruction:
        return False
    return True


def _lowering(function: Function) -> Lowering:
    opcodes = matrix_opcodes(function.opcodes)
    return Lowering(opcodes[0], emulated=len(opcodes) > 1)
