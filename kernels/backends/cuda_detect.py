"""Which NVIDIA GPU is here, and if none can be used, why not and what to do about it.

Asks the driver through cuda-core alone: a worker can name its GPU without a torch that knows CUDA.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from typing import Any

from kernels.cuda.capability import ARCHITECTURES, architecture, nearest_listed
from kernels.device_identity import DeviceIdentity
from kernels.errors import BackendUnavailable, KernelsError

_THOUSAND = 1_000
_UUID_HASH_CHARACTERS = 16


@dataclass(frozen=True)
class DriverFacts:
    """What the driver says of one GPU. `cuda_version` is the newest CUDA it runs, as 1000 · major + 10 · minor."""

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    l2_bytes: int
    uuid: str
    cuda_version: int
    pci_bus_id: str


def read_driver(index: int = 0) -> DriverFacts:
    """The facts of the GPU at `index`.

    Raises `BackendUnavailable`: `cuda_not_installed` (no cuda-core), `cuda_no_driver`, `cuda_no_device`,
    `cuda_driver_too_old` (so old that it lacks what the bindings ask for).
    """
    try:
        from cuda import bindings
        from cuda.bindings import driver
        from cuda.core import Device
    except ImportError as error:
        raise BackendUnavailable(
            f"cuda-core is not installed: {error}",
            hint='install it with the extra for your driver: pip install "bitwright-server[cuda13]" (or cuda12)',
            code="cuda_not_installed",
        ) from error
    try:
        device = Device(index)
        device.set_current()
        properties = device.properties
        status, version = driver.cuDriverGetVersion()
        memory_status, memory_bytes = driver.cuDeviceTotalMem(index)
    except Exception as error:  # a driver that is missing, broken or without a card raises a different class for each
        raise _older_than(bindings, driver) or _unavailable(error) from error
    if int(status) or int(memory_status):
        raise _unavailable(RuntimeError(f"driver calls answered {int(status)} and {int(memory_status)}"))
    capability = device.compute_capability
    return DriverFacts(
        name=device.name,
        compute_capability=(int(capability.major), int(capability.minor)),
        multiprocessors=int(properties.multiprocessor_count),
        memory_bytes=int(memory_bytes),
        l2_bytes=int(properties.l2_cache_size),
        uuid=device.uuid,
        cuda_version=int(version),
        pci_bus_id=device.pci_bus_id,
    )


def check_facts(facts: DriverFacts, compiler_major: int) -> str:
    """The arch to compile for.

    Raises `BackendUnavailable`: `cuda_arch_unknown` for a GPU no kernel here is compiled for, `cuda_driver_too_old`
    when the driver is of an older major CUDA than the compiler, whose machine code it cannot load.
    """
    major, minor = facts.compute_capability
    try:
        arch = architecture(major, minor)
    except KernelsError as error:
        raise _arch_unknown(facts) from error
    if nearest_listed(arch) is None:
        raise _arch_unknown(facts)
    if facts.cuda_version // _THOUSAND < compiler_major:
        raise _too_old(facts.cuda_version, compiler_major)
    return arch


def identity_of(facts: DriverFacts) -> DeviceIdentity:
    """The device as tables know it; every card of this model under this driver has the same one."""
    major, minor = facts.compute_capability
    return DeviceIdentity(
        kind="gpu",
        name=facts.name,
        cores=facts.multiprocessors,
        memory_bytes=facts.memory_bytes,
        isa=(f"sm_{major}{minor}",),
        l2_bytes=facts.l2_bytes,
        os=f"{platform.system()} {platform.machine()}",
        driver=f"CUDA {cuda_version_text(facts.cuda_version)}",
    )


def cuda_version_text(version: int) -> str:
    return f"{version // _THOUSAND}.{version % _THOUSAND // 10}"


def hash_uuid(uuid: str) -> str:
    """The same for the same card; does not tell its serial identity to whoever reads a table."""
    return hashlib.sha256(uuid.encode()).hexdigest()[:_UUID_HASH_CHARACTERS]


def _older_than(bindings: Any, driver: Any) -> BackendUnavailable | None:
    """The reason for a failed call where the driver is of an older major CUDA than its bindings; None elsewhere."""
    try:
        status, version = driver.cuDriverGetVersion()
        major = int(bindings.__version__.split(".")[0])
    except Exception:  # no library to ask: the first error is the one to tell
        return None
    return _too_old(int(version), major) if not int(status) and 0 < int(version) < major * _THOUSAND else None


def _too_old(cuda_version: int, compiler_major: int) -> BackendUnavailable:
    return BackendUnavailable(
        f"the driver runs CUDA {cuda_version_text(cuda_version)}, the compiler here is CUDA {compiler_major}",
        hint='update the driver (CUDA 13 needs release 580 or newer) or install "bitwright-server[cuda12]"',
        code="cuda_driver_too_old",
    )


def _arch_unknown(facts: DriverFacts) -> BackendUnavailable:
    major, minor = facts.compute_capability
    return BackendUnavailable(
        f"{facts.name} has compute capability {major}.{minor}, which no kernel here is made for",
        hint=f"kernels are made for {', '.join(ARCHITECTURES)} and newer devices of their major versions",
        code="cuda_arch_unknown",
    )


def _unavailable(error: Exception) -> BackendUnavailable:
    text = f"{type(error).__name__}: {error}"
    if "DynamicLibNotFound" in text or "libcuda" in text:
        return BackendUnavailable(
            "there is no NVIDIA driver on this machine",
            hint="install the driver, or measure on a machine that has one and bring the latency table",
            code="cuda_no_driver",
        )
    return BackendUnavailable(
        f"no NVIDIA GPU can be used: {text}",
        hint="look at nvidia-smi; in a container, start it with access to the GPU",
        code="cuda_no_device",
    )
