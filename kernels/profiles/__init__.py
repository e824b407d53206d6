"""Shipped hardware profiles: GPUs as data, one JSON file each, with peaks that cite their source.

A file holds what a data sheet says of a device: identity, architecture, dense peak rates, and the share of a peak that
good kernels reach. What the architecture runs, and with which kernel, is `kernels.profiles.cuda`'s to add. No latency
is stored here: a device that nobody measured has `estimated` rows only.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from typing import Any

from kernels.device_identity import DeviceIdentity
from kernels.hardware_profile import HardwareProfile, Peak
from kernels.profiles.cuda import cuda_profile

SCHEMA_VERSION = 1
_DEVICES = ("t4", "a10", "a100", "l4", "h100", "h200", "b200", "agx-orin-64gb")


def shipped_names() -> tuple[str, ...]:
    """Slugs of the shipped GPU profiles."""
    return _DEVICES


def shipped_profile(slug: str) -> HardwareProfile:
    """The shipped profile of a slug of `shipped_names`."""
    text = resources.files(__package__).joinpath(f"{slug}.json").read_text(encoding="utf-8")
    return profile_from_device(json.loads(text))


def profile_from_device(data: dict[str, Any]) -> HardwareProfile:
    """The profile of one device document: its facts, and what its architecture runs."""
    device = data["device"]
    profile = cuda_profile(data["slug"], DeviceIdentity.from_json(device), data["arch"])
    return replace(
        profile,
        peaks={name: Peak(**peak) for name, peak in data["peaks"].items()},
        achieved={name: Peak(unit="share", **share) for name, share in data["achieved"].items()},
    )
