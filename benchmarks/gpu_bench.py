"""What the sections of the GPU benchmark share: the device, the clock, a time limit, and results saved as they grow.

A section is made of parts. One that raises is recorded with its traceback and the next goes on. One that loses the
device, hangs in a kernel or kills the process is recorded too, with the kernel that ran: the caller starts the section
again, which goes on behind it and never launches that kernel again. A card is at hand for minutes, so everything that
can be learnt in one call is brought home by that call.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar
from kernels.backends.base import OpFailed
from kernels.backends.cuda_device import CudaDevice, DeviceClock, DeviceLost

LOST = 75
"""Exit status of a section whose process can do no more, though another one may: start it again."""
SAVED = "section.json"


@dataclass
class Bench:
    """One device and what a section found on it. `is_dry` asks for few and small shapes.

    `done` names the parts that are over, `failures` their tracebacks. `doing` says what runs right now (`part`,
    `kernel`), so that whoever finds a dead process knows; `avoid` lists kernels (name and tile) that took the device
    along, in this section or an earlier one. `progress` is what a part keeps for its own continuation.
    """

    device: CudaDevice
    is_dry: bool
    clock: DeviceClock = field(default_factory=DeviceClock)
    folder: Path = Path(".")
    seconds: float = 60.0
    bars: list[Bar] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    avoid: list[str] = field(default_factory=list)
    doing: dict[str, str] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
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

    def part(self, name: str, work: Callable[[], None], limit_s: float = 40.0) -> None:
        """Run one part: an error is recorded and the next part may go on; a lost device is raised.

        Past `limit_s`, or the section's time, the process ends with `LOST`: a kernel that hangs cannot be interrupted.
        """
        if name in self.done:
            return
        self.doing = {"part": name}
        self.save()
        limit_s = max(1.0, self.left_s if self.is_dry else min(limit_s, self.left_s))  # only a card hangs
        watch = threading.Timer(limit_s, self._hung, (name, limit_s))
        watch.daemon = True
        watch.start()
        try:
            work()
        except DeviceLost:
            raise
        except Exception:  # whatever a part meets on a card it never ran on, the other parts are worth their time
            self._failed(name, traceback.format_exc())
        finally:
            watch.cancel()
        self._over(name)

    @contextmanager
    def running(self, kernel: str) -> Iterator[None]:
        """Names the kernel that runs meanwhile; the name stays when the device is lost.

        Raises `OpFailed` for one that must be avoided.
        """
        kernel = kernel.split(" /")[0]  # a kernel in another number of slices is the same kernel
        if kernel in self.avoid:
            raise OpFailed(f"{kernel} took the device along before")
        self.doing["kernel"] = kernel
        self.save()
        try:
            yield
        except DeviceLost:
            raise
        except BaseException:
            self.doing.pop("kernel", None)
            raise
        self.doing.pop("kernel", None)

    def lost(self, why: str) -> None:
        """Record that the part at work took the process along; its kernel is avoided from now on.

        The part is over, unless it knows which kernel it was and keeps its progress: then it continues without it.
        """
        kernel = self.doing.get("kernel", "")
        name = self.doing.get("part", "start")
        self._failed(f"{name}: {kernel}".removesuffix(": "), why)
        if kernel and kernel not in self.avoid:
            self.avoid.append(kernel)
            self.save()
        else:
            self._over(name)

    def resume(self, document: dict[str, Any]) -> None:
        """Go on from what an earlier process of this section saved."""
        self.bars = [Bar(**bar) for bar in document.get("bars", ())]
        for name in ("done", "failures", "avoid", "doing", "progress"):
            setattr(self, name, document.get(name, getattr(self, name)))
        known = {"bars", "done", "failures", "avoid", "doing", "progress"}
        self.notes = {name: value for name, value in document.items() if name not in known}

    def _failed(self, name: str, why: str) -> None:
        self.failures[name] = why
        print(f"{name} FAILED: {why}", file=sys.stderr, flush=True)

    def _over(self, name: str) -> None:
        self.done.append(name)
        self.doing = {}
        self.save()

    def _hung(self, name: str, limit_s: float) -> None:
        try:
            faulthandler.dump_traceback(file=sys.stderr)
            self.lost(f"not done after {limit_s:.0f} s: {self.doing}")
        finally:
            os._exit(LOST)

    def save(self) -> None:
        kept = {name: getattr(self, name) for name in ("done", "failures", "avoid", "doing", "progress")}
        document = {"bars": [asdict(bar) for bar in self.bars], **self.notes, **kept}
        partial = self.folder / f"{SAVED}.partial"
        partial.write_text(json.dumps(document, indent=1, default=str))
        partial.replace(self.folder / SAVED)


def connect(dry_run: bool) -> Bench:
    """The bench of this machine's GPU, or of the fake one; raises `BackendUnavailable` where there is none."""
    if dry_run:
        from kernels.backends.cuda_fake import FakeCudaDevice

        return Bench(FakeCudaDevice(), is_dry=True)
    from kernels.backends.cuda_driver import DriverCudaDevice

    return Bench(DriverCudaDevice(), is_dry=False)
