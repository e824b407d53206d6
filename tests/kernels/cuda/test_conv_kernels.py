"""The 8-bit convolution kernels themselves, run thread by thread on the CPU, against the reference: exact, and nothing
more written than the output."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.cuda.conv import CONV_DEPTHWISE, SOURCES, plan_convolution, shared_bytes
from kernels.cuda.epilogue import EpilogueArguments, Output, dyadic_pairs
from kernels.op_shape import Conv2dShape
from kernels.precision import Precision
from kernels.recipe import Granularity, Numerics
from kernels.reference import requantize
from tests.kernels.cuda.conv_cases import FIXED, ConvCase, fixed_case, random_case
from tests.kernels.cuda.conv_runs import FEW, Run, small_plan, sums_of

WIDE = Numerics(16, symmetric=True, signed=True, granularity=Granularity.TENSOR)
RESIDUAL_SCALE = 0.37


@pytest.mark.parametrize("name", FIXED)
def test_named_geometries_are_exact(name: str) -> None:
    case = fixed_case(name)
    assert (sums_of(small_plan(case, "w8a8"), case) == case.sums).all()


def test_random_geometries_are_exact() -> None:
    """Vectors, words and bytes copied, one slice of K and several."""
    plans = []
    for seed in range(36):
        case = random_case(seed)
        plans.append(small_plan(case, "w8a8"))
        assert (sums_of(plans[-1], case, seed=seed) == case.sums).all(), (seed, case.op.signature)
    assert {plan.tile for plan in plans} >= {"64x32", "64x32-words", "64x32-bytes"}
    assert {plan.slices > 1 for plan in plans} == {True, False}


def test_depthwise_geometries_are_exact() -> None:
    tiles = set()
    for seed in range(36):
        case = random_case(seed, depthwise=True)
        ld_x = None if seed % 4 else case.op.in_channels  # pixels one behind the other, as most frameworks keep them
        plan = plan_convolution(case.op, Precision("w8a8"), "sm_80", FEW, ld_x)
        tiles.add(plan.tile)
        assert plan.source is CONV_DEPTHWISE
        assert (sums_of(plan, case, seed=seed) == case.sums).all(), (seed, case.op.signature)
    assert tiles == set(CONV_DEPTHWISE.tiles)


@pytest.mark.parametrize("tile", ["128x64", "128x128", "128x64-words"])
def test_larger_tiles_are_exact(tile: str) -> None:
    channels = {"128x64": 40, "128x128": 130, "128x64-words": 40}[tile]
    op = Conv2dShape(1, 9 if "words" in tile else 32, 9, 9, channels, (3, 3), (1, 1), (1, 1, 1, 1))
    rng = np.random.default_rng(5)
    case = ConvCase(
        op,
        rng.integers(-128, 128, (1, 9, 9, op.in_channels)).astype(np.int8),
        rng.integers(-128, 128, (channels, op.in_channels, 3, 3)).astype(np.int8),
    )
    plan = plan_convolution(op, Precision("w8a8"), "sm_80", FEW, tile=tile)
    assert (sums_of(plan, case) == case.sums).all()


def test_turing_without_asynchronous_copies_computes_the_same() -> None:
    for seed in (3, 4, 5):
        case = random_case(seed)
        assert (sums_of(small_plan(case, "w8a8", "sm_75", FEW), case, "sm_75", seed) == case.sums).all()


@pytest.mark.parametrize("ld_x", [3, 7, 16])
def test_pixels_of_any_pitch(ld_x: int) -> None:
    case = fixed_case("first layer")
    assert (sums_of(small_plan(case, "w8a8", ld_x=ld_x), case) == case.sums).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_epilogue_belongs_to_the_group_that_writes(seed: int) -> None:
    """Bias, dyadic requantization per channel, residual and ReLU, in groups whose channels start anywhere."""
    case = random_case(200 + seed, depthwise=seed == 3)
    channels, rng = case.op.out_channels, np.random.default_rng(seed)
    plan = (
        plan_convolution(case.op, Precision("w8a8"), "sm_80", FEW) if seed == 3 else small_plan(case, "w8a8", cores=FEW)
    )
    run = Run(plan, case, Output.S8)
    bias = rng.integers(-500, 500, channels).astype(np.int32)
    scale = rng.uniform(0.5, 2.0, channels) / max(1, np.abs(case.sums).max()) * 100
    residual = rng.integers(-128, 128, run.out.array.shape).astype(np.int8)
    (mantissas, shifts), (mantissa, shift) = dyadic_pairs(scale), dyadic_pairs([RESIDUAL_SCALE])
    epilogue = EpilogueArguments(
        bias=run.upload(bias, "bias").address,
        multiplier=run.upload(np.array(mantissas, np.int32), "multiplier").address,
        shift=run.upload(np.array(shifts, np.int32), "shift").address,
        residual=run.upload(residual, "residual").address, ld_residual=channels,
        residual_multiplier=mantissa[0], residual_shift=shift[0], clamp_low=0, clamp_high=127,
    )  # fmt: skip
    main = requantize(case.sums + bias, scale, 0, WIDE)
    beside = requantize(residual.astype(np.int64), RESIDUAL_SCALE, 0, WIDE)
    assert (run.launch(epilogue, seed=seed) == np.clip(main + beside, 0, 127)).all()


def test_every_tile_fits_into_the_least_shared_memory() -> None:
    for source in SOURCES:
        for tile in source.tiles if source is not CONV_DEPTHWISE else ():
            assert shared_bytes(source, tile) <= 48 * 1024, "what a launch gets without asking"
