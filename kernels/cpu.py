"""This CPU as a device: its identity and the instruction sets that decide which kernels run."""

from __future__ import annotations

import os
import platform
import re
from functools import lru_cache
from pathlib import Path

from kernels.device_identity import DeviceIdentity

KERNEL_DECIDING_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
VNNI_FLAGS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_CACHE_ROOT = Path("/sys/devices/system/cpu/cpu0/cache")
_GIB = 1 << 30
_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@lru_cache(maxsize=1)
def this_cpu() -> DeviceIdentity:
    """The CPU this process runs on; `cores` counts what the process may use (its affinity mask)."""
    import psutil

    name, flags = _name_and_flags()
    return DeviceIdentity(
        kind="cpu",
        name=name,
        cores=usable_cores(),
        memory_bytes=round(psutil.virtual_memory().total / _GIB) * _GIB,  # what a kernel keeps for itself varies
        isa=tuple(flag for flag in KERNEL_DECIDING_FLAGS if flag in flags),
        l2_bytes=_cache_bytes(2),
        l3_bytes=_cache_bytes(3),
        os=f"{platform.system()} {platform.machine()}",
    )


def usable_cores() -> int:
    """Logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def saturates_in_int8(device: DeviceIdentity) -> bool:
    """True on x86 without VNNI, where u8 x s8 products are summed pairwise in 16 bit and full-range weights overflow.

    There weights must keep to 7 bits (`Numerics.reduced_range`); ARM widens to 32 bit and is safe.
    """
    return "x86" in device.os.lower().replace("amd64", "x86") and not VNNI_FLAGS & set(device.isa)


def has_bf16(device: DeviceIdentity) -> bool:
    """True on x86 whose units multiply bfloat16; elsewhere runtimes emulate it or have no kernels."""
    return bool(BF16_FLAGS & set(device.isa))


def load_average() -> float:
    """Runnable processes over the last minute; 0.0 where the system keeps no such figure."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def frequency_mhz() -> float:
    """Clock of the CPUs right now as the system reports it; 0.0 where it does not (many virtual machines)."""
    import psutil

    try:
        reading = psutil.cpu_freq()
    except (NotImplementedError, OSError):
        return 0.0
    return float(reading.current) if reading else 0.0


def _name_and_flags() -> tuple[str, frozenset[str]]:
    proc = Path("/proc/cpuinfo")
    if proc.is_file():
        fields = dict(re.findall(r"^([^\t:\n]+?)\s*: (.*)$", proc.read_text(), flags=re.MULTILINE))
        flags = fields.get("flags") or fields.get("Features")
        if "model name" in fields and flags:
            return fields["model name"], frozenset(flags.split())
    import cpuinfo  # asks the system by subprocesses, about a second: only where /proc does not answer

    info = cpuinfo.get_cpu_info()
    return info.get("brand_raw") or platform.processor() or "unknown CPU", frozenset(info.get("flags", ()))


def _cache_bytes(level: int) -> int:
    """Size of the first CPU's cache at a level, 0 when the system does not tell."""
    for index in sorted(_CACHE_ROOT.glob("index*")):
        if (index / "level").read_text().strip() != str(level):
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", (index / "size").read_text().strip())
        if match:
            return int(match[1]) * _BYTES[match[2]]
    return 0
