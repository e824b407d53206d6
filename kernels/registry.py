"""The registry: names to hardware profiles, profiles to the backend that runs them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernels.backends.base import Backend
from kernels.cpu import this_cpu
from kernels.device_identity import DeviceIdentity
from kernels.errors import BackendUnavailable, KernelsError
from kernels.hardware_profile import SCHEMA_VERSION, HardwareProfile
from kernels.profiles import shipped_names, shipped_profile

LOCAL_PROFILES = ("cpu-local", "cpu-local-openvino", "fake")
BF16_PROFILE = "cpu-local-openvino-bf16"
"""Loads on CPUs that have bfloat16 units only."""
GPU_HERE, AUTO = "cuda-local", "auto"
"""Names of the GPU of this machine (its profile has the slug of its model where one is shipped), and of that or else
`cpu-local`."""


def profile_names() -> tuple[str, ...]:
    """Names `load_profile` knows besides paths to profile files."""
    return (*LOCAL_PROFILES, BF16_PROFILE, *shipped_names())


def load_profile(name_or_path: str) -> HardwareProfile:
    """The profile of a name, or of a JSON file that `python -m kernels profile` wrote.

    Raises `KernelsError`: `hardware_unknown` for a name nobody knows, `bad_hardware_profile` for a file that is none,
    `backend_unavailable` where this machine has no such device.
    """
    if name_or_path == "cpu-local":
        from kernels.backends.cpu_profiles import onnxruntime_profile

        return onnxruntime_profile()
    if name_or_path == "cpu-local-openvino":
        from kernels.backends.cpu_profiles import openvino_profile

        return openvino_profile()
    if name_or_path == BF16_PROFILE:
        from kernels.backends.cpu_profiles import openvino_bf16_profile

        return openvino_bf16_profile()
    if name_or_path == "fake":
        from kernels.backends.fake import fake_profile

        return fake_profile()
    if name_or_path == GPU_HERE:
        from kernels.backends.cuda_profile import local_gpu_profile

        return local_gpu_profile()
    if name_or_path == AUTO:
        return _gpu_or_none() or load_profile("cpu-local")
    if name_or_path in shipped_names():
        here = _gpu_or_none()
        return here if here is not None and here.slug == name_or_path else shipped_profile(name_or_path)
    if name_or_path.endswith(".json"):
        return read_profile(Path(name_or_path))
    raise KernelsError(
        f"there is no hardware profile {name_or_path!r}",
        hint=f"known are {', '.join((*profile_names(), GPU_HERE, AUTO))}, or the path of a profile's .json file",
        code="hardware_unknown",
    )


def read_profile(path: Path) -> HardwareProfile:
    """The profile a JSON file holds, with `measurable_here` decided anew for this machine."""
    try:
        data: Any = json.loads(path.read_text())
    except FileNotFoundError:
        raise KernelsError(
            f"no hardware profile at {path}", hint=f"known names are {', '.join(profile_names())}",
            code="hardware_unknown",
        ) from None  # fmt: skip
    except (OSError, ValueError) as error:
        raise _bad_profile(path, repr(error)) from error
    try:
        if data["schema_version"] != SCHEMA_VERSION:
            raise _bad_profile(path, f"schema version {data['schema_version']}, this program reads {SCHEMA_VERSION}")
        profile = HardwareProfile.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _bad_profile(path, repr(error)) from error
    return replace(profile, measurable_here=profile.runtime == "fake" or profile.device == _device_here(profile))


def backend_for(profile: HardwareProfile) -> Backend:
    """The backend of a profile's runtime; raises `BackendUnavailable` when it cannot run on this machine."""
    if profile.runtime == "onnxruntime_cpu":
        from kernels.backends.onnxruntime_cpu import OnnxRuntimeCpu

        return OnnxRuntimeCpu(profile)
    if profile.runtime == "openvino":
        from kernels.backends.openvino import OpenVino

        return OpenVino(profile)
    if profile.runtime == "fake":
        from kernels.backends.fake import FakeBackend

        return FakeBackend(profile)
    if profile.runtime == "cuda":
        return _cuda(profile)
    raise BackendUnavailable(
        f"profile {profile.slug!r} needs runtime {profile.runtime!r}, which this program has no backend for",
        hint="measure on the device with `python -m kernels measure` and bring the latency table",
    )


def _cuda(profile: HardwareProfile) -> Backend:
    from kernels.backends.cuda import Cuda
    from kernels.backends.cuda_driver import DriverCudaDevice
    from kernels.backends.cuda_kernels import OurKernels
    from kernels.backends.cuda_opponents import opponents

    device = DriverCudaDevice()
    return Cuda(profile, device, [OurKernels(device), *opponents(device)])


def _gpu_or_none() -> HardwareProfile | None:
    from kernels.backends.cuda_profile import local_gpu_profile

    try:
        return local_gpu_profile()
    except BackendUnavailable:
        return None


def _device_here(profile: HardwareProfile) -> DeviceIdentity | None:
    """The device of the profile's kind in this machine."""
    if profile.device.kind != "gpu":
        return this_cpu()
    here = _gpu_or_none()
    return None if here is None else here.device


def _bad_profile(path: Path, reason: str) -> KernelsError:
    return KernelsError(
        f"{path} is not a hardware profile: {reason}",
        hint="write one with `python -m kernels profile --hardware NAME --out FILE`",
        code="bad_hardware_profile",
    )
