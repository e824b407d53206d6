"""The hardware profile of this machine's GPU: a shipped one where the model is known, else `cuda-local`."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from kernels.backends.cuda_detect import DriverFacts, check_facts, identity_of, read_driver
from kernels.cuda.capability import nearest_listed
from kernels.cuda.compile import nvrtc_version
from kernels.device_identity import DeviceIdentity
from kernels.errors import BackendUnavailable
from kernels.hardware_profile import HardwareProfile
from kernels.profiles import shipped_names, shipped_profile
from kernels.profiles.cuda import cuda_profile

LOCAL_SLUG = "cuda-local"


def local_gpu_profile() -> HardwareProfile:
    """The profile of the first GPU here, measurable; raises `BackendUnavailable` saying why there is none.

    Every card of a shipped model has the shipped slug, so that one queue and one table serve all of them.
    """
    found = _find()
    if isinstance(found, BackendUnavailable):
        raise found
    return profile_of(*found)


def profile_of(facts: DriverFacts, arch: str) -> HardwareProfile:
    """The profile of a detected GPU: what its architecture runs, with the peaks of the shipped profile of its name."""
    identity = identity_of(facts)
    listed = nearest_listed(arch)
    assert listed is not None
    slug = shipped_slug(identity)
    profile = replace(cuda_profile(slug or LOCAL_SLUG, identity, listed), measurable_here=True)
    if slug is None:
        return profile
    shipped = shipped_profile(slug)
    return replace(profile, peaks=shipped.peaks, achieved=shipped.achieved)


def shipped_slug(identity: DeviceIdentity) -> str | None:
    """The shipped profile whose model this device is: `NVIDIA H100 PCIe` is an `h100`, an `L40` is no `l4`."""
    words = set(re.split(r"[^a-z0-9]+", identity.name.lower()))
    for slug in shipped_names():
        device = shipped_profile(slug).device
        model = slug.split("-")[0] if slug.split("-")[0] != "agx" else "orin"
        if model in words and device.isa == identity.isa:
            return slug
    return None


@lru_cache(maxsize=1)
def _find() -> tuple[DriverFacts, str] | BackendUnavailable:
    try:
        facts = read_driver()
        return facts, check_facts(facts, nvrtc_version()[0])
    except BackendUnavailable as error:
        return error
