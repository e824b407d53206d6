"""A machine with an H200 where there is none: the driver's facts made up, the fake device behind its backend.

Stands for `search.stages` in a worker (`STAGES`), and run as a program for the kernels package that names the hardware.
"""

from __future__ import annotations

import kernels.backends.cuda_driver as cuda_driver
import kernels.backends.cuda_profile as cuda_profile
from kernels.backends.cuda_detect import DriverFacts, identity_of
from kernels.backends.cuda_fake import FakeCudaDevice

FACTS = DriverFacts(
    name="NVIDIA H200",
    compute_capability=(9, 0),
    multiprocessors=132,
    memory_bytes=150_754_820_096,
    l2_bytes=1 << 20,
    uuid="GPU-made-up",
    cuda_version=13000,
    pci_bus_id="0000:01:00.0",
)

cuda_profile._find = lambda: (FACTS, "sm_90a")  # type: ignore[assignment]
cuda_driver.DriverCudaDevice = lambda: FakeCudaDevice(identity=identity_of(FACTS))  # type: ignore[assignment,misc]

from search.stages import STAGES  # noqa: E402

__all__ = ["STAGES"]

if __name__ == "__main__":
    from kernels.__main__ import app

    app()
