"""Device identity: which physical or named hardware a measurement was made on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DeviceIdentity:
    """A CPU or GPU as a measurement knows it. Two devices with equal identity may share a latency table.

    `isa` holds instruction-set flags that decide which kernel runs (`avx512_vnni`, `amx_int8`) or, on a GPU,
    the compute capability (`sm_90`).
    """

    kind: str
    name: str
    cores: int
    memory_bytes: int
    isa: tuple[str, ...] = ()
    l2_bytes: int = 0
    l3_bytes: int = 0
    os: str = ""
    driver: str = ""

    def __str__(self) -> str:
        isa = ", ".join(self.isa) or "no special instructions"
        return f"{self.name} ({self.cores} cores, {self.memory_bytes / (1 << 30):.3g} GiB, {isa})"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "isa": list(self.isa)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DeviceIdentity:
        return cls(**{**data, "isa": tuple(data["isa"])})
