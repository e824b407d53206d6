"""What the sections of the GPU benchmark share: the device, the clock, a time limit, and results saved as they grow."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar
from kernels.backends.cuda_device import CudaDevice, DeviceClock


@dataclass
class Bench:
    """One device and what a section found on it. `is_dry` asks for few and small shapes."""

    device: CudaDevice
    is_dry: bool
    clock: DeviceClock = field(default_factory=DeviceClock)
    folder: Path = Path(".")
    seconds: float = 60.0
    bars: list[Bar] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def bar(self, bar: Bar) -> None:
        """Record a bar and save, so that a section that is stopped keeps what it has."""
        self.bars.append(bar)
        print(
            f"{bar.name}: {bar.value:.4g} {bar.unit} ({bar.goal}) {'holds' if bar.holds else 'DOES NOT HOLD'}",
            flush=True,
        )
        self.save()

    def note(self, name: str, value: Any) -> None:
        self.notes[name] = value
        print(f"{name}: {value}", flush=True)

    def save(self) -> None:
        document = {"bars": [asdict(bar) for bar in self.bars], **self.notes}
        (self.folder / "section.json").write_text(json.dumps(document, indent=1, default=str))


def connect(dry_run: bool) -> Bench:
    """The bench of this machine's GPU, or of the fake one; raises `BackendUnavailable` where there is none."""
    if dry_run:
        from kernels.backends.cuda_fake import FakeCudaDevice

        return Bench(FakeCudaDevice(), is_dry=True)
    from kernels.backends.cuda_driver import DriverCudaDevice

    return Bench(DriverCudaDevice(), is_dry=False)
