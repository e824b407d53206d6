"""Estimates against published measurements, and against what a roofline must do.

No GPU was measured by this project. The bands hold against figures others published: HAWQ-V3's tuned convolutions on
a T4 (`benchmarks/data/hawqv3_resnet18.json`) and one INT8 product on an A100 (sglang pull request 2752).
`python -m benchmarks.roofline` checks the same formula against a device at hand, this CPU.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.backends.cpu_profiles import onnxruntime_profile
from kernels.device_identity import DeviceIdentity
from kernels.errors import NotMeasured
from kernels.estimate import LAUNCH_US, arithmetic, bytes_moved, estimate, product_of
from kernels.hardware_profile import Peak
from kernels.op_shape import Conv2dShape, EmbeddingShape, LinearShape
from kernels.precision import FP32, Precision
from kernels.profiles import shipped_names
from kernels.registry import load_profile
from kernels.roofline import roofline_us

HAWQ: dict[str, Any] = json.loads(Path("benchmarks/data/hawqv3_resnet18.json").read_text())
INT8, INT4 = Precision("w8a8"), Precision("w4a4")
SLEEPY = DeviceIdentity("cpu", "test CPU", 4, 1 << 33)


def hawq_ratios(precision: Precision, key: str) -> np.ndarray[Any, Any]:
    """Estimated over published time of the 19 convolutions at batch 8."""
    profile, ratios = load_profile("t4"), []
    for layer in HAWQ["layers"]:
        kernel, size = layer["kernel"], layer["in_hw"]
        op = Conv2dShape(
            8, layer["c_in"], size, size, layer["c_out"], (kernel, kernel), (layer["stride"],) * 2, (kernel // 2,) * 4
        )
        ratios.append(estimate(profile, op, precision).us / (1000 * layer[key]))
    return np.array(ratios)


def test_int8_convolutions_on_a_t4_which_the_share_was_fitted_to() -> None:
    ratios = hawq_ratios(INT8, "tuned_kernel_ms_int8")
    assert 0.9 < np.exp(np.log(ratios).mean()) < 1.1
    assert ratios.min() > 0.6
    assert ratios.max() < 1.6


def test_int4_convolutions_on_a_t4_which_were_held_out() -> None:
    ratios = hawq_ratios(INT4, "tuned_kernel_ms_int4")
    assert 0.8 < np.exp(np.log(ratios).mean()) < 1.25
    assert ratios.min() > 0.6
    assert ratios.max() < 1.6


def test_small_and_large_layers_on_a_t4_are_told_apart() -> None:
    """Layers within a third of one another are not: an estimate does not order those."""
    published = np.array([layer["tuned_kernel_ms_int8"] for layer in HAWQ["layers"]])
    estimated = hawq_ratios(INT8, "tuned_kernel_ms_int8") * published
    assert np.corrcoef(np.log(published), np.log(estimated))[0, 1] > 0.95


def test_one_int8_product_on_an_a100() -> None:
    op = LinearShape(2048, 8192, 4096)
    profile = load_profile("a100")
    reached = 2 * op.macs / estimate(profile, op, INT8).us / 1e6
    assert reached == pytest.approx(0.8 * profile.peaks["int8"].value, rel=0.05)


@pytest.mark.parametrize("name", shipped_names())
def test_no_estimate_beats_the_sheet_or_the_bound_for_measurements(name: str) -> None:
    profile = load_profile(name)
    ops = [
        LinearShape(1, 4096, 4096),
        LinearShape(4096, 4096, 4096),
        Conv2dShape(1, 3, 224, 224, 64, (7, 7), (2, 2), (3, 3, 3, 3)),
        Conv2dShape(8, 64, 56, 56, 64, (3, 3), (1, 1), (1, 1, 1, 1)),
        Conv2dShape(1, 96, 56, 56, 96, (3, 3), (1, 1), (1, 1, 1, 1), groups=96),
        Conv2dShape(1, 64, 8, 8, 64, (3, 3), (1, 1), (1, 1, 1, 1), groups=4),
    ]
    for op in ops:
        for kind, precision in profile.support:
            if kind != op.kind:
                continue
            pair = op, Precision(precision)
            found = estimate(profile, *pair)
            assert found.us > LAUNCH_US["gpu"]
            assert found.us > bytes_moved(profile, *pair) / (profile.peaks["memory"].value * 1e3)
            assert found.us > roofline_us(*pair, profile.device, 1)


def test_int4_pays_where_the_device_has_it_and_only_there() -> None:
    large = LinearShape(4096, 4096, 4096)
    ratios = {
        n: estimate(load_profile(n), large, INT8).us / estimate(load_profile(n), large, INT4).us
        for n in ("a100", "h200")
    }
    assert ratios["a100"] > 1.8
    assert ratios["h200"] == pytest.approx(1.0)


def test_one_token_is_bound_by_its_weights() -> None:
    profile, op = load_profile("a10"), LinearShape(1, 4096, 4096)
    grouped = estimate(profile, op, Precision("w4a16-g128"))
    assert grouped.bound == "memory"
    assert estimate(profile, op, Precision("fp16")).us / grouped.us > 3
    assert estimate(profile, LinearShape(1, 64, 64), INT8).bound == "launch"
    assert estimate(profile, LinearShape(4096, 4096, 4096), INT8).bound == "compute"


def test_a_last_wave_that_is_not_full_costs_a_whole_one() -> None:
    profile = load_profile("a100")
    full, more = (LinearShape(128 * tiles, 8192, 128 * 27) for tiles in (4, 5))
    assert 1.1 < estimate(profile, more, INT8).us / estimate(profile, full, INT8).us
    assert product_of(Conv2dShape(2, 8, 6, 6, 12, (3, 3), groups=4)) == (4, 32, 3, 18)


def test_arithmetic_is_that_of_the_kernel_not_of_the_stored_bits() -> None:
    profile, op = load_profile("t4"), LinearShape(1, 64, 64)
    found = {name: arithmetic(profile, op, Precision(name)) for name in ("fp32", "w8a8", "w4a8", "w4a4", "w4a16-g128")}
    assert found == {"fp32": "fp16", "w8a8": "int8", "w4a8": "int8", "w4a4": "int4", "w4a16-g128": "fp16"}
    assert arithmetic(load_profile("h100"), op, INT4) == "int8"
    assert arithmetic(onnxruntime_profile(SLEEPY), op, Precision("w4a16-g32")) == "fp32"


def test_bytes_are_those_that_the_recipe_leaves() -> None:
    profile = load_profile("t4")
    conv, product = Conv2dShape(1, 16, 4, 4, 16, (1, 1)), LinearShape(2, 64, 32)
    assert bytes_moved(profile, conv, INT8) == 256 + 256 + 256
    assert bytes_moved(profile, product, INT8) == 64 * 32 + 2 * 64 + 2 * 2 * 32
    assert bytes_moved(profile, product, FP32) == 2 * (64 * 32 + 2 * 64 + 2 * 32), "full precision is served in half"
    assert bytes_moved(profile, product, Precision("w4a16-g128")) == 64 * 32 / 2 + 2 * (2 * 64 + 2 * 32)
    cpu = onnxruntime_profile(SLEEPY)
    assert bytes_moved(cpu, product, Precision("w8a8-dynamic")) == 64 * 32 + 4 * (2 * 64 + 2 * 32)
    assert bytes_moved(cpu, EmbeddingShape(4, 1000, 8), FP32) == 4 * 4 * 8 + 4 * 4 + 4 * 4 * 8


def test_without_a_peak_there_is_no_estimate() -> None:
    profile = onnxruntime_profile(SLEEPY)
    with pytest.raises(NotMeasured, match="no peak rate for fp32") as caught:
        estimate(profile, LinearShape(1, 2, 3), FP32)
    assert caught.value.code == "no_peak"
    rated = replace(profile, peaks={"memory": Peak(10.0, "GB/s", "a sheet", "test")})
    assert estimate(rated, EmbeddingShape(1000, 10**5, 64), FP32).bound == "memory"
