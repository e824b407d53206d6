"""Profiles by name and from files, and the backend of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.backends.cpu_profiles import onnxruntime_profile, openvino_bf16_profile, openvino_profile
from kernels.device_identity import DeviceIdentity
from kernels.errors import BackendUnavailable, KernelsError, UnsupportedPrecision
from kernels.hardware_profile import HardwareProfile, Peak
from kernels.op_shape import LinearShape
from kernels.precision import BF16, FP16, FP32, Precision
from kernels.recipe import Granularity
from kernels.registry import LOCAL_PROFILES, backend_for, load_profile

OLD_CPU = DeviceIdentity("cpu", "old", 4, 1 << 33, isa=("avx2",), os="Linux x86_64")
BF16_CPU = DeviceIdentity("cpu", "new", 4, 1 << 33, isa=("avx2", "avx512_vnni", "avx512_bf16"), os="Linux x86_64")
ARM_CPU = DeviceIdentity("cpu", "arm", 4, 1 << 33, isa=("asimd", "asimddp"), os="Linux aarch64")


@pytest.mark.parametrize("name", LOCAL_PROFILES)
def test_named_profiles_round_trip_and_find_their_backend(name: str) -> None:
    profile = load_profile(name)
    assert profile.slug == name
    assert profile.measurable_here
    again = HardwareProfile.from_json(json.loads(json.dumps(profile.to_json())))
    assert again == profile
    assert backend_for(profile).name == profile.runtime


@pytest.mark.parametrize("name", LOCAL_PROFILES)
def test_every_quantized_pair_has_a_recipe_and_full_precision_has_none(name: str) -> None:
    profile = load_profile(name)
    for kind, precision in profile.support:
        assert ((kind, precision) in profile.recipes) is (precision != FP32.name)
        if precision != FP32.name:
            recipe = profile.recipe(kind, Precision(precision))
            assert recipe.weight.bits == Precision(precision).weight_bits
            assert recipe.weight.group_size == Precision(precision).group_size
            dynamic = recipe.activation is not None and recipe.activation.dynamic
            assert dynamic is Precision(precision).is_dynamic
            assert recipe.output_quantized is (kind == "conv2d")


def test_the_same_numerics_are_the_same_recipe_on_both_runtimes() -> None:
    first, second = load_profile("cpu-local"), load_profile("cpu-local-openvino")
    shared = set(first.recipes) & set(second.recipes)
    assert len(shared) >= 6
    for pair in shared:
        assert first.recipes[pair] == second.recipes[pair]


@pytest.mark.parametrize("make", [onnxruntime_profile, openvino_profile])
def test_weights_keep_to_seven_bits_only_on_x86_without_vnni(make) -> None:  # type: ignore[no-untyped-def]
    old, arm = make(OLD_CPU), make(ARM_CPU)
    for kind in ("conv2d", "linear"):
        assert old.recipe(kind, Precision("w8a8")).weight.reduced_range
        assert old.recipe(kind, Precision("w8a8")).weight.code_max == 63
        assert not old.recipe(kind, Precision("w4a8")).weight.reduced_range
        assert not arm.recipe(kind, Precision("w8a8")).weight.reduced_range
    assert not old.measurable_here
    assert old.recipe("linear", Precision("w8a8")).name != arm.recipe("linear", Precision("w8a8")).name


def test_the_blocked_int4_kernel_quantizes_rows_inside() -> None:
    recipe = load_profile("cpu-local").recipe("linear", Precision("w4a16-g32"))
    assert recipe.activation is None
    inside = recipe.internal_activation
    assert inside is not None
    assert (inside.bits, inside.symmetric, inside.granularity, inside.group_size) == (8, True, Granularity.ROW, 32)


def test_precisions_come_most_bits_first() -> None:
    names = [precision.name for precision in load_profile("cpu-local").precisions("linear")]
    assert names == ["w8a8", "w8a8-dynamic", "w4a16-g32", "w4a8"]


def test_an_unsupported_pair_names_what_runs() -> None:
    with pytest.raises(UnsupportedPrecision, match="w4a4") as caught:
        load_profile("fake").recipe("conv2d", Precision("w4a4"))
    assert "w8a8" in caught.value.hint
    assert load_profile("fake").why_not(LinearShape(1, 2, 3), Precision("w8a8")) is None


def test_a_profile_file_is_read_and_asked_whether_it_is_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    here = load_profile("cpu-local")
    path.write_text(json.dumps(here.to_json()))
    assert load_profile(str(path)) == here
    peak = Peak(65.0, "TFLOPS", "data sheet", "fair")
    elsewhere = replace(here, slug="t4", device=OLD_CPU, peaks={"fp16": peak})
    path.write_text(json.dumps(elsewhere.to_json()))
    found = load_profile(str(path))
    assert found.peaks == {"fp16": peak}
    assert not found.measurable_here


@pytest.mark.parametrize("name", ["", "cpu", "tpu-v9", "missing.json"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(KernelsError) as caught:
        load_profile(name)
    assert caught.value.code == "hardware_unknown"
    assert "cpu-local" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", "null", '{"schema_version": 99}', '{"schema_version": 1, "slug": "x"}']
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(KernelsError) as caught:
        load_profile(str(path))
    assert caught.value.code == "bad_hardware_profile"


def test_a_runtime_nobody_has_is_unavailable() -> None:
    with pytest.raises(BackendUnavailable, match="abacus"):
        backend_for(replace(load_profile("fake"), runtime="abacus"))


def test_the_bf16_profile_differs_in_full_precision_alone() -> None:
    float_profile, half = openvino_profile(BF16_CPU), openvino_bf16_profile(BF16_CPU)
    assert half.recipes == float_profile.recipes
    assert {pair for pair in half.support if half.support[pair] != float_profile.support[pair]} == {
        ("conv2d", "fp32"),
        ("linear", "fp32"),
    }
    assert half.session_options != float_profile.session_options
    assert (half.full_precision, float_profile.full_precision) == (BF16, FP32)


def test_full_precision_of_a_gpu_is_half() -> None:
    assert load_profile("t4").full_precision == FP16


def test_a_cpu_without_bf16_units_has_no_bf16_profile() -> None:
    with pytest.raises(BackendUnavailable, match="old has no bfloat16 instructions"):
        openvino_bf16_profile(OLD_CPU)
