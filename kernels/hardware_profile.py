"""Hardware profile: a device with a runtime, what that pair can run, and with which numerics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernels.device_identity import DeviceIdentity
from kernels.errors import UnsupportedPrecision
from kernels.op_shape import LinearShape, OpShape
from kernels.precision import BF16, FP16, FP32, Precision
from kernels.recipe import Recipe

SCHEMA_VERSION = 1
_HALVES = {"via_fp16": FP16, "via_bf16": BF16}


@dataclass(frozen=True)
class KernelSupport:
    """How one (op kind, precision) pair runs: `via` is the kernel's own compute format.

    `native`: the arithmetic is done in the stored format. `via_int8`: fewer stored bits on an 8-bit kernel, so
    8-bit latency. `via_fp16`, `via_bf16`: computed in half precision, whatever is stored. `emulated`: correct but not
    faster than 8 bit; offered for its bytes only. `whole_groups`: the kernel needs a reduction that the precision's
    group size divides. `verified`: it ran on this architecture and equalled the reference; where it did not, a study
    may only use its estimates, and only when it asks for them.
    """

    kernel: str
    via: str = "native"
    whole_groups: bool = False
    verified: bool = True


@dataclass(frozen=True)
class Peak:
    """A dense peak rate and where the figure comes from; `unit` is `TOPS`, `TFLOPS`, `GB/s` or `share` (of a peak)."""

    value: float
    unit: str
    source: str
    quality: str


@dataclass(frozen=True)
class HardwareProfile:
    """One device with one runtime, e.g. `cpu-local` (this CPU with ONNX Runtime).

    `support` maps (op kind, precision name) to the kernel that runs it; an absent pair cannot run. Op kinds are
    those of `kernels.op_shape`. `recipes` maps (op kind, precision name) to the numerics. `session_options` are the
    runtime's config entries shipped with every artifact and used in every measurement: they are part of the
    identity of a latency. `tie_rules` names groupings the runtime imposes (see `search.graph`). `achieved` is the
    share of a peak that good kernels reach (`tensor`, `vector`, `memory`); estimates use it, nothing else does.
    """

    slug: str
    device: DeviceIdentity
    runtime: str
    runtime_version: str
    support: Mapping[tuple[str, str], KernelSupport]
    recipes: Mapping[tuple[str, str], Recipe]
    session_options: Mapping[str, str] = field(default_factory=dict)
    tie_rules: tuple[str, ...] = ()
    peaks: Mapping[str, Peak] = field(default_factory=dict)
    achieved: Mapping[str, Peak] = field(default_factory=dict)
    measurable_here: bool = False

    def precisions(self, op_kind: str) -> list[Precision]:
        """Quantized precisions this profile runs for an op kind, most bits first; float formats are not listed."""
        found = [Precision(name) for kind, name in self.support if kind == op_kind]
        found = [precision for precision in found if not precision.is_float]
        return sorted(found, key=lambda p: (-p.weight_bits, -p.activation_bits, p.name))

    def narrow_floats(self, op_kind: str) -> list[Precision]:
        """Float formats of fewer bits than full precision here (fp8): rows to compare with, no choices of a search."""
        found = [Precision(name) for kind, name in self.support if kind == op_kind]
        return [p for p in found if p.is_float and p.weight_bits < self.full_precision.weight_bits]

    def served_as(self, op_kind: str, precision: Precision) -> Precision:
        """The format that a float pair is computed in: some runtimes serve full precision in half."""
        support = self.support.get((op_kind, precision.name))
        return precision if support is None or not precision.is_float else _HALVES.get(support.via, precision)

    @property
    def full_precision(self) -> Precision:
        """The format of layers that are left in full precision: FP32, or the half that the runtime makes of it."""
        served = (self.served_as(kind, FP32) for kind, name in self.support if name == FP32.name)
        return next((format_ for format_ in served if format_ != FP32), FP32)

    def recipe(self, op_kind: str, precision: Precision) -> Recipe:
        """The numerics of a pair; raises `UnsupportedPrecision` naming the profile and what it does run."""
        try:
            return self.recipes[op_kind, precision.name]
        except KeyError:
            offered = ", ".join(p.name for p in self.precisions(op_kind)) or "full precision only"
            raise UnsupportedPrecision(
                f"profile {self.slug!r} cannot run {op_kind} in {precision}", hint=f"it runs: {offered}"
            ) from None

    def why_not(self, op: OpShape, precision: Precision) -> str | None:
        """Why the pair cannot run on this profile, as a sentence; None when it can."""
        support = self.support.get((op.kind, precision.name))
        if support is None:
            offered = ", ".join(p.name for p in self.precisions(op.kind)) or "full precision only"
            return f"profile {self.slug!r} has no {op.kind} kernel for it; it runs {offered}"
        group = precision.group_size
        if support.whole_groups and group is not None and isinstance(op, LinearShape) and op.k % group:
            return f"groups of {group} weights do not divide its {op.k} inputs"
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "slug": self.slug,
            "device": self.device.to_json(),
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "support": [
                {
                    "op": kind,
                    "precision": name,
                    "kernel": s.kernel,
                    "via": s.via,
                    "whole_groups": s.whole_groups,
                    "verified": s.verified,
                }
                for (kind, name), s in self.support.items()
            ],
            "recipes": [
                {"op": kind, "precision": name, "recipe": recipe.to_json()}
                for (kind, name), recipe in self.recipes.items()
            ],
            "session_options": dict(self.session_options),
            "tie_rules": list(self.tie_rules),
            "peaks": {name: vars(peak) for name, peak in self.peaks.items()},
            "achieved": {name: vars(share) for name, share in self.achieved.items()},
            "measurable_here": self.measurable_here,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> HardwareProfile:
        return cls(
            slug=data["slug"],
            device=DeviceIdentity.from_json(data["device"]),
            runtime=data["runtime"],
            runtime_version=data["runtime_version"],
            support={
                (s["op"], s["precision"]): KernelSupport(
                    s["kernel"], s["via"], s.get("whole_groups", False), s.get("verified", True)
                )
                for s in data["support"]
            },
            recipes={(r["op"], r["precision"]): Recipe.from_json(r["recipe"]) for r in data["recipes"]},
            session_options=data["session_options"],
            tie_rules=tuple(data["tie_rules"]),
            peaks={name: Peak(**peak) for name, peak in data["peaks"].items()},
            achieved={name: Peak(**share) for name, share in data.get("achieved", {}).items()},
            measurable_here=data["measurable_here"],
        )
