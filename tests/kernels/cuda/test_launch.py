"""What the host packs, pads and passes, run by the real kernels on the CPU: exact against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.backends.cuda_kernels import OurKernels
from kernels.cuda.epilogue import Output
from kernels.cuda.launch import Launch, launches
from kernels.op_shape import parse_op_shape
from kernels.precision import Precision
from kernels.profiles.cuda import cuda_profile
from kernels.random_layer import random_layer
from kernels.reference import expected_output
from kernels.spot_check import sample
from tests.kernels.cuda.emulated_device import EmulatedCudaDevice

CASES = [
    ("sm_80", "w8a8", "linear_m5_k70_n33_b1"),
    ("sm_80", "w8a8", "linear_m20_k512_n40_b0"),
    ("sm_80", "w4a8", "linear_m17_k100_n24_b1"),
    ("sm_80", "w4a8", "linear_m4_k768_n16_b1"),
    ("sm_90a", "w4a4", "linear_m9_k72_n20_b1"),
    ("sm_80", "w4a4", "linear_m9_k72_n20_b1"),
    ("sm_90a", "w8a8", "linear_m20_k64_n40_b1"),
    ("sm_80", "w4a16-g128", "linear_m3_k300_n40_b1"),
    ("sm_80", "w8a8", "conv2d_n1_c3_h9_w9_o10_k3x3_s2x2_p1x1x1x1_d1x1_g1_b1"),
    ("sm_80", "w8a8", "conv2d_n1_c32_h6_w5_o20_k1x1_s1x1_p0x0x0x0_d1x1_g1_b1"),
    ("sm_80", "w4a8", "conv2d_n1_c16_h6_w6_o12_k3x3_s1x1_p1x1x1x1_d1x1_g1_b0"),
    ("sm_90a", "w4a4", "conv2d_n1_c16_h6_w6_o12_k3x3_s1x1_p1x1x1x1_d1x1_g2_b1"),
    ("sm_80", "w8a8", "conv2d_n1_c12_h6_w6_o12_k3x3_s1x1_p1x1x1x1_d1x1_g12_b1"),
]
CONV_AS_PRODUCT = "conv2d_n1_c32_h6_w5_o20_k1x1_s1x1_p0x0x0x0_d1x1_g1_b1"


@pytest.mark.parametrize(("arch", "precision", "signature"), CASES)
def test_the_kernels_compute_what_the_host_asks_for(arch: str, precision: str, signature: str) -> None:
    device = EmulatedCudaDevice(arch)
    op, asked = parse_op_shape(signature), Precision(precision)
    recipe = cuda_profile("test", device.identity, arch).recipe(op.kind, asked)
    layer = random_layer(op, asked, recipe)
    prepared = OurKernels(device).prepare(layer, weight_copies=2, input_copies=2)
    variant = prepared.variants[-1]
    prepared.check(variant, sample(layer, rows=1000, columns=1000))
    rows = prepared.rows(prepared.enqueue(variant, 1, 1))
    expected = expected_output(layer)
    if op.kind == "conv2d":
        expected = expected.transpose(0, 2, 3, 1).reshape(rows.shape)
    np.testing.assert_allclose(rows, expected, atol=prepared.tolerance * np.abs(expected).max(), rtol=0)


def all_launches() -> list[Launch]:
    found = []
    for arch in ("sm_75", "sm_80", "sm_90a"):
        for precision in ("w8a8", "w4a8", "w4a4"):
            for signature in ("linear_m4096_k4096_n4096_b1", CONV_AS_PRODUCT):
                op = parse_op_shape(signature)
                if (op.kind, precision) == ("conv2d", "w4a4"):
                    continue
                found += launches(op, Precision(precision), arch, 132, Output.S8)
    return found


@pytest.mark.parametrize("launch", all_launches(), ids=lambda launch: launch.name)
def test_blocks_and_shared_memory_fit_every_device(launch: Launch) -> None:
    assert 32 <= launch.threads <= 1024
    assert launch.shared_bytes <= (227 if "wgmma" in launch.name else 99) * 1024
    assert launch.grid[0] >= 1
    assert (launch.partial_bytes > 0) == (launch.grid[2] > 1) == (launch.arrivals > 0)


def test_a_product_offers_large_tiles_to_many_rows_and_splits_few() -> None:
    large = launches(parse_op_shape("linear_m4096_k4096_n4096_b1"), Precision("w8a8"), "sm_80", 132, Output.F16)
    small = launches(parse_op_shape("linear_m4_k4096_n512_b1"), Precision("w8a8"), "sm_80", 132, Output.F16)
    assert any("128x256" in each.name for each in large)
    assert all(each.grid[2] == 1 for each in large)
    assert all(each.grid[2] > 1 for each in small)
    assert not any("128x" in each.name for each in small)
