"""8-bit kernels for every architecture, without a GPU."""

from __future__ import annotations

import pytest

from kernels.cuda import int8
from kernels.cuda.capability import ARCHITECTURES
from kernels.cuda.source import KernelSource
from tests.kernels.cuda.compiled import check_compiled


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", int8.SOURCES, ids=lambda source: source.name)
def test_kernel_is_what_the_capability_table_says(source: KernelSource, arch: str) -> None:
    check_compiled(source, arch)
