"""Estimate: what an op should take on a device nobody measured, from cited peaks and the share good kernels reach.

A roofline with the losses that matter for small layers: an op is cut into output tiles, tiles run in waves over the
multiprocessors, and the last wave is rarely full. A convolution counts as the matrix product it is (implicit GEMM: rows
are output pixels, the reduction is kernel x channels). An estimate is not a measurement and every row says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kernels.errors import NotMeasured
from kernels.hardware_profile import HardwareProfile
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape, OpShape
from kernels.precision import FP32, Precision

UNITS = {"TOPS": 1e12, "TFLOPS": 1e12, "GB/s": 1e9}
US = 1e6
LAUNCH_US = {"gpu": 2.0}
"""Start and drain of one kernel inside a captured graph; 0 for devices whose runtimes call plain functions."""
TILES = ((256, 128), (128, 128), (128, 64), (64, 64), (64, 32), (32, 32), (16, 64))
FULL_REUSE = 64.0
"""Products per loaded value of a 128 x 128 tile, from which on shared memory no longer limits the tensor cores."""
CODE_BITS = 8
SPLITS = (1, 2, 4, 8)
LEAST_SPLIT = 256
LEAST_ROWS, LEAST_COLUMNS = 16, 4
"""Products narrower than this (one token, depthwise) are not tiled: they run as dot products."""
TENSOR_K = 32
"""Reductions are padded to this many values; a group with fewer channels than half of it runs on plain dot products."""
DP4A = 4.0
"""8-bit products per fp32 one outside the tensor cores."""


@dataclass(frozen=True)
class Estimated:
    """Microseconds of one call and what bounds it: `compute`, `memory` or `launch`. `kernel` is the profile's."""

    us: float
    bound: str
    kernel: str


def estimate(profile: HardwareProfile, op: OpShape, precision: Precision) -> Estimated:
    """The estimated time of a pair; raises `NotMeasured` (`no_peak`) where the profile cites no peak for it."""
    support = profile.support.get((op.kind, precision.name))
    launch = LAUNCH_US.get(profile.device.kind, 0.0)
    compute = _compute_us(profile, op, precision)
    memory = bytes_moved(profile, op, precision) / _rate(profile, "memory", "memory") * US
    bound = "launch" if launch > max(compute, memory) else "memory" if memory > compute else "compute"
    return Estimated(launch + max(compute, memory), bound, support.kernel if support else "")


def bytes_moved(profile: HardwareProfile, op: OpShape, precision: Precision) -> float:
    """Bytes an op must read and write once: stored weights, its input, its output in the format the recipe leaves."""
    recipe = profile.recipes.get((op.kind, precision.name))
    precision = profile.served_as(op.kind, precision)
    read = written = precision.activation_bits
    if precision.is_weight_only:
        read = written = profile.full_precision.activation_bits
    elif recipe is not None and not recipe.output_quantized:
        written = profile.full_precision.activation_bits
    if recipe is not None and recipe.activation is not None and recipe.activation.dynamic:
        read = profile.full_precision.activation_bits
    weights = op.tokens * op.width if isinstance(op, EmbeddingShape) else op.weight_count
    return (weights * precision.weight_bits + op.input_elements * read + op.output_elements * written) / 8


def arithmetic(profile: HardwareProfile, op: OpShape, precision: Precision) -> str:
    """The name of the peak a pair computes at: `int8`, `int4`, `fp16`, `fp32`."""
    if precision.is_float:
        return profile.served_as(op.kind, precision).name
    if not precision.quantizes_activations:
        return profile.full_precision.name
    support = profile.support.get((op.kind, precision.name))
    if support is not None and support.via == "via_int8":
        return "int8"
    return f"int{max(precision.weight_bits, precision.activation_bits)}"


def _compute_us(profile: HardwareProfile, op: OpShape, precision: Precision) -> float:
    if isinstance(op, EmbeddingShape):
        return 0.0
    name = arithmetic(profile, op, precision)
    groups, rows, columns, depth = product_of(op)
    if profile.device.kind != "gpu":
        return 2.0 * op.macs / _rate(profile, name, "vector") * US
    on_vectors = name == FP32.name or depth < TENSOR_K // 2 or columns < LEAST_COLUMNS
    if on_vectors:
        gain = DP4A if name.startswith("int") else 1.0
        peak, reduction = _rate(profile, FP32.name, "vector") * gain, depth
    else:
        peak, reduction = _rate(profile, name, "tensor"), math.ceil(depth / TENSOR_K) * TENSOR_K
    if on_vectors and (columns < LEAST_COLUMNS or rows < LEAST_ROWS):
        return 2.0 * op.macs / peak * US
    return min(
        _tiled_us(groups, rows, columns, reduction, tile, split, peak / profile.device.cores, profile.device.cores)
        for tile in TILES
        for split in SPLITS
        if split == 1 or depth // split >= LEAST_SPLIT
    )


def _tiled_us(
    groups: int, rows: int, columns: int, depth: int, tile: tuple[int, int], split: int, rate: float, cores: int
) -> float:
    """Waves of tiles over the multiprocessors; a small tile reuses what it loads less and computes slower."""
    m, n = tile
    tiles = groups * math.ceil(rows / m) * math.ceil(columns / n) * split
    reuse = math.sqrt(min(1.0, m * n / (m + n) / FULL_REUSE))
    return math.ceil(tiles / cores) * 2.0 * m * n * math.ceil(depth / split) / (rate * reuse) * US


def conversion_us(profile: HardwareProfile) -> float:
    """Microseconds per activation element that is quantized or dequantized: a float and a code pass the memory."""
    return (profile.full_precision.activation_bits + CODE_BITS) / 8 / _rate(profile, "memory", "memory") * US


def product_of(op: LinearShape | Conv2dShape) -> tuple[int, int, int, int]:
    """(groups, rows, columns, depth) of the matrix product an op is."""
    if isinstance(op, LinearShape):
        return 1, op.m, op.n, op.k
    depth = op.in_channels // op.groups * op.kernel[0] * op.kernel[1]
    return op.groups, op.batch * op.out_size[0] * op.out_size[1], op.out_channels // op.groups, depth


def _rate(profile: HardwareProfile, name: str, share: str) -> float:
    """Achievable operations or bytes per second."""
    peak = profile.peaks.get(name)
    if peak is None:
        raise NotMeasured(
            f"profile {profile.slug!r} cites no peak rate for {name}",
            hint="measure the op on the device, or give the profile a peak with its source",
            code="no_peak",
        )
    achieved = profile.achieved.get(share)
    return peak.value * UNITS[peak.unit] * (1.0 if achieved is None else achieved.value)
