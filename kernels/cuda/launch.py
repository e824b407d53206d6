"""Launches: every kernel and tile that can run an op, with blocks, threads, scratch, packing and arguments.

A launch knows one kernel in one tile on one shape, and nothing of devices: `arguments` turns addresses into what the
kernel takes, by the names its source declares (`kernels.cuda.signature`). Which tile is fastest is not guessed here but
measured by whoever launches. Planning itself belongs to the kernels' own modules (`int8`, `int4`, `conv`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from kernels.cuda import conv, int4, int8, weight_only
from kernels.cuda.capability import Via, capability, shared_bytes_limit
from kernels.cuda.epilogue import EpilogueArguments, Output
from kernels.cuda.packing import GROUP_SIZES, STRIP_ROWS, pack_fragments, pack_int4, padded_k
from kernels.cuda.signature import signature_of
from kernels.cuda.source import Defines, KernelSource
from kernels.op_shape import Conv2dShape, LinearShape, OpShape
from kernels.precision import Precision

Array = np.ndarray[Any, Any]
VECTOR_BYTES, WORD_BYTES = 16, 4
LEAST_K_STEPS = 4
"""Steps of 64 along K that a slice should have: fewer do not pay for gathering the sums."""
MOST_SLICES = 16
_STEP_K = 64


@dataclass(frozen=True)
class Operands:
    """Device addresses of an op's inputs and scratch."""

    x: int
    w: int
    partial: int = 0
    arrivals: int = 0


@dataclass(frozen=True)
class TensorMapOf:
    """A matrix of bytes for the copy engine, to be encoded by the driver: its address, rows, columns and pitch, and the
    box of rows x columns that one copy moves, swizzled over 128 bytes."""

    address: int
    rows: int
    columns: int
    pitch: int
    box_rows: int
    box_columns: int


@dataclass(frozen=True)
class PackedWeights:
    """Bytes as the kernel reads them, and the scales per channel left to the epilogue (None: the layer's own)."""

    data: Array
    channel_scale: Array | None = None


class Reads(str, Enum):
    """What a kernel takes as activations."""

    CODES = "int8 codes"
    NIBBLES = "packed 4-bit codes"
    HALVES = "half precision"


@dataclass(frozen=True)
class Launch:
    """One way to run an op. `defines` are macros beside the tile's.

    `pack_weights` takes codes (N, K) or (O, C / groups, R, S) and scales; `pack_input` activations (M, K) or NHWC.
    `partial_bytes` of scratch and `arrivals` words must be zero before the first launch and are left zero by every one.
    Launches of equal `packing` share packed weights and inputs.
    """

    source: KernelSource
    tile: str
    defines: Defines
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    pack_weights: Callable[[Array, Array], PackedWeights]
    pack_input: Callable[[Array], Array]
    arguments: Callable[[Operands, EpilogueArguments], list[Any]]
    packing: str
    reads: Reads = Reads.CODES
    partial_bytes: int = 0
    arrivals: int = 0

    @property
    def name(self) -> str:
        split = f" /{self.grid[2]}" if self.grid[2] > 1 else ""
        return f"{self.source.name} {self.tile}{split}"


def launches(op: OpShape, precision: Precision, arch: str, cores: int, output: Output) -> list[Launch]:
    """Every launch of an integer kernel for a pair, best guess first; empty where there is no kernel."""
    if precision.is_float or capability(arch, precision.name) in (Via.UNSUPPORTED, Via.EMULATED):
        return []
    found: list[Launch] = []
    if isinstance(op, LinearShape):
        found = product_launches(op, precision, arch, cores, output)
    elif isinstance(op, Conv2dShape):
        found = conv_launches(op, precision, arch, cores, output)
    return [launch for launch in found if launch.shared_bytes <= shared_bytes_limit(arch)]


def product_launches(op: LinearShape, precision: Precision, arch: str, cores: int, output: Output) -> list[Launch]:
    """Launches of a matrix product in all tiles that are not far too large for it."""
    if precision.name == "w8a8":
        if op.k > int8.MAX_K:
            return []
        found = [_int8(tile, op, output, cores) for tile in _fitting(int8.GEMM_S8, op.m, op.n)]
        if arch == "sm_90a" and op.k % VECTOR_BYTES == 0:
            found += [_wgmma(tile, op, output, cores) for tile in _fitting(int8.GEMM_S8_WGMMA, op.m, op.n)]
        return found
    if precision.is_weight_only and precision.weight_bits == 4 and not output.is_code:
        if precision.group_size not in (None, *GROUP_SIZES):
            return []
        return [_weight_only(tile, op, precision.group_size, output, cores) for tile in weight_only.TILES]
    if precision.name in ("w4a8", "w4a4"):
        native = precision.name == "w4a4" and capability(arch, "w4a4") is Via.NATIVE
        source = int4.GEMM_W4A8 if precision.name == "w4a8" else int4.GEMM_S4_NATIVE if native else int4.GEMM_W4A4
        return [_int4(source, tile, op, output, cores) for tile in _fitting(source, op.m, op.n)]
    return []


def conv_launches(op: Conv2dShape, precision: Precision, arch: str, cores: int, output: Output) -> list[Launch]:
    """Launches of a convolution: as itself where its sums fit into 32 bits, and as the matrix product it may be."""
    fits = op.in_channels // op.groups * op.kernel[0] * op.kernel[1] <= int8.MAX_K
    tiles = conv.fitting_tiles(op, precision, arch) if fits else []
    found = [_conv(conv.plan_convolution(op, precision, arch, cores, tile=tile), output) for tile in tiles]
    product = conv.as_product(op)
    if product is not None:
        flat = product_launches(product, precision, arch, cores, output)
        found += [replace(each, pack_weights=_flattened(each.pack_weights)) for each in flat]
    return found


def _flattened(pack: Callable[[Array, Array], PackedWeights]) -> Callable[[Array, Array], PackedWeights]:
    return lambda codes, scale: pack(codes.reshape(codes.shape[0], -1), scale)


def _plainly(pack: Callable[[Array], Array]) -> Callable[[Array, Array], PackedWeights]:
    return lambda codes, scale: PackedWeights(pack(codes))


def _conv(plan: conv.ConvPlan, output: Output) -> Launch:
    def arguments(at: Operands, epilogue: EpilogueArguments) -> list[Any]:
        return [plan.arguments(at.x, at.w, at.partial, at.arrivals), epilogue]

    return Launch(
        source=plan.source,
        tile=plan.tile,
        defines={"OUTPUT": int(output), **plan.defines},
        grid=plan.grid,
        threads=plan.threads,
        shared_bytes=plan.shared_bytes,
        pack_weights=_plainly(plan.pack_weights),
        pack_input=plan.pack_input,
        arguments=arguments,
        packing=f"{plan.source.name} {plan.tap_bytes}",
        reads=Reads.NIBBLES if plan.source in (conv.CONV_W4A4, conv.CONV_S4_NATIVE) else Reads.CODES,
        partial_bytes=plan.partial_bytes,
        arrivals=plan.arrivals,
    )


def _int8(tile: str, op: LinearShape, output: Output, cores: int) -> Launch:
    """`gemm_s8` on rows of K bytes; weights lie in rows of whole vectors."""
    macros = int8.GEMM_S8.defines(tile)
    block_m, block_n, block_k = (int(macros[name]) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    blocks = math.ceil(op.m / block_m) * math.ceil(op.n / block_n)
    slices = slices_for(blocks, op.k, cores)
    wanted = {"OUTPUT": int(output), "ALIGN_A": alignment(op.k), "SPLIT_K": int(slices > 1)}
    sizes = {"m": op.m, "n": op.n, "k": op.k, "lda": op.k, "ldb": row_pitch(op.k)}

    def arguments(at: Operands, epilogue: EpilogueArguments) -> list[Any]:
        addresses = {"a": at.x, "b": at.w, "partial": at.partial, "arrivals": at.arrivals}
        return signature_of(int8.GEMM_S8).arguments({**addresses, **sizes, "e": epilogue})

    return Launch(
        source=int8.GEMM_S8,
        tile=tile,
        defines=_beside(macros, wanted),
        grid=(blocks, 1, slices),
        threads=32 * int(macros["WARPS_M"]) * int(macros["WARPS_N"]),
        shared_bytes=int(macros["STAGES"]) * (block_m + block_n) * block_k,
        pack_weights=_plainly(pack_rows),
        pack_input=_as_int8,
        arguments=arguments,
        packing="rows",
        partial_bytes=WORD_BYTES * blocks * slices * block_m * block_n if slices > 1 else 0,
        arrivals=blocks if slices > 1 else 0,
    )


def row_pitch(k: int) -> int:
    """Bytes from row to row of 8-bit weights: K rounded up to whole vectors."""
    return math.ceil(k / VECTOR_BYTES) * VECTOR_BYTES


def pack_rows(codes: Array) -> Array:
    """int8 rows (N, pitch) of codes (N, K), zero behind the last."""
    return np.pad(_as_int8(codes), ((0, 0), (0, row_pitch(codes.shape[1]) - codes.shape[1])))


def _int4(source: KernelSource, tile: str, op: LinearShape, output: Output, cores: int) -> Launch:
    macros = source.defines(tile)
    blocks = math.ceil(op.m / int(macros["BLOCK_M"])) * math.ceil(op.n / int(macros["BLOCK_N"]))
    packed = source is not int4.GEMM_W4A8
    pitch = padded_k(op.k) // 2 if packed else op.k
    least = math.ceil(op.k / int4.MAX_K_OF_A_SLICE) if source is not int4.GEMM_S4_NATIVE else 1
    plan = int4.plan_gemm(
        source,
        op.m,
        op.n,
        op.k,
        tile=tile,
        slices=max(least, slices_for(blocks, op.k, cores)),
        output=output,
        align_a=VECTOR_BYTES if packed else alignment(pitch),
    )
    sizes = {"m": op.m, "n": op.n, "k": op.k, "lda": pitch}

    def arguments(at: Operands, epilogue: EpilogueArguments) -> list[Any]:
        addresses = {"a": at.x, "partial": at.partial, "arrivals": at.arrivals}
        return signature_of(source).arguments({**addresses, **sizes, "weights": {"words": at.w}, "e": epilogue})

    return Launch(
        source=source,
        tile=tile,
        defines=_beside(macros, plan.defines),
        grid=plan.grid,
        threads=plan.threads,
        shared_bytes=plan.shared_bytes,
        pack_weights=_plainly(pack_int4),
        pack_input=pack_int4 if packed else _as_int8,
        arguments=arguments,
        packing=f"pack_int4 a{4 if packed else 8}",
        reads=Reads.NIBBLES if packed else Reads.CODES,
        partial_bytes=plan.partial_bytes,
        arrivals=plan.arrivals,
    )


def _wgmma(tile: str, op: LinearShape, output: Output, cores: int) -> Launch:
    """`gemm_s8_wgmma`: a grid of the machine's size, operands named by tensor maps."""
    source, macros = int8.GEMM_S8_WGMMA, int8.GEMM_S8_WGMMA.defines(tile)
    block_m, block_n = int(macros["BLOCK_M"]), int(macros["BLOCK_N"])
    blocks = math.ceil(op.m / block_m) * math.ceil(op.n / block_n)

    def arguments(at: Operands, epilogue: EpilogueArguments) -> list[Any]:
        maps = {
            "a": TensorMapOf(at.x, op.m, op.k, op.k, block_m, int8.WGMMA_BLOCK_K),
            "b": TensorMapOf(at.w, op.n, op.k, op.k, block_n, int8.WGMMA_BLOCK_K),
        }
        return signature_of(source).arguments({**maps, "e": epilogue, "m": op.m, "n": op.n, "k": op.k})

    return Launch(
        source=source,
        tile=tile,
        defines=_beside(macros, {"OUTPUT": int(output)}),
        grid=(min(blocks, cores), 1, 1),
        threads=int8.wgmma_threads(macros),
        shared_bytes=int8.wgmma_shared_bytes(macros),
        pack_weights=_plainly(pack_rows),
        pack_input=_as_int8,
        arguments=arguments,
        packing="rows",
    )


def _weight_only(tile: str, op: LinearShape, group: int | None, output: Output, cores: int) -> Launch:
    """`gemm_w4a16`: words and ratios of one layer lie one behind the other."""
    source = weight_only.GEMM_W4A16
    slices = weight_only.suggest_slices(op.n, op.k, cores, tile, op.m)
    plan = weight_only.plan_weight_only(
        source, op.m, op.n, op.k, tile=tile, group_size=group, slices=slices, output=output,
        align_a=alignment(2 * op.k),
    )  # fmt: skip
    strips = math.ceil(op.n / STRIP_ROWS)
    words_bytes = strips * padded_k(op.k) // 64 * weight_only.BLOCK_BYTES

    def pack(codes: Array, scale: Array) -> PackedWeights:
        packed = pack_fragments(codes, scale, group)
        parts = [packed.words] if packed.ratios is None else [packed.words, packed.ratios]
        data = np.concatenate([np.ascontiguousarray(part).view(np.uint8).ravel() for part in parts])
        return PackedWeights(data, packed.channel_scale)

    def arguments(at: Operands, epilogue: EpilogueArguments) -> list[Any]:
        weights = {"words": at.w, "ratios": 0 if group is None else at.w + words_bytes}
        sizes = {"m": op.m, "n": op.n, "k": op.k, "ld_x": 2 * op.k}
        addresses = {"x": at.x, "partial": at.partial, "arrivals": at.arrivals}
        return signature_of(source).arguments({**addresses, **sizes, "weights": weights, "e": epilogue})

    return Launch(
        source=source,
        tile=tile,
        defines=_beside(source.defines(tile), plan.defines),
        grid=plan.grid,
        threads=plan.threads,
        shared_bytes=plan.shared_bytes,
        pack_weights=pack,
        pack_input=lambda x: np.ascontiguousarray(x, np.float16),
        arguments=arguments,
        packing="fragments",
        reads=Reads.HALVES,
        partial_bytes=plan.partial_bytes,
        arrivals=plan.arrivals,
    )


def alignment(*numbers: int) -> int:
    """The largest of 16, 4 and 1 that divides all pitches and addresses."""
    return next(unit for unit in (VECTOR_BYTES, WORD_BYTES, 1) if all(number % unit == 0 for number in numbers))


def slices_for(blocks: int, k: int, cores: int) -> int:
    """Blocks that share an output tile along K, so that every multiprocessor has one and each has work to do."""
    return max(1, min(cores // max(blocks, 1), math.ceil(k / _STEP_K) // LEAST_K_STEPS, MOST_SLICES))


def _fitting(source: KernelSource, m: int, n: int) -> list[str]:
    """Tiles whose block is at most twice the output in each direction; the smallest one always."""
    sizes = {tile: (int(macros["BLOCK_M"]), int(macros["BLOCK_N"])) for tile, macros in source.tiles.items()}
    fitting = [tile for tile, (rows, columns) in sizes.items() if rows < 2 * max(m, 16) and columns < 2 * max(n, 64)]
    return fitting or [min(sizes, key=lambda tile: sizes[tile][0] * sizes[tile][1])]


def _beside(macros: Defines, wanted: Mapping[str, int | str]) -> Defines:
    return {name: value for name, value in wanted.items() if macros.get(name) != value}


def _as_int8(codes: Array) -> Array:
    return np.ascontiguousarray(codes, np.int8)
