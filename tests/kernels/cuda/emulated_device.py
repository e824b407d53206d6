"""A `CudaDevice` whose launches run the package's own `.cu` files on the CPU: the host's side on the real kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kernels.backends.cuda_device import Geometry, Work
from kernels.backends.cuda_fake import FakeCudaDevice, FakeKernel, RecordedLaunch, fake_us
from kernels.cuda.launch import TensorMapOf
from kernels.cuda.source import Defines, KernelSource
from tests.kernels.cuda.simt.emulator import EmulatedKernel, Memory, emulate
from tests.kernels.cuda.test_gemm_s8_wgmma import EmulatedTensorMap

_SCALARS = {
    ctypes.c_int32: np.int32,
    ctypes.c_uint32: np.uint32,
    ctypes.c_uint64: np.uint64,
    ctypes.c_float: np.float32,
}


class EmulatedCudaDevice(FakeCudaDevice):
    """The fake device's clock and graphs, the emulator's arithmetic."""

    def __init__(self, arch: str = "sm_80", cores: int = 4) -> None:
        super().__init__({}, arch)
        self.identity = replace(self.identity, cores=cores)

    def function(self, source: KernelSource, tile: str, more_defines: Defines, shared_bytes: int) -> Any:
        held = super().function(source, tile, more_defines, shared_bytes)
        return held, emulate(source, self.arch, tile, more_defines)

    def launch(
        self, kernel: tuple[FakeKernel, EmulatedKernel], geometry: Geometry, arguments: Sequence[Any], work: Work
    ) -> None:
        held, emulated = kernel
        recorded = RecordedLaunch(f"{held.source.name} {held.tile}", geometry, tuple(arguments), fake_us(work))
        values = [_as_emulated(each) for each in arguments]
        self._enqueue(
            recorded,
            lambda: emulated.launch(
                Memory(), geometry.grid, geometry.block, values, shared_bytes=geometry.shared_bytes
            ),
        )


def _as_emulated(argument: Any) -> Any:
    if isinstance(argument, TensorMapOf):
        place = (argument.address, argument.columns, argument.rows, argument.pitch)
        return EmulatedTensorMap(*place, argument.box_columns, argument.box_rows)
    return _SCALARS[type(argument)](argument.value) if type(argument) in _SCALARS else argument
