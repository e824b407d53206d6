"""The GPU of this machine: machine code loaded and launched through the driver, memory, graphs and events of torch.

Kernels take structs by value, which is why they are launched through cuda-core's driver bindings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kernels.backends.base import OpFailed
from kernels.backends.cuda_detect import DriverFacts, check_facts, hash_uuid, identity_of, read_driver
from kernels.backends.cuda_device import DeviceLost, Geometry, Graph, OutOfDeviceMemory, Work
from kernels.backends.cuda_telemetry import read_telemetry
from kernels.cuda.compile import compile_kernel, default_cache_folder, nvrtc_version
from kernels.cuda.launch import TensorMapOf
from kernels.cuda.source import Defines, KernelSource
from kernels.errors import BackendUnavailable, KernelsError

COMPILERS = 8
"""Kernels compiled side by side."""
STATIC_SHARED_LIMIT = 48 * 1024
"""Dynamic shared memory a kernel may use without asking."""
_MAP_BYTES, _MAP_ALIGNMENT = 128, 64
_MICROSECONDS_PER_MILLISECOND = 1_000.0
_OUT_OF_MEMORY = ("out of memory", "OUT_OF_MEMORY")
_LOST = (
    "ILLEGAL_ADDRESS", "illegal memory access", "LAUNCH_FAILED", "unspecified launch failure", "ILLEGAL_INSTRUCTION",
    "illegal instruction", "MISALIGNED_ADDRESS", "misaligned address", "device-side assert", "ERROR_ASSERT",
    "HARDWARE_STACK_ERROR", "hardware stack error", "INVALID_PC", "invalid program counter", "LAUNCH_TIMEOUT",
    "launch timed out", "INVALID_ADDRESS_SPACE", "global/shared address space", "ECC_UNCORRECTABLE",
    "uncorrectable ECC", "GPU is lost",
)  # fmt: skip
"""What the driver's names (bindings) and the runtime's sentences (torch) call errors that leave no usable context."""


def translate(error: Exception, doing: str) -> KernelsError:
    """A driver's or torch's error as ours: memory that does not fit, a context that is lost, or an op that failed."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, torch.OutOfMemoryError) or any(mark in text for mark in _OUT_OF_MEMORY):
        return OutOfDeviceMemory(
            f"{doing}: the GPU has not enough memory left ({text})",
            hint="use a smaller batch, or end other programs on this GPU",
        )
    if any(mark in str(error) for mark in _LOST):
        return DeviceLost(
            f"{doing}: {text}; CUDA accepts no more work from this process",
            hint="start again: rows already in the table are kept; report the op shape, this is a bug in a kernel",
        )
    return OpFailed(f"{doing}: {text}", hint="this op is left out, the others go on")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    try:
        yield
    except KernelsError:
        raise
    except Exception as error:  # torch, cuda-core and the driver bindings each raise classes of their own
        raise translate(error, doing) from error


class TorchGraph:
    """A captured CUDA graph between two events."""

    def __init__(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        self._graph = graph
        self._stream = stream
        self._before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def replay_us(self) -> float:
        with translated("replay"), torch.cuda.stream(self._stream):
            self._before.record(self._stream)
            self._graph.replay()
            self._after.record(self._stream)
            self._after.synchronize()
            return float(self._before.elapsed_time(self._after)) * _MICROSECONDS_PER_MILLISECOND


class DriverCudaDevice:
    """`CudaDevice` for a real card with one stream of its own. Compiled kernels are kept in the folder `cache`.

    Raises `BackendUnavailable` when made: the codes of `kernels.backends.cuda_detect`, and `cuda_torch_missing` where
    torch was built without CUDA.
    """

    def __init__(self, index: int = 0, cache: Path | None = None) -> None:
        self.facts: DriverFacts = read_driver(index)
        self.arch = check_facts(self.facts, nvrtc_version()[0])
        self._cache = cache or default_cache_folder()
        self._functions: dict[tuple[Any, ...], Any] = {}
        if not torch.cuda.is_available():
            raise BackendUnavailable(
                f"torch {torch.__version__} cannot use {self.facts.name}",
                hint="install a torch built for CUDA on machines that measure a GPU",
                code="cuda_torch_missing",
            )
        self.identity = identity_of(self.facts)
        self.uuid_hash = hash_uuid(self.facts.uuid)
        self.torch_device = f"cuda:{index}"
        self._index = index
        with translated("start"):
            torch.cuda.set_device(index)
            torch.zeros(1, device=self.torch_device)
            torch.backends.cudnn.benchmark = True  # opponents in their best form
            self._stream = torch.cuda.Stream(index)  # type: ignore[no-untyped-call]
            torch.cuda.set_stream(self._stream)  # what torch does outside `run_torch` keeps its order, too

    def function(self, source: KernelSource, tile: str, more_defines: Defines, shared_bytes: int) -> Any:
        key = (source.name, tile, tuple(sorted(more_defines.items())), shared_bytes)
        if key not in self._functions:
            made = compile_kernel(source, self.arch, tile, self._cache, more_defines)
            self._functions[key] = self._load(made.code, made.entry, shared_bytes)
        return self._functions[key]

    def compile_ahead(self, wanted: Sequence[tuple[KernelSource, str, Defines]]) -> None:
        def make(each: tuple[KernelSource, str, Defines]) -> None:
            with suppress(KernelsError):  # `function` meets it again and says so
                compile_kernel(each[0], self.arch, each[1], self._cache, each[2])

        with ThreadPoolExecutor(COMPILERS) as pool:
            list(pool.map(make, wanted))

    def launch(self, kernel: Any, geometry: Geometry, arguments: Sequence[Any], work: Work) -> None:
        from cuda.bindings import driver

        with translated("launch"):
            held = [_encoded(each) if isinstance(each, TensorMapOf) else each for each in arguments]
            addresses = (ctypes.c_void_p * len(held))(*[ctypes.addressof(each) for each in held])
            _checked(
                driver.cuLaunchKernel(
                    kernel, *geometry.grid, *geometry.block, geometry.shared_bytes, self._stream.cuda_stream,
                    ctypes.addressof(addresses), 0,
                )
            )  # fmt: skip

    def run_torch(self, name: str, call: Callable[[], Any], work: Work) -> Any:
        with translated(name), torch.no_grad(), torch.cuda.stream(self._stream):
            return call()

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        with translated("capture"):
            torch.cuda.synchronize(self._index)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                enqueue()
            return TorchGraph(graph, self._stream)

    def synchronize(self) -> None:
        with translated("synchronize"):
            torch.cuda.synchronize(self._index)

    def telemetry(self) -> dict[str, Any]:
        return read_telemetry(self.facts.pci_bus_id)

    def _load(self, cubin: bytes, symbol: str, shared_bytes: int) -> Any:
        from cuda.bindings import driver

        with translated(f"load {symbol}"):
            image = ctypes.create_string_buffer(cubin, len(cubin))
            module = _checked(driver.cuModuleLoadData(ctypes.addressof(image)))
            function = _checked(driver.cuModuleGetFunction(module, symbol.encode()))
            if shared_bytes > STATIC_SHARED_LIMIT:
                attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _checked(driver.cuFuncSetAttribute(function, attribute, shared_bytes))
            return function


def _encoded(matrix: TensorMapOf) -> Any:
    """The driver's 128-byte tensor map of a matrix of bytes, swizzled over 128 bytes, zero outside.

    The driver writes it to a multiple of 64 only, which the bindings' own objects are by chance: so it is asked itself.
    """
    from cuda.bindings import driver

    words, halves = ctypes.c_uint64, ctypes.c_uint32
    room = (ctypes.c_uint8 * (_MAP_BYTES + _MAP_ALIGNMENT))()
    made = (words * 16).from_buffer(room, -ctypes.addressof(room) % _MAP_ALIGNMENT)
    status = _libcuda().cuTensorMapEncodeTiled(
        ctypes.byref(made),
        int(driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT8),
        halves(2),
        ctypes.c_void_p(matrix.address),
        (words * 2)(matrix.columns, matrix.rows),
        (words * 1)(matrix.pitch),
        (halves * 2)(matrix.box_columns, matrix.box_rows),
        (halves * 2)(1, 1),
        int(driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
        int(driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B),
        int(driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B),
        int(driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
    )
    _checked((driver.CUresult(status),))
    return made


@cache
def _libcuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _checked(answer: tuple[Any, ...]) -> Any:
    """The value of a driver call's (status, value …); its error raised as text that `translate` knows."""
    status, *values = answer
    if int(status):
        raise RuntimeError(getattr(status, "name", f"driver status {int(status)}"))
    return values[0] if values else None
