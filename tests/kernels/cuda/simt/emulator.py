"""Emulator: the package's `.cu` files compiled by g++ and run on the CPU, thread by thread, exactly.

How a test uses it:

    kernel = emulate(source, "sm_80", tile="128x128")      # once; g++ runs here (skips with a sentence without g++)
    device = Memory()
    a = device.upload(np_array, "a")                       # copied between guard pages
    out = device.empty((m, n), np.int8, "out")             # poisoned
    kernel.launch(device, grid, block, [a, np.int32(m), epilogue_arguments(out.address, …)], shared_bytes=…, seed=3)
    assert (out.array == expected).all()

Arguments are `GuardedArray` (its address is passed), numpy scalars and `ctypes.Structure` by value, in the kernel's
own order. `launch` raises `SimulationError` for: an access outside every buffer (with the buffer's name; to 16 bytes,
writes to the byte), a deadlock, lanes of a warp at different instructions, a misaligned or out-of-range access to
shared memory by ldmatrix or cp.async, a cp.async still under way at the end, arguments of the wrong number or size.
The scheduling of threads is random from `seed`: a missing barrier or wait shows as a wrong result on most seeds. The
statistics it returns count ldmatrix bank conflicts.

Kernels must put what ldmatrix and cp.async touch into dynamic shared memory (`DYNAMIC_SHARED`). Blocks run one after
another.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.cuda.source import KernelSource, expand_headers, read_source

HERE = Path(__file__).parent
REPLACED = {f"{name}.cuh": f'#include "{HERE / name}.hpp"\n' for name in ("machine", "hopper_machine")}
POISON = 0xCD  # what fresh buffers hold
GUARD = 0xDB  # what lies around them
_VECTOR = 16
_PAGE = mmap.PAGESIZE
_PROT_NONE = 0


class SimulationError(AssertionError):
    """The kernel did something that a GPU would not forgive, or not always."""


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint), ("seed", ctypes.c_uint),
    )  # fmt: skip


class Statistics(ctypes.Structure):
    """Counts of one launch; `ldmatrix_conflicts` are passes over shared memory beyond `ldmatrix_rows_of_eight`."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("ldmatrix_rows_of_eight", "ldmatrix_conflicts", "barriers", "collectives", "copies")
    )


class _Result(ctypes.Structure):
    _fields_ = (("message", ctypes.c_char * 480), ("fault_address", ctypes.c_uint64), ("statistics", Statistics))


class GuardedArray:
    """A numpy array that ends within 16 bytes of an unmapped page and starts behind another."""

    def __init__(self, shape: Sequence[int], dtype: Any, name: str) -> None:
        self.name = name
        self.dtype = np.dtype(dtype)
        self.size = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        inside = -(-max(self.size, 1) // _PAGE) * _PAGE
        self._map = mmap.mmap(-1, inside + 2 * _PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        for page in (base, base + _PAGE + inside):
            if libc.mprotect(ctypes.c_void_p(page), _PAGE, _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        # As far back as an allocation's alignment to 16 bytes allows.
        offset = _PAGE + inside - -(-self.size // _VECTOR) * _VECTOR
        self.address = base + offset
        self.span = (base, base + inside + 2 * _PAGE)
        self._all = np.frombuffer(self._map, np.uint8, inside, _PAGE)
        self._start = offset - _PAGE
        self._all[:] = GUARD
        self._all[self._start : self._start + self.size] = POISON
        self.array = self._all[self._start : self._start + self.size].view(self.dtype).reshape(shape)

    def check_guards(self) -> None:
        before, behind = self._all[: self._start], self._all[self._start + self.size :]
        if (before != GUARD).any() or (behind != GUARD).any():
            raise SimulationError(f"the kernel wrote outside buffer {self.name!r}")


class Memory:
    """The buffers of one test."""

    def __init__(self) -> None:
        self.arrays: list[GuardedArray] = []

    def empty(self, shape: Sequence[int], dtype: Any, name: str) -> GuardedArray:
        """A poisoned buffer (every byte 0xCD)."""
        array = GuardedArray(shape, dtype, name)
        self.arrays.append(array)
        return array

    def upload(self, values: np.ndarray[Any, Any], name: str) -> GuardedArray:
        array = self.empty(values.shape, values.dtype, name)
        array.array[...] = values
        return array

    def address_of(self, values: np.ndarray[Any, Any], name: str) -> int:
        """Uploads; for what takes addresses alone (`kernels.cuda.random_epilogue`)."""
        return self.upload(values, name).address


class EmulatedKernel:
    """One kernel in one configuration as a shared library."""

    def __init__(self, library: Path, entry: str) -> None:
        self.entry = entry
        self._run = ctypes.CDLL(str(library)).simt_run

    def launch(
        self,
        memory: Memory,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        *,
        shared_bytes: int = 0,
        seed: int = 0,
    ) -> Statistics:
        """Run a whole grid; `SimulationError` says what went wrong and in which thread."""
        three = ctypes.c_uint * 3
        config = _Config(
            three(*grid, *[1] * (3 - len(grid))), three(*block, *[1] * (3 - len(block))), shared_bytes, seed
        )
        held = [_as_c(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(held))(*[ctypes.addressof(value) for value in held])
        sizes = (ctypes.c_uint * len(held))(*[ctypes.sizeof(value) for value in held])
        result = _Result()
        failed = self._run(ctypes.byref(config), pointers, sizes, len(held), ctypes.byref(result))
        if failed:
            raise SimulationError(
                f"{self.entry}: {result.message.decode()}{_near(result.fault_address, memory.arrays)}"
            )
        for array in memory.arrays:
            array.check_guards()
        return Statistics.from_buffer_copy(result.statistics)


def emulate(
    source: KernelSource, arch: str = "sm_80", tile: str | None = None, more_defines: Mapping[str, Any] | None = None
) -> EmulatedKernel:
    """A kernel of the package on the CPU; skips the test where there is no g++."""
    defines = {**source.defines(tile), **(more_defines or {})}
    return _build(read_source(source.file, REPLACED), source.entry, arch, _sorted(defines))


def emulate_text(
    text: str, entry: str, arch: str = "sm_80", defines: Mapping[str, Any] | None = None
) -> EmulatedKernel:
    """As `emulate`, for a kernel written in a test, which may include the package's headers."""
    return _build(expand_headers(text, REPLACED), entry, arch, _sorted(defines or {}))


def _sorted(defines: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, str(value)) for key, value in defines.items()))


@cache
def _build(text: str, entry: str, arch: str, defines: tuple[tuple[str, str], ...]) -> EmulatedKernel:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed: kernels cannot be run on the CPU")
    flat = (
        text
        + f"""
extern "C" __attribute__((visibility("default"))) int simt_run(
    const simt::Config* config, void** arguments, const unsigned* sizes, unsigned count, simt::Result* result) {{
  return simt::launch_kernel(&{entry}, config, arguments, sizes, count, result);
}}
"""
    )
    number = int("".join(character for character in arch if character.isdigit())) * 10
    macros = [f"-D{key}={value}" for key, value in defines]
    folder = _library_folder()
    name = hashlib.sha256(repr((flat, arch, macros)).encode()).hexdigest()[:16]
    library, unit = folder / f"{name}.so", folder / f"{name}.cpp"
    unit.write_text(flat)
    command = [
        compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off", "-fwrapv",
        "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-Wno-psabi", f"-D__CUDA_ARCH__={number}", *macros,
        "-o", str(library), str(unit),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SimulationError(f"g++ does not compile {entry}:\n{done.stderr[:4000]}")
    return EmulatedKernel(library, entry)


@lru_cache(maxsize=1)
def _library_folder() -> Path:
    # Loaded libraries must outlive every test of the process, so the folder goes with the interpreter.
    holder = tempfile.TemporaryDirectory(prefix="simt-")
    _KEPT.append(holder)
    return Path(holder.name)


_KEPT: list[Any] = []


def _as_c(argument: Any) -> Any:
    if isinstance(argument, GuardedArray):
        return ctypes.c_uint64(argument.address)
    if isinstance(argument, ctypes.Structure):
        return argument
    if isinstance(argument, np.generic):
        return np.ctypeslib.as_ctypes_type(argument.dtype)(argument.item())
    if argument is None:
        return ctypes.c_uint64(0)
    raise TypeError(
        f"{argument!r} is no kernel argument: pass a GuardedArray, a numpy scalar, a ctypes.Structure or None"
    )


def _near(address: int, arrays: Sequence[GuardedArray]) -> str:
    if not address:
        return ""
    for array in arrays:
        if array.span[0] <= address < array.span[1]:
            return f": {address - array.address:+d} bytes from the start of {array.name!r} ({array.size} bytes)"
    return f": address {address:#x}, in no buffer of the launch"
