"""Disassembly: the machine instructions of a cubin, function by function, read with nvdisasm.

The tests assert on *sets* of opcodes and on ratios inside loops, never on counts: loops get unrolled differently from
one compiler release to the next.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from kernels.errors import BackendUnavailable, KernelsError

_FUNCTION = re.compile(r"^\.text\.([\w$.]+):", re.MULTILINE)
_REGISTERS = re.compile(r"EIATTR_REGCOUNT.*?index@\(([\w$.]+)\).*?\.word\s+0x([0-9a-f]+)", re.DOTALL)
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)([^;]*);")
_NEVER = "@!PT "  # what an erratum makes the compiler put before some copies; it does nothing
_LABEL = re.compile(r"^\s*([\w$.]+):")
_TARGET = re.compile(r"`\(([\w$.]+)\)")
MATRIX_OPCODES = ("IMMA", "HMMA", "QMMA", "BMMA", "OMMA", "IGMMA", "HGMMA", "QGMMA", "BGMMA", "UTC")
_SPILLS = ("LDL", "STL")
_NOT_ARITHMETIC = (
    *MATRIX_OPCODES, "LD", "ST", "BAR", "BRA", "BSYNC", "BSSY", "NOP", "EXIT", "DEPBAR", "MEMBAR", "WARPSYNC", "SYNCS",
    "UTMA", "UBLKCP", "ERRBAR", "CCTL", "RET", "CALL", "FENCE", "YIELD", "NANOSLEEP", "ARRIVES", "WARPGROUP",
)  # fmt: skip
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Loop:
    """The instructions between a label and the last branch back to it, with inner loops and called subroutines."""

    opcodes: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """One function of a cubin: opcodes in program order with their modifiers (`IMMA.16832.S8.S8`)."""

    name: str
    opcodes: tuple[str, ...]
    loops: tuple[Loop, ...]
    registers: int

    @property
    def matrix_opcodes(self) -> frozenset[str]:
        """The distinct tensor-core opcodes."""
        return frozenset(matrix_opcodes(self.opcodes))

    @property
    def spills(self) -> int:
        """Accesses to local memory, which is where registers go that do not fit."""
        return sum(opcode.split(".")[0] in _SPILLS for opcode in self.opcodes)

    @property
    def main_loop(self) -> Loop | None:
        """The innermost loop with the most tensor-core instructions, or the largest loop; None without one."""
        if not self.loops:
            return None
        return max(self.loops, key=lambda loop: (len(matrix_opcodes(loop.opcodes)), -len(loop.opcodes)))


def matrix_opcodes(opcodes: tuple[str, ...]) -> list[str]:
    """The tensor-core instructions among opcodes, with repeats."""
    return [_without_saturation(opcode) for opcode in opcodes if opcode.startswith(MATRIX_OPCODES)]


def arithmetic_count(opcodes: tuple[str, ...]) -> int:
    """How many opcodes compute something beside the tensor cores: no loads, stores, branches or barriers."""
    return sum(not opcode.startswith(_NOT_ARITHMETIC) for opcode in opcodes)


def count_by_kind(opcodes: tuple[str, ...]) -> Counter[str]:
    """How often each opcode appears, without its modifiers."""
    return Counter(opcode.split(".")[0] for opcode in opcodes)


def disassemble(cubin: bytes) -> dict[str, Function]:
    """Every function of a cubin by its symbol; `BackendUnavailable` without nvdisasm, `KernelsError` when it fails."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run(
                [_nvdisasm(), file.name], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise KernelsError(
                f"nvdisasm took longer than {_TIMEOUT_S} s", hint="is the machine overloaded? try again",
                code="disassembly_failed",
            ) from error  # fmt: skip
    if done.returncode:
        raise KernelsError(
            f"nvdisasm cannot read the cubin: {done.stderr.strip()}", hint="install the nvdisasm of the same CUDA",
            code="disassembly_failed",
        )  # fmt: skip
    return parse_listing(done.stdout)


def parse_listing(listing: str) -> dict[str, Function]:
    """Functions in the text that nvdisasm prints."""
    registers = {name: int(number, 16) for name, number in _REGISTERS.findall(listing)}
    starts = list(_FUNCTION.finditer(listing))
    ends = [match.start() for match in starts[1:]] + [len(listing)]
    found = {}
    for match, end in zip(starts, ends, strict=True):
        found[match[1]] = _function(match[1], listing[match.end() : end], registers.get(match[1], 0))
    return found


def _function(name: str, body: str, registers: int) -> Function:
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    targets: dict[int, str] = {}
    for line in body.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(opcodes)
        if (instruction := _INSTRUCTION.search(line)) and _NEVER not in line:
            if target := _TARGET.search(instruction[2]):
                targets[len(opcodes)] = target[1]
            opcodes.append(instruction[1])

    def executed(start: int, end: int) -> tuple[str, ...]:
        """Opcodes from start to end with called subroutines in place: that is where emulated instructions are."""
        found: list[str] = []
        for at in range(start, end):
            found.append(opcodes[at])
            callee = labels.get(targets.get(at, ""))
            if opcodes[at].startswith("CALL") and callee is not None:
                behind = range(callee, len(opcodes))
                returns = next((i for i in behind if opcodes[i].startswith("RET")), len(opcodes) - 1)
                found += opcodes[callee : returns + 1]
        return tuple(found)

    last_branch: dict[int, int] = {}
    for at, target_label in targets.items():
        start = labels.get(target_label)
        if opcodes[at].startswith("BRA") and start is not None and start < at:  # one to itself is padding behind EXIT
            last_branch[start] = max(at, last_branch.get(start, 0))
    loops = tuple(Loop(executed(start, end + 1)) for start, end in sorted(last_branch.items()))
    return Function(name, tuple(opcodes), loops, registers)


def _without_saturation(opcode: str) -> str:
    return opcode.removesuffix(".SAT")


@lru_cache(maxsize=1)
def _nvdisasm() -> str:
    """The nvdisasm of the wheel, else one on the path."""
    try:
        files = metadata.files("nvidia-cuda-nvdisasm") or []
        for file in files:
            if file.name == "nvdisasm" and (path := Path(str(file.locate()))).exists():
                return str(path)
    except metadata.PackageNotFoundError:
        pass
    if found := shutil.which("nvdisasm"):
        return found
    raise BackendUnavailable(
        "nvdisasm is not installed", hint="pip install nvidia-cuda-nvdisasm", code="no_disassembler"
    )
