"""The convolution kernels with 4-bit weights, run thread by thread on the CPU, against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.cuda.conv_packing import step_order
from tests.kernels.cuda.conv_cases import FIXED, fixed_case, random_case
from tests.kernels.cuda.conv_runs import FEW, MANY, small_plan, sums_of

VARIANTS = {"w4a8": ("w4a8", 8, "sm_80"), "w4a4": ("w4a4", 4, "sm_90a"), "w4a4 native": ("w4a4", 4, "sm_80")}
SOURCE = {"w4a8": "conv_w4a8", "w4a4": "conv_w4a4", "w4a4 native": "conv_s4_native"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_named_geometries_are_exact(variant: str) -> None:
    precision, activation_bits, arch = VARIANTS[variant]
    for name in FIXED:
        case = fixed_case(name, weight_bits=4, activation_bits=activation_bits)
        plan = small_plan(case, precision, arch, FEW)
        assert plan.source.name == SOURCE[variant]
        assert (sums_of(plan, case, arch) == case.sums).all(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_geometries_are_exact(variant: str) -> None:
    precision, activation_bits, arch = VARIANTS[variant]
    for seed in range(34):
        case = random_case(seed, weight_bits=4, activation_bits=activation_bits)
        plan = small_plan(case, precision, arch, FEW)
        assert (sums_of(plan, case, arch, seed) == case.sums).all(), (seed, case.op.signature)


@pytest.mark.parametrize("variant", ["w4a8", "w4a4 native"])
def test_sums_of_several_slices_are_shifted_once(variant: str) -> None:
    precision, activation_bits, arch = VARIANTS[variant]
    case = fixed_case("plain", weight_bits=4, activation_bits=activation_bits)
    plan = small_plan(case, precision, arch, MANY)
    assert plan.slices > 1
    assert (sums_of(plan, case, arch) == case.sums).all()


def test_turing_has_four_bit_products_of_another_shape() -> None:
    for seed in (3, 4):
        case = random_case(seed, weight_bits=4, activation_bits=4)
        assert (sums_of(small_plan(case, "w4a4", "sm_75", FEW), case, "sm_75", seed) == case.sums).all()


def test_the_order_of_packed_weights_is_that_of_ldmatrix() -> None:
    """Register i of lane t holds k = 4t .. 4t + 3 of its half: `mma.m16n8k32` numbers them so in both halves."""
    order = step_order(3)
    assert np.array_equal(np.sort(order), np.arange(3 * 64))
    words = order[:64].reshape(8, 2, 4)
    for lane in range(4):
        for half in range(2):
            low, high = words[2 * lane + half]
            assert list(low) == [32 * half + 4 * lane + i for i in range(4)]
            assert list(high) == [32 * half + 16 + 4 * lane + i for i in range(4)]
