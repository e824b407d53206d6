"""Backend: one runtime on one device, as measuring and searching see it.

A backend answers four questions: can it run an (op, precision) pair and if not why (`why_not`), what one op costs
(`build` gives something to time), which kernel really ran (`executed_kernel`, `executed_ops`), and what a whole model
computes (`load_model`). Every backend meets `kernels.reference` in one contract suite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kernels.errors import KernelsError, UnsupportedPrecision
from kernels.latency_table import RowScope
from kernels.op_shape import OpShape
from kernels.precision import Precision

if TYPE_CHECKING:
    import numpy as np

    from kernels.interleaving import Protocol as TimingProtocol
    from kernels.random_layer import RandomLayer
    from kernels.stopwatch import Clock

    Arrays = Mapping[str, np.ndarray[Any, Any]]


class KernelFallback(KernelsError):
    """The runtime ran another kernel than the precision asks for; the timing would be mislabelled."""

    code = "kernel_fallback"


class OpFailed(KernelsError):
    """One op could not be built, launched or trusted on this device; others can: a sweep goes on without it."""

    code = "op_failed"


class BadModel(KernelsError):
    """The runtime refuses to load the model."""

    code = "model_unloadable"


@dataclass(frozen=True)
class ExecutedOp:
    """One node the runtime really executes, after its own graph optimization.

    `inputs` and `outputs` are tensor names of the optimized graph. `weights` are those inputs that are constants
    (runtimes keep or derive their names from the submitted initializers, e.g. `fc.weight` or `fc.weight_T`).
    `compute` is the arithmetic the runtime reports: `i8` (integer products), `f32`, `i4-weights` (4-bit weights
    widened inside the kernel), ...; empty where it reports none. `origins` are the submitted nodes merged into this
    one, as far as the runtime names them.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    compute: str = ""
    origins: tuple[str, ...] = ()


class LoadedModel(ABC):
    """A whole ONNX model, compiled by the runtime. `close` frees it; use it no more afterwards."""

    @abstractmethod
    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Graph outputs by name for one batch of inputs; numpy arrays in the model's own dtypes."""

    @abstractmethod
    def executed_ops(self) -> list[ExecutedOp]:
        """What runs, in execution order where the runtime tells one."""

    @abstractmethod
    def close(self) -> None: ...


class Runnable(ABC):
    """One op with its data bound, ready to be timed.

    `executed_kernel` is what the runtime reported. `layer` is the random data the op was built from, so that
    `output()` can be compared with `kernels.reference.expected_output(layer)`.
    """

    executed_kernel: str
    layer: RandomLayer

    @abstractmethod
    def run(self) -> None:
        """Execute the op exactly once, synchronously."""

    @abstractmethod
    def output(self) -> np.ndarray[Any, Any]:
        """The result of one execution: integer codes where the recipe quantizes the output, else float32."""

    def close(self) -> None:  # noqa: B027 - most runnables hold nothing that the garbage collector cannot free
        """Free what the runtime holds."""


class TimedOp(Protocol):
    """One op as an arm of a measurement: a run executes it `repeats` times under the cache mode it was made for.

    `tried` holds the first impression in microseconds of every kernel that could run it, by name.
    """

    repeats: int
    tried: Mapping[str, float]

    @property
    def executed_kernel(self) -> str:
        """What ran."""
        ...

    def run(self) -> None: ...

    def close(self) -> None: ...


class Backend(ABC):
    """A runtime that can be asked, timed and loaded with models. `name` and `version` identify a latency."""

    name: str
    version: str
    protocol: TimingProtocol | None = None
    scope: RowScope = RowScope.DEPLOYABLE
    """How rows of this backend must be timed; None for the default protocol. `scope` is what a row of it stands for."""

    @abstractmethod
    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        """Why the pair cannot run here, as a sentence; None when it can."""

    @abstractmethod
    def build(self, op: OpShape, precision: Precision, threads: int, seed: int = 0) -> Runnable:
        """One op over random data; raises `UnsupportedPrecision` or, when another kernel ran, `KernelFallback`."""

    @abstractmethod
    def load_model(
        self, model: bytes | Path, threads: int, session_options: Mapping[str, str] | None = None
    ) -> LoadedModel:
        """A whole model; `session_options` are the runtime's own entries (None: those of the profile)."""

    def timed(self, op: OpShape, precision: Precision, threads: int, seed: int, cache: str) -> TimedOp | None:
        """The pair as an arm under a cache mode of `kernels.latency_table`, where the runtime rotates buffers itself;
        None lets the microbenchmark rotate copies of `build`. Raises as `build` does."""
        return None

    def overheads(self) -> Mapping[tuple[str, str], Callable[[], TimedOp]]:
        """What a network spends outside its layers, by (signature, precision name); see `LatencyTable.overheads`."""
        return {}

    @property
    def missing(self) -> Mapping[str, str]:
        """Kernels that it would compare too, were they installed, by name, and what they lack."""
        return {}

    def circumstances(self) -> dict[str, Any]:
        """The device's state right now, recorded before and after a measurement."""
        return {}

    def clock(self, threads: int) -> Clock | None:
        """The clock that must time this backend; None lets `kernels.stopwatch` choose one."""
        return None

    @property
    def anchor(self) -> Callable[[], None] | None:
        """Fixed work on this backend's clock that shows drift; None for `kernels.interleaving.anchor_work`."""
        return None

    def check(self, op: OpShape, precision: Precision) -> None:
        """Raise `UnsupportedPrecision` when `why_not` has an answer."""
        reason = self.why_not(op, precision)
        if reason is not None:
            raise UnsupportedPrecision(
                f"{self.name} cannot run {op.signature} in {precision}: {reason}",
                hint="choose a precision that the hardware profile lists for this op",
            )
