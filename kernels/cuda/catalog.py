"""Catalog: every CUDA kernel of the package."""

from __future__ import annotations

from kernels.cuda import conv, int4, int8, weight_only
from kernels.cuda.source import KernelSource

KERNELS: tuple[KernelSource, ...] = (
    *int8.SOURCES, *int4.SOURCES, *weight_only.SOURCES, *conv.SOURCES,
)  # fmt: skip
