"""Capability: which matrix instruction of which architecture is real, as data.

CUDA compiles 4-bit matrix products for every architecture, but from sm_90 on it silently builds them from 8-bit ones
at about 190 extra instructions each, and int8 itself is missing from some new instruction families. So what a device
can run *fast* is a table and not a version comparison. Every entry is what NVRTC 13.5 emits for a kernel of that one
instruction (`instruction_probe`); the tests compile all of them again and compare.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from kernels.errors import KernelsError

ARCHITECTURES = (
    "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_110a", "sm_120a",
)  # fmt: skip
"""Architectures that every kernel is compiled for in the tests: T4; A100; A10, RTX 30; Orin; L4, RTX 40; H100, H200;
B200; B300; Thor; RTX 50."""


class Via(str, Enum):
    """How an architecture runs a precision, with the example of 4-bit weights and activations:

    | value         | meaning                                           | w4a4 on                    |
    |---------------|---------------------------------------------------|----------------------------|
    | `native`      | the arithmetic is done in the stored format       | sm_80 (IMMA.16864.S4)      |
    | `via_int8`    | stored small, multiplied by 8-bit instructions    | sm_90 (codes times 16)     |
    | `via_fp16`    | stored small, widened to half precision           | never; w4a16 everywhere    |
    | `emulated`    | one instruction in PTX, many in the machine       | sm_90 with PTX's own `s4`  |
    | `unsupported` | no kernel                                         | –                          |
    """

    NATIVE = "native"
    VIA_INT8 = "via_int8"
    VIA_FP16 = "via_fp16"
    EMULATED = "emulated"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class Lowering:
    """What one PTX instruction becomes on one architecture; without an opcode the compiler rejects it."""

    opcode: str = ""
    emulated: bool = False

    @property
    def rejected(self) -> bool:
        return not self.opcode


def _spread(*groups: tuple[str, str, bool]) -> Mapping[str, Lowering]:
    """Lowerings from (architectures, opcode, emulated) groups; architectures not named reject."""
    found = dict.fromkeys(ARCHITECTURES, Lowering())
    for architectures, opcode, emulated in groups:
        for number in architectures.split():
            found[_BY_NUMBER[number]] = Lowering(opcode, emulated)
    return found


_BY_NUMBER = {arch.strip("sm_a"): arch for arch in ARCHITECTURES}
_TURING, _AMPERE, _ADA, _HOPPER = "75", "80 86 87", "89", "90"
_BLACKWELL, _RTX50 = "100 103 110", "120"
_TO_ADA = f"{_TURING} {_AMPERE} {_ADA}"
_TO_HOPPER = f"{_TO_ADA} {_HOPPER}"
_NEW = f"{_BLACKWELL} {_RTX50}"
_FROM_AMPERE = f"{_AMPERE} {_ADA} {_HOPPER} {_NEW}"

INSTRUCTIONS: Mapping[str, Mapping[str, Lowering]] = {
    "mma.m8n8k16.s8": _spread((_TO_HOPPER, "IMMA.8816.S8.S8", False), (_NEW, "IMMA.16816.S8.S8", False)),
    "mma.m8n8k16.u8s8": _spread((_TO_HOPPER, "IMMA.8816.U8.S8", False), (_NEW, "IMMA.16816.U8.S8", False)),
    "mma.m16n8k32.s8": _spread((_FROM_AMPERE, "IMMA.16832.S8.S8", False)),
    "mma.m16n8k32.u8s8": _spread((_FROM_AMPERE, "IMMA.16832.U8.S8", False)),
    "mma.m8n8k32.s4": _spread(
        (_TO_ADA, "IMMA.8832.S4.S4", False), (_HOPPER, "IMMA.8816.S8.S8", True), (_NEW, "IMMA.16816.S8.S8", True)
    ),
    "mma.m8n8k32.u4s4": _spread(
        (_TO_ADA, "IMMA.8832.U4.S4", False), (_HOPPER, "IMMA.8816.U8.S8", True), (_NEW, "IMMA.16816.U8.S8", True)
    ),
    "mma.m16n8k64.s4": _spread(
        (f"{_AMPERE} {_ADA}", "IMMA.16864.S4.S4", False), (f"{_HOPPER} {_NEW}", "IMMA.16832.S8.S8", True)
    ),
    "mma.m16n8k64.u4s4": _spread(
        (f"{_AMPERE} {_ADA}", "IMMA.16864.U4.S4", False), (f"{_HOPPER} {_NEW}", "IMMA.16832.U8.S8", True)
    ),
    "mma.m16n8k256.b1": _spread(
        (f"{_AMPERE} {_ADA} {_HOPPER}", "BMMA.168256.AND.POPC", False), (_NEW, "IMMA.16832.U8.U8", True)
    ),
    "mma.m16n8k8.f16": _spread((f"{_TURING} {_FROM_AMPERE}", "HMMA.1688.F32", False)),
    "mma.m16n8k16.f16": _spread((_FROM_AMPERE, "HMMA.16816.F32", False)),
    "mma.m16n8k16.bf16": _spread((_FROM_AMPERE, "HMMA.16816.F32.BF16", False)),
    "mma.m16n8k32.e4m3": _spread(
        (f"{_ADA} {_RTX50}", "QMMA.16832.F32.E4M3.E4M3", False), (f"{_HOPPER} {_BLACKWELL}", "HMMA.16816.F32", True)
    ),
    "mma.m16n8k32.e2m1": _spread((_RTX50, "QMMA.16832.F32.E2M1.E2M1", False)),
    "wgmma.m64n8k32.s8": _spread((_HOPPER, "IGMMA.64x8x32.S8.S8", False)),
    "wgmma.m64n256k32.s8": _spread((_HOPPER, "IGMMA.64x256x32.S8.S8", False)),
    "wgmma.m64n8k32.e4m3": _spread((_HOPPER, "QGMMA.64x8x32.F32.E4M3.E4M3", False)),
    "tcgen05.i8": _spread(("100 110", "UTCIMMA", False)),
    "tcgen05.f8f6f4": _spread((_BLACKWELL, "UTCQMMA", False)),
}

_ALWAYS = dict.fromkeys(ARCHITECTURES, Via.NATIVE)
_FROM_80 = {arch: Via.UNSUPPORTED if arch == "sm_75" else Via.NATIVE for arch in ARCHITECTURES}

PRECISIONS: Mapping[str, Mapping[str, Via]] = {
    "fp32": _ALWAYS,
    "fp16": _ALWAYS,
    "bf16": _FROM_80,
    "fp8": {
        arch: Via.UNSUPPORTED if arch in ("sm_75", "sm_80", "sm_86", "sm_87") else Via.NATIVE for arch in ARCHITECTURES
    },
    "w8a8": _ALWAYS,
    "w4a8": dict.fromkeys(ARCHITECTURES, Via.VIA_INT8),
    "w4a4": {
        arch: Via.NATIVE if arch in ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89") else Via.VIA_INT8
        for arch in ARCHITECTURES
    },
    "w4a16": dict.fromkeys(ARCHITECTURES, Via.VIA_FP16),
}
"""Architecture by precision (a group size is no part of the name here): how the best kernel for it computes. fp8 on
sm_90a, sm_100a, sm_103a and sm_110a is native through wgmma and tcgen05 only; `mma.sync` would be emulated there."""


SHARED_BYTES: Mapping[str, int] = {
    arch: kibibytes * 1024
    for arch, kibibytes in zip(ARCHITECTURES, (64, 163, 99, 163, 99, 227, 227, 227, 227, 99), strict=True)
}
"""Most dynamic shared memory a block may ask for (CUDA C++ Programming Guide, table of technical specifications)."""


def shared_bytes_limit(arch: str) -> int:
    """Most dynamic shared memory of a block on `arch`, 0 for an architecture that is not in the table."""
    listed = nearest_listed(arch)
    return 0 if listed is None else SHARED_BYTES[listed]


def architecture(major: int, minor: int) -> str:
    """The name to compile for on a device of this compute capability: (9, 0) is `sm_90a`.

    Where the architecture has instructions of its own, its name ends in `a`. `KernelsError` (`unknown_architecture`)
    below 7.5, which CUDA 13 no longer compiles for.
    """
    if (major, minor) < (7, 5):
        raise KernelsError(
            f"compute capability {major}.{minor} is older than Turing", hint="these kernels need 7.5 or newer",
            code="unknown_architecture",
        )  # fmt: skip
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def capability(arch: str, precision: str) -> Via:
    """How `arch` runs a precision (`w4a16-g128` asks for w4a16, `w8a8-dynamic` for w8a8); unknown ones are unsupported.

    An architecture newer than the table answers as its nearest older listed relative of the same major version does.
    """
    row = PRECISIONS.get(re.split("-", precision)[0])
    listed = nearest_listed(arch)
    return Via.UNSUPPORTED if row is None or listed is None else row[listed]


def nearest_listed(arch: str) -> str | None:
    """The table's column for an architecture: itself, or the nearest older of its major version; None without one."""
    match = re.fullmatch(r"sm_(\d+)(\d)[af]?", arch)
    if match is None:
        return None
    major, minor = int(match[1]), int(match[2])
    same = [name for name in ARCHITECTURES if (int(name.strip("sm_a")) // 10) == major]
    older = [name for name in same if int(name.strip("sm_a")) % 10 <= minor]
    return older[-1] if older else None


def lowering(instruction: str, arch: str) -> Lowering:
    """What an instruction becomes on an architecture; `KernelsError` (`unknown_architecture`) for one not listed."""
    listed = nearest_listed(arch)
    if listed is None:
        raise KernelsError(
            f"{arch!r} is not in the capability table", hint=f"it lists {', '.join(ARCHITECTURES)}",
            code="unknown_architecture",
        )  # fmt: skip
    return INSTRUCTIONS[instruction][listed]


def chosen_instruction(preferred: tuple[str, ...], arch: str) -> str | None:
    """The first of a kernel's matrix instructions that `arch` does not reject; None when there is none."""
    return next((name for name in preferred if not lowering(name, arch).rejected), None)
