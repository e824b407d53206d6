"""Compilation: a kernel's source to a cubin for one exact architecture, through NVRTC, with a cache on disk.

NVRTC comes as a wheel (extras `cuda13` or `cuda12`) and needs no toolkit, host compiler, driver or GPU. The result is
machine code for the exact architecture and not PTX, which an older driver may be unable to translate.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kernels.cuda.source import Defines, KernelSource
from kernels.errors import BackendUnavailable, CompilationFailed, KernelsError, UnsupportedInstruction

STANDARD = "c++17"
_ELF = b"\x7fELF"
_ARCH = re.compile(r"sm_(\d+)([af]?)")
# How NVRTC words that an architecture lacks an instruction or a type of one.
_LACKS = re.compile(r"requires \.target|not supported on \.target|cannot be compiled for architecture|is not supported")
_LOG_CHARACTERS = 4000


@dataclass(frozen=True)
class Cubin:
    """Machine code of one kernel: `entry` is the symbol to launch, `key` the hash of all that it was made from."""

    code: bytes
    entry: str
    arch: str
    key: str
    cached: bool


def compile_kernel(
    source: KernelSource,
    arch: str,
    tile: str | None = None,
    cache: Path | None = None,
    more_defines: Defines | None = None,
) -> Cubin:
    """The cubin of a kernel for `arch` (`sm_80`, `sm_90a`, …) in one tile configuration.

    `cache` is a folder (None: compile anew). `more_defines` are macros beside the tile's, such as an output type.
    Raises `BackendUnavailable` without NVRTC, `KernelsError` (`unknown_architecture`), `UnsupportedInstruction` when
    the architecture lacks an instruction of the kernel, and `CompilationFailed` with the compiler's log otherwise.
    """
    return compile_text(
        source.text(), source.entry, arch, {**source.defines(tile), **(more_defines or {})}, cache, name=source.name
    )


def compile_text(
    text: str, entry: str, arch: str, defines: Defines, cache: Path | None = None, name: str = "kernel"
) -> Cubin:
    """The cubin of one translation unit; see `compile_kernel`."""
    check_architecture(arch)
    key = _key(text, arch, defines)
    path = None if cache is None else cache / f"{key}.cubin"
    if path is not None and (code := _read_cached(path)) is not None:
        return Cubin(code, entry, arch, key, cached=True)
    code = _nvrtc(text, arch, defines, name)
    if path is not None:
        _write_cached(path, code)
    return Cubin(code, entry, arch, key, cached=False)


def default_cache_folder() -> Path:
    """Where compiled kernels are kept for this user."""
    return Path.home() / ".cache" / "bitwright" / "kernels"


@lru_cache(maxsize=1)
def nvrtc_version() -> tuple[int, int]:
    """Version of the NVRTC that would compile; `BackendUnavailable` when there is none."""
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # ImportError without the wheels, a loader's own error without the shared library
        raise _no_nvrtc(error) from error
    if int(status) != 0:
        raise _no_nvrtc(RuntimeError(f"nvrtcVersion: {status}"))
    return int(major), int(minor)


@lru_cache(maxsize=1)
def supported_architectures() -> tuple[int, ...]:
    """Compute capabilities (75, 80, …) that this NVRTC compiles for."""
    nvrtc_version()
    from cuda.bindings import nvrtc

    status, found = nvrtc.nvrtcGetSupportedArchs()
    if int(status) != 0:
        raise _no_nvrtc(RuntimeError(f"nvrtcGetSupportedArchs: {status}"))
    return tuple(int(number) for number in found)


def check_architecture(arch: str) -> None:
    """`KernelsError` (`unknown_architecture`) unless this NVRTC compiles for `arch`."""
    match = _ARCH.fullmatch(arch)
    if match is None or int(match[1]) not in supported_architectures():
        known = ", ".join(f"sm_{number}" for number in supported_architectures())
        major, minor = nvrtc_version()
        raise KernelsError(
            f"NVRTC {major}.{minor} does not compile for {arch!r}", hint=f"it knows {known}",
            code="unknown_architecture",
        )  # fmt: skip


def _nvrtc(text: str, arch: str, defines: Defines, name: str) -> bytes:
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise _no_nvrtc(error) from error
    macros: list[str | tuple[str, str]] = [(key, str(value)) for key, value in defines.items()]
    options: dict[str, Any] = {"std": STANDARD, "arch": arch, "name": f"{name}.cu"}
    if macros:
        options["define_macro"] = macros
    try:
        compiled = Program(text, "c++", ProgramOptions(**options)).compile("cubin")
    except Exception as error:  # cuda-core's own exception classes are private and moved between releases
        raise _rejected(name, arch, defines, str(error).replace(chr(0), "").strip()) from error
    return bytes(compiled.code)


def _rejected(name: str, arch: str, defines: Defines, log: str) -> CompilationFailed:
    tile = " ".join(f"-D{key}={value}" for key, value in defines.items())
    complaints = [line.strip() for line in log.splitlines() if "error" in line.lower() or "Feature" in line]
    lacking = next((line for line in complaints if _LACKS.search(line)), None)
    if lacking is not None:
        return UnsupportedInstruction(
            f"{arch} lacks an instruction of kernel {name!r}: {lacking}",
            hint="kernels.cuda.capability says what this architecture runs",
        )
    return CompilationFailed(
        f"kernel {name!r} does not compile for {arch} with {tile or 'no macros'}: {log[:_LOG_CHARACTERS]}",
        hint="a kernel of the package must compile: please report it with this message",
    )


def _key(text: str, arch: str, defines: Defines) -> str:
    parts = {
        "text": text, "arch": arch, "defines": sorted((k, str(v)) for k, v in defines.items()),
        "standard": STANDARD, "nvrtc": nvrtc_version(),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_cached(path: Path) -> bytes | None:
    try:
        code = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _bad_cache(path, error) from error
    return code if code.startswith(_ELF) else None


def _write_cached(path: Path, code: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(code)
        partial.replace(path)
    except OSError as error:
        raise _bad_cache(path, error) from error


def _bad_cache(path: Path, error: OSError) -> KernelsError:
    return KernelsError(
        f"cannot use the kernel cache {path.parent}: {error}", hint="choose a writable folder, or none",
        code="kernel_cache",
    )  # fmt: skip


def _no_nvrtc(error: Exception) -> BackendUnavailable:
    return BackendUnavailable(
        f"NVRTC is not installed: {error}",
        hint="pip install 'bitwright-server[cuda13]' (driver r580 or newer) or '[cuda12]' (r525 or newer)",
        code="no_nvrtc",
    )
