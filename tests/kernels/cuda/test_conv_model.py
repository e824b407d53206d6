"""The convolution kernels' index arithmetic in numpy: what they would copy and multiply is the convolution."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.cuda.conv import plan_convolution
from kernels.cuda.conv_model import convolve, copied_pieces
from kernels.op_shape import Conv2dShape
from kernels.precision import Precision
from tests.kernels.cuda.conv_cases import FIXED, ConvCase, fixed_case, random_case

VARIANTS = {"w8a8": (8, 8, "sm_80"), "w4a8": (4, 8, "sm_80"), "w4a4": (4, 4, "sm_90a"), "w4a4 native": (4, 4, "sm_80")}


def check(case: ConvCase, precision: str, arch: str, ld_x: int | None = None) -> None:
    plan = plan_convolution(case.op, Precision(precision), arch, cores=4, ld_x=ld_x)
    sums = convolve(plan, plan.pack_input(case.x), plan.pack_weights(case.w))
    assert (sums == case.sums).all(), (case.op.signature, plan)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", FIXED)
def test_named_geometries(name: str, variant: str) -> None:
    weight_bits, activation_bits, arch = VARIANTS[variant]
    check(
        fixed_case(name, weight_bits=weight_bits, activation_bits=activation_bits),
        variant.split(" ", maxsplit=1)[0],
        arch,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_geometries(variant: str) -> None:
    weight_bits, activation_bits, arch = VARIANTS[variant]
    for seed in range(60):
        case = random_case(seed, weight_bits=weight_bits, activation_bits=activation_bits)
        if not (case.op.groups > 1 and case.op.groups == case.op.in_channels and activation_bits == 8):
            check(case, variant.split(" ", maxsplit=1)[0], arch)


@pytest.mark.parametrize("ld_x", [3, 4, 7, 16])
def test_a_picture_of_three_channels_may_be_stored_in_any_pitch(ld_x: int) -> None:
    check(fixed_case("first layer"), "w8a8", "sm_80", ld_x)


def test_every_byte_that_is_read_belongs_to_the_group_and_the_picture() -> None:
    for seed in range(40):
        case = random_case(1000 + seed)
        plan = plan_convolution(case.op, Precision("w8a8"), "sm_80", cores=4)
        if plan.tap_bytes == 0:
            continue
        per_group = case.op.in_channels // case.op.groups
        for group in range(case.op.groups):
            source, valid = copied_pieces(plan, group)
            channel = source % plan.ld_x
            read = valid > 0
            assert (valid >= 0).all()
            assert (source[read] >= 0).all()
            assert (source + valid)[read].max(initial=0) <= case.op.batch * case.op.height * case.op.width * plan.ld_x
            assert (channel[read] >= group * per_group).all()
            assert ((channel + valid)[read] <= (group + 1) * per_group).all()


def test_zero_padding_reads_nothing() -> None:
    op = Conv2dShape(1, 16, 2, 2, 8, (3, 3), (1, 1), (1, 1, 1, 1))
    plan = plan_convolution(op, Precision("w8a8"), "sm_80", cores=1)
    _, valid = copied_pieces(plan, 0)
    per_pixel = (valid > 0).sum(axis=1)
    assert (per_pixel == 4).all(), "each of the four outputs sees four of nine pixels"
    assert valid.sum() == 4 * 4 * 16
    assert np.array_equal(valid % 16, np.zeros_like(valid))
