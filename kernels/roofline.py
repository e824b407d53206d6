"""Roofline: a time no device can beat. A row below it was not computed at all (folded, cached, or another op)."""

from __future__ import annotations

from math import prod

from kernels.device_identity import DeviceIdentity
from kernels.op_shape import Conv2dShape, EmbeddingShape, OpShape
from kernels.precision import Precision

# Deliberately generous bounds for one core: no x86 or ARM core of today reaches any of them.
_CYCLES_PER_US = 6_000.0
_CACHE_BYTES_PER_CYCLE = 128.0
_OPS_PER_CYCLE = {"amx_int8": 2048.0, "avx512_vnni": 256.0, "avx_vnni": 128.0, "i8mm": 256.0, "asimddp": 128.0}
_FLOPS_PER_CYCLE = {"avx512f": 64.0, "avx2": 32.0}
_LEAST_OPS_PER_CYCLE = 64.0
_LEAST_FLOPS_PER_CYCLE = 32.0
# Per multiprocessor of a GPU: twice what the widest shipped tensor core does, and twice its cache bandwidth.
_GPU_CYCLES_PER_US = 3_000.0
_GPU_OPS_PER_CYCLE = 32_768.0
_GPU_FLOPS_PER_CYCLE = 16_384.0
_WINOGRAD_SAVING = 4.0  # 3x3 convolutions may be computed with that many times fewer products (F(4x4, 3x3))


def roofline_us(op: OpShape, precision: Precision, device: DeviceIdentity, threads: int) -> float:
    """A lower bound in microseconds for one run, from peak arithmetic and cache bandwidth of `threads` cores.

    A GPU always works with all its multiprocessors; `threads` are the host's there.
    """
    if device.kind == "gpu":
        rate = _GPU_FLOPS_PER_CYCLE if precision.is_float else _GPU_OPS_PER_CYCLE
        cycles = max(_products(op) / rate, _least_bytes(op, precision) / _CACHE_BYTES_PER_CYCLE)
        return cycles / _GPU_CYCLES_PER_US / device.cores
    table, least = (
        (_FLOPS_PER_CYCLE, _LEAST_FLOPS_PER_CYCLE) if precision.is_float else (_OPS_PER_CYCLE, _LEAST_OPS_PER_CYCLE)
    )
    rate = max([least, *(speed for flag, speed in table.items() if flag in device.isa)])
    cycles = max(_products(op) / rate, _least_bytes(op, precision) / _CACHE_BYTES_PER_CYCLE)
    return cycles / _CYCLES_PER_US / threads


def _products(op: OpShape) -> float:
    saving = _WINOGRAD_SAVING if isinstance(op, Conv2dShape) and prod(op.kernel) > 1 else 1.0
    return 2.0 * op.macs / saving


def _least_bytes(op: OpShape, precision: Precision) -> float:
    weights = op.tokens * op.width if isinstance(op, EmbeddingShape) else op.weight_count
    return weights * precision.weight_bits / 8
