"""The convolution kernels themselves, run thread by thread on the CPU, against the reference: exact, and nothing more
written than the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from kernels.cuda.conv import CONV_DEPTHWISE, SOURCES, ConvPlan, plan_convolution, shared_bytes
from kernels.cuda.epilogue import EpilogueArguments, Output, dyadic_pairs
from kernels.op_shape import Conv2dShape
from kernels.precision import Precision
from kernels.recipe import Granularity, Numerics
from kernels.reference import requantize
from tests.kernels.cuda.conv_cases import FIXED, ConvCase, fixed_case, random_case
from tests.kernels.cuda.simt.emulator import EmulatedKernel, GuardedArray, Memory, emulate

Array = np.ndarray[Any, Any]
INT8 = Numerics(8, symmetric=True, signed=True, granularity=Granularity.TENSOR)
VARIANTS: Mapping[str, tuple[str, int, int, str]] = {
    "conv_s8": ("w8a8", 8, 8, "sm_80"),
    "conv_w4a8": ("w4a8", 4, 8, "sm_80"),
    "conv_w4a4": ("w4a4", 4, 4, "sm_90a"),
    "conv_s4_native": ("w4a4", 4, 4, "sm_80"),
}


class Run:
    """One plan's buffers on the emulated device."""

    def __init__(self, plan: ConvPlan, case: ConvCase, output: Output) -> None:
        self.plan, self.case, self.output = plan, case, output
        self.memory = Memory()
        self.x = self.memory.upload(plan.pack_input(case.x), "x")
        self.w = self.memory.upload(plan.pack_weights(case.w), "w")
        rows = case.op.batch * case.op.out_size[0] * case.op.out_size[1]
        kind = np.int8 if output is Output.S8 else np.int32
        self.out = self.memory.empty((rows, case.op.out_channels), kind, "out")

    def upload(self, values: Array, name: str) -> GuardedArray:
        return self.memory.upload(values, name)

    def launch(self, kernel: EmulatedKernel, epilogue: EpilogueArguments, seed: int = 0) -> Array:
        plan = self.plan
        partial = arrivals = 0
        if plan.slices > 1:
            held = self.upload(np.zeros(plan.partial_bytes, np.uint8), "partial")
            partial = held.address
            counters = self.upload(np.zeros(plan.arrivals, np.uint32), "arrivals")
            arrivals = counters.address
        epilogue.out = self.out.address
        epilogue.ld_out = self.case.op.out_channels
        arguments = plan.arguments(self.x.address, self.w.address, partial, arrivals)
        kernel.launch(
            self.memory, plan.grid, (plan.threads,), [arguments, epilogue], shared_bytes=plan.shared_bytes, seed=seed
        )
        if plan.slices > 1:
            assert not counters.array.any(), "a replayed graph must find the counters as they were"
            assert not held.array.any(), "and the sums"
        return self.out.array


def sums_of(case: ConvCase, precision: str, arch: str, *, cores: int, seed: int = 0, ld_x: int | None = None) -> Array:
    """The kernel's accumulators plus a bias that is taken off again."""
    plan = plan_convolution(case.op, Precision(precision), arch, cores, ld_x)
    run = Run(plan, case, Output.S32)
    bias = np.random.default_rng(seed).integers(-1000, 1000, case.op.out_channels).astype(np.int32)
    kernel = emulate(plan.source, arch, plan.tile, {"OUTPUT": int(Output.S32), **plan.defines})
    out = run.launch(kernel, EpilogueArguments(bias=run.upload(bias, "bias").address), seed)
    return out.astype(np.int64) - bias


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_named_geometries_are_exact(variant: str, name: str) -> None:
    precision, weight_bits, activation_bits, arch = VARIANTS[variant]
    case = fixed_case(name, weight_bits=weight_bits, activation_bits=activation_bits)
    assert (sums_of(case, precision, arch, cores=64) == case.sums).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_geometries_are_exact(variant: str) -> None:
    """Tiles of the smallest kind, copying vectors, words and bytes, with and without slices of K."""
    precision, weight_bits, activation_bits, arch = VARIANTS[variant]
    sliced = words = 0
    for seed in range(34):
        case = random_case(seed, weight_bits=weight_bits, activation_bits=activation_bits)
        if activation_bits == 8 and case.op.groups == case.op.in_channels > 1:
            continue
        plan = plan_convolution(case.op, Precision(precision), arch, 64)
        sliced, words = sliced + (plan.slices > 1), words + ("words" in plan.tile)
        assert (sums_of(case, precision, arch, cores=64, seed=seed) == case.sums).all(), (seed, case.op.signature)
    assert sliced
    assert words


def test_depthwise_geometries_are_exact() -> None:
    for seed in range(34):
        case = random_case(seed, depthwise=True)
        assert (sums_of(case, "w8a8", "sm_80", cores=4, seed=seed) == case.sums).all(), (seed, case.op.signature)


@pytest.mark.parametrize("tile", ["128x64", "128x128", "128x64-words"])
def test_larger_tiles_are_exact(tile: str) -> None:
    """On a device of one multiprocessor the largest tile that the channels fill is chosen."""
    channels = {"128x64": 40, "128x128": 130, "128x64-words": 40}[tile]
    op = Conv2dShape(1, 9 if "words" in tile else 32, 9, 9, channels, (3, 3), (1, 1), (1, 1, 1, 1))
    plan = plan_convolution(op, Precision("w8a8"), "sm_80", cores=1)
    assert plan.tile == tile
    rng = np.random.default_rng(5)
    case = ConvCase(
        op,
        rng.integers(-128, 128, (1, 9, 9, op.in_channels)).astype(np.int8),
        rng.integers(-128, 128, (channels, op.in_channels, 3, 3)).astype(np.int8),
    )
    assert (sums_of(case, "w8a8", "sm_80", cores=1) == case.sums).all()


@pytest.mark.parametrize("variant", ["conv_s8", "conv_s4_native"])
def test_turing_without_asynchronous_copies_computes_the_same(variant: str) -> None:
    precision, weight_bits, activation_bits, _ = VARIANTS[variant]
    for seed in (3, 4, 5):
        case = random_case(seed, weight_bits=weight_bits, activation_bits=activation_bits)
        assert (sums_of(case, precision, "sm_75", cores=64, seed=seed) == case.sums).all()


@pytest.mark.parametrize("ld_x", [3, 7, 16])
def test_pixels_of_any_pitch(ld_x: int) -> None:
    case = fixed_case("first layer")
    assert (sums_of(case, "w8a8", "sm_80", cores=64, ld_x=ld_x) == case.sums).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_the_epilogue_belongs_to_the_group_that_writes(precision: str, seed: int) -> None:
    """Bias, dyadic requantization per channel, residual and ReLU, in groups whose channels start anywhere."""
    case = random_case(200 + seed, weight_bits=Precision(precision).weight_bits, depthwise=seed == 3)
    channels, rng = case.op.out_channels, np.random.default_rng(seed)
    plan = plan_convolution(case.op, Precision(precision), "sm_80", cores=64)
    run = Run(plan, case, Output.S8)
    bias = rng.integers(-500, 500, channels).astype(np.int32)
    scale = rng.uniform(0.5, 2.0, channels) / max(1, np.abs(case.sums).max()) * 100
    residual = rng.integers(-128, 128, run.out.array.shape).astype(np.int8)
    (mantissas, shifts), ((m, e)) = dyadic_pairs(scale), dyadic_pairs([0.37])
    epilogue = EpilogueArguments(
        bias=run.upload(bias, "bias").address,
        multiplier=run.upload(np.array(mantissas, np.int32), "multiplier").address,
        shift=run.upload(np.array(shifts, np.int32), "shift").address,
        residual=run.upload(residual, "residual").address, ld_residual=channels,
        residual_multiplier=m[0], residual_shift=e[0], residual_zero_point=0,
        zero_point=0, clamp_low=0, clamp_high=127,
    )  # fmt: skip
    wide = Numerics(16, symmetric=True, signed=True, granularity=Granularity.TENSOR)
    main = requantize(case.sums + bias, scale, 0, wide)
    beside = requantize(residual.astype(np.int64), 0.37, 0, wide)
    out = run.launch(emulate(plan.source, "sm_80", plan.tile, plan.defines), epilogue, seed)
    assert (out == np.clip(main + beside, 0, 127)).all()


def test_every_tile_fits_into_the_least_shared_memory() -> None:
    for source in SOURCES:
        for tile in source.tiles if source is not CONV_DEPTHWISE else ():
            assert shared_bytes(source, tile) <= 48 * 1024, "what a launch gets without asking"
