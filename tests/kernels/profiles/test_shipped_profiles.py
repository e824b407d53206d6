"""Shipped GPU profiles: found by name, complete, cited, and offering what the architecture's tensor cores have."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from kernels.cuda.capability import ARCHITECTURES, Via, capability
from kernels.cuda.catalog import KERNELS
from kernels.device_identity import DeviceIdentity
from kernels.errors import KernelsError
from kernels.estimate import UNITS
from kernels.hardware_profile import HardwareProfile
from kernels.precision import Precision
from kernels.profiles import shipped_names
from kernels.profiles.cuda import cuda_profile
from kernels.registry import load_profile, profile_names

DEVICE = DeviceIdentity("gpu", "some GPU", 100, 1 << 34, ("sm_80",))


def test_the_devices_that_are_promised_are_shipped() -> None:
    promised = {"t4", "a10", "a100", "l4", "h100", "h200", "b200", "agx-orin-64gb"}
    assert promised == set(shipped_names()) <= set(profile_names())


@pytest.mark.parametrize("name", shipped_names())
def test_a_profile_is_whole_and_says_where_its_figures_come_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.slug == name
    assert profile.device.kind == "gpu"
    assert profile.device.cores > 0
    assert profile.device.memory_bytes > 10**10
    assert not profile.measurable_here
    assert {"fp32", "fp16", "int8", "memory"} <= set(profile.peaks)
    assert set(profile.achieved) == {"tensor", "vector", "memory"}
    for peak in profile.peaks.values():
        assert peak.unit in UNITS
        assert peak.value > 0
        assert len(peak.source) > 10
        assert peak.quality
    for share in profile.achieved.values():
        assert 0 < share.value < 1
        assert share.unit == "share"
        assert share.source
    assert HardwareProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


@pytest.mark.parametrize("name", shipped_names())
def test_rates_are_dense_and_in_proportion(name: str) -> None:
    peaks = load_profile(name).peaks
    assert peaks["int8"].value == pytest.approx(2 * peaks["fp16"].value, rel=0.01), "sparse rates are twice as high"
    if "int4" in peaks:
        assert peaks["int4"].value == pytest.approx(2 * peaks["int8"].value, rel=0.01)


@pytest.mark.parametrize("name", shipped_names())
def test_native_int4_is_claimed_where_the_instruction_and_a_peak_exist(name: str) -> None:
    profile = load_profile(name)
    support = profile.support["linear", "w4a4"]
    assert (support.via == "native") == ("int4" in profile.peaks)
    assert profile.support["linear", "w4a8"].via == "via_int8"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_pair_has_numerics_with_code_zero_as_zero(arch: str) -> None:
    profile = cuda_profile("some", DEVICE, arch)
    for (kind, name), support in profile.support.items():
        precision = Precision(name)
        assert ((kind, name) in profile.recipes) is not precision.is_float
        assert support.verified is (precision.is_float or (support.kernel, arch) in verified_pairs())
        if not precision.is_float:
            recipe = profile.recipe(kind, precision)
            assert recipe.weight.bits == precision.weight_bits
            assert recipe.weight.group_size == precision.group_size
            if recipe.activation is not None:
                assert recipe.activation.symmetric, "zero-fill pads a convolution with code 0"
                assert recipe.activation.bits == precision.activation_bits
    assert (profile.support["linear", "w4a4"].kernel == "gemm_s4_native") == (capability(arch, "w4a4") is Via.NATIVE)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_kernels_that_a_profile_names_are_in_the_catalog(arch: str) -> None:
    sources = {source.name for source in KERNELS}
    profile = cuda_profile("some", DEVICE, arch)
    ours = {support.kernel for (_, name), support in profile.support.items() if not Precision(name).is_float}
    assert ours <= sources


def verified_pairs() -> set[tuple[str, str]]:
    """Kernels that ran on an architecture and were exact; none has, until a GPU benchmark writes it down."""
    text = resources.files("kernels.profiles").joinpath("verified.json").read_text()
    return {(entry["kernel"], entry["arch"]) for entry in json.loads(text)}


def test_what_is_called_verified_names_kernels_and_architectures() -> None:
    sources = {source.name for source in KERNELS}
    assert verified_pairs() <= {(source, arch) for source in sources for arch in ARCHITECTURES}


def test_float_formats_are_no_choices() -> None:
    profile = load_profile("a100")
    assert ("linear", "fp16") in profile.support
    assert [p.name for p in profile.precisions("linear")] == ["w8a8", "w4a16-g128", "w4a8", "w4a4"]
    assert [p.name for p in profile.precisions("conv2d")] == ["w8a8", "w4a8", "w4a4"]


def test_fp8_is_compared_with_where_the_device_has_it() -> None:
    assert [p.name for p in load_profile("h200").narrow_floats("linear")] == ["fp8"]
    assert "fp8" not in [p.name for p in load_profile("h200").precisions("linear")]
    for name in ("a100", "t4"):
        assert load_profile(name).narrow_floats("linear") == []
    assert load_profile("h200").narrow_floats("conv2d") == [], "cuDNN's fp8 convolutions are not asked"
    assert cuda_profile("cuda-local", DEVICE, "sm_89").support["linear", "fp8"].kernel == "torch._scaled_mm"


def test_an_architecture_without_kernels_is_named() -> None:
    with pytest.raises(KernelsError, match="sm_70") as caught:
        cuda_profile("v100", DEVICE, "sm_70")
    assert caught.value.code == "unknown_architecture"
    assert "sm_75" in caught.value.hint
