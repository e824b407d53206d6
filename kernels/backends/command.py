"""Command backend: any program that takes an ONNX file and prints milliseconds, such as trtexec or a phone over adb.

Used from the command line only: it runs what the user typed, on the user's own machine, never for the service.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from kernels.backends.base import Backend, LoadedModel, Runnable
from kernels.errors import BackendUnavailable, KernelsError
from kernels.hardware_profile import HardwareProfile
from kernels.interleaving import Protocol
from kernels.onnx_op import op_model
from kernels.op_shape import OpShape
from kernels.precision import FP32, Precision
from kernels.random_layer import RandomLayer, random_layer

MODEL_PLACEHOLDER = "{model}"
_NUMBER_LINE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)\s*(?:ms)?\s*")
_SHOWN_CHARACTERS = 500


class CommandFailed(KernelsError):
    """The command could not be run, failed, ran too long, or printed no milliseconds."""

    code = "command_failed"


class ReportedClock:
    """Time as the command reports it: starting the program and moving files do not count."""

    name = "reported_by_command"

    def __init__(self) -> None:
        self.elapsed_ns = 0

    def now_ns(self) -> int:
        return self.elapsed_ns


class CommandOp(Runnable):
    """One op in a file; every run starts the command once and believes the median of the lines it prints."""

    def __init__(self, layer: RandomLayer, kernel: str, folder: Path, run: Callable[[Path], float]) -> None:
        self.layer = layer
        self.executed_kernel = kernel
        self._path = folder / f"{layer.op.signature}_{layer.precision}.onnx"
        self._path.write_bytes(op_model(layer))
        self._run = run

    def run(self) -> None:
        self._run(self._path)

    def output(self) -> np.ndarray[Any, Any]:
        raise BackendUnavailable("a command reports times, not outputs", hint="check outputs with another backend")

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


class Command(Backend):
    """Times ops with a user's command; `{model}` in it stands for the ONNX file, `{threads}` for the threads."""

    name = "command"
    protocol = Protocol(
        warmup_calls=1, warmup_us=0.0, sample_us=0.0, min_samples=5, max_samples=15, half_width=0.02, block_rounds=1
    )

    def __init__(self, profile: HardwareProfile, command: str, time_limit_s: float = 600.0) -> None:
        if MODEL_PLACEHOLDER not in command:
            raise CommandFailed(
                f"the command {command!r} has no place for the model",
                hint=f"write {MODEL_PLACEHOLDER} where the ONNX file belongs",
            )
        self.profile = profile
        self.version = profile.runtime_version
        self._words = shlex.split(command)
        self._time_limit_s = time_limit_s
        self._clock = ReportedClock()
        self._folder = Path(tempfile.mkdtemp(prefix="kernels-command-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        return self.profile.why_not(op, precision)

    def build(self, op: OpShape, precision: Precision, threads: int, seed: int = 0) -> CommandOp:
        self.check(op, precision)
        recipe = None if precision == FP32 else self.profile.recipe(op.kind, precision)
        layer = random_layer(op, precision, recipe, seed)
        kernel = self.profile.support[op.kind, precision.name].kernel
        return CommandOp(layer, f"{kernel} (as the profile says)", self._folder, lambda p: self.time_ms(p, threads))

    def load_model(
        self, model: bytes | Path, threads: int, session_options: Mapping[str, str] | None = None
    ) -> LoadedModel:
        raise BackendUnavailable(
            "a command reports times, not outputs", hint="time a file with Command.time_ms, run it elsewhere"
        )

    def clock(self, threads: int) -> ReportedClock:
        return self._clock

    @property
    def anchor(self) -> Callable[[], None]:
        return lambda: None

    def time_ms(self, model: Path, threads: int) -> float:
        """Milliseconds the command reports for a file: the median over its lines that are a number alone."""
        words = [w.replace(MODEL_PLACEHOLDER, str(model)).replace("{threads}", str(threads)) for w in self._words]
        shown = shlex.join(words)
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=self._time_limit_s, check=False, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CommandFailed(f"{shown}: {error}", hint="try the command by hand") from error
        if done.returncode != 0:
            tail = done.stderr.strip()[-_SHOWN_CHARACTERS:]
            raise CommandFailed(f"{shown} ended with status {done.returncode}: {tail}", hint="try the command by hand")
        values = [float(match[1]) for line in done.stdout.splitlines() if (match := _NUMBER_LINE.fullmatch(line))]
        values = [value for value in values if value > 0 and math.isfinite(value)]
        if not values:
            raise CommandFailed(
                f"{shown} printed no milliseconds: {done.stdout.strip()[-_SHOWN_CHARACTERS:]!r}",
                hint="it must print lines that hold one number, the milliseconds of a run",
            )
        self._clock.elapsed_ns += round(median(values) * 1e6)
        return median(values)
