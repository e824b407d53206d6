"""Traces: the mean curvature of the loss in each layer's weights and in the activations it reads.

They depend on model, data and loss only, never on a candidate or a device, so they are computed once and kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from search.errors import BadSubmission

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class MeanTrace:
    """Tr(H)/n of one block of `count` = n entries, with its standard error over `draws` samples or probes.

    The *mean* trace and nothing else is stored: pairing Tr with ‖ΔW‖² instead of Tr/n weighs layers by their size.
    `value` may be negative when estimated; only the objective floors it.
    """

    value: float
    standard_error: float
    count: int
    draws: int

    @property
    def floored(self) -> float:
        return max(self.value, 0.0)


@dataclass(frozen=True)
class Traces:
    """Mean traces by layer name: `weights`, and `activations` for what each layer reads (per sample's entries)."""

    method: str
    weights: Mapping[str, MeanTrace]
    activations: Mapping[str, MeanTrace] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        document = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        Path(path).write_text(json.dumps(document, indent=1))

    @classmethod
    def load(cls, path: Path) -> Traces:
        """Traces saved before; raises `BadSubmission` (`bad_traces`) for anything else."""
        try:
            document = json.loads(Path(path).read_text())
            if document["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {document['schema_version']}, this program reads {SCHEMA_VERSION}")
            return cls(
                document["method"],
                _by_name(document["weights"]),
                _by_name(document["activations"]),
                tuple(document["notes"]),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BadSubmission(
                f"{path} holds no traces that can be read: {error}", hint="compute them again", code="bad_traces"
            ) from error


def _by_name(rows: Mapping[str, Any]) -> dict[str, MeanTrace]:
    return {name: MeanTrace(**row) for name, row in rows.items()}


def mean_trace(total: float, total_of_squares: float, draws: int, count: int) -> MeanTrace:
    """The estimate from the sum and sum of squares of `draws` values of the full trace."""
    mean = total / draws
    spread = max(total_of_squares - draws * mean * mean, 0.0)
    error = math.sqrt(spread / (draws * (draws - 1))) if draws > 1 else math.inf
    return MeanTrace(mean / count, error / count, count, draws)
