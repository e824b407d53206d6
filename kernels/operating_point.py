"""Operating point: how a model is served, which every latency belongs to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class OperatingPoint:
    """Batch size, values of the other dynamic dimensions by name, and compute threads.

    `dims` maps a symbolic ONNX dimension (`"sequence"`) to its value; the batch dimension is `batch`.
    """

    batch: int = 1
    threads: int = 1
    dims: tuple[tuple[str, int], ...] = field(default=())

    def __post_init__(self) -> None:
        if self.batch < 1 or self.threads < 1 or any(value < 1 for _, value in self.dims):
            raise ValueError(f"an operating point needs positive batch, threads and dims, not {self}")

    @property
    def key(self) -> str:
        """Canonical text, e.g. `b1-t2-sequence=128`."""
        return "-".join([f"b{self.batch}", f"t{self.threads}", *(f"{k}={v}" for k, v in sorted(self.dims))])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "dims": dict(self.dims)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OperatingPoint:
        return cls(batch=data["batch"], threads=data["threads"], dims=tuple(sorted(data["dims"].items())))
