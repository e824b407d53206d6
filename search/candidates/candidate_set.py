"""Candidate set: the finished candidates of a model with their activation quantizers, saved as JSON and npz."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from kernels.precision import Precision
from kernels.recipe import Granularity, Numerics, Recipe
from search.assembly import ActivationQuantizer, Candidate, QuantizedWeight
from search.errors import BadSubmission
from search.graph import Unquantized

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CandidateSet:
    """What one runtime can build: candidates by (layer, precision) and quantizers by (tensor, numerics).

    `excluded` are the pairs that cannot be made: `node` is the layer's name and the reason starts with the precision.
    `samples` is how many calibration samples the set was finished on.
    """

    candidates: Mapping[tuple[str, str], Candidate]
    quantizers: Mapping[tuple[str, Numerics], ActivationQuantizer]
    excluded: tuple[Unquantized, ...] = ()
    samples: int = 0

    @property
    def recipes(self) -> dict[tuple[str, str], Recipe]:
        """How every candidate is computed, by (layer, precision)."""
        return {key: candidate.recipe for key, candidate in self.candidates.items()}

    def precisions(self, layer: str) -> list[str]:
        """Names of the precisions this layer has a candidate for, in the order they were asked for."""
        return [precision for name, precision in self.candidates if name == layer]

    def to_parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
        """The set as a JSON document and the arrays it numbers."""
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        rows = []
        for index, candidate in enumerate(self.candidates.values()):
            weight = candidate.weight
            parts: dict[str, np.ndarray[Any, Any] | None] = {
                "codes": weight.codes,
                "scale": weight.scale,
                "zero_point": weight.zero_point,
                "bias": candidate.bias,
            }
            arrays |= {f"{index}.{part}": array for part, array in parts.items() if array is not None}
            rows.append(
                {
                    "layer": candidate.layer,
                    "precision": candidate.precision.name,
                    "recipe": candidate.recipe.to_json(),
                    "channel_axis": weight.channel_axis,
                    "bits": weight.bits,
                    "group_size": weight.group_size,
                    "clipping": candidate.clipping,
                    "residual": candidate.residual,
                    "size_bytes": candidate.size_bytes,
                }
            )
        document = {
            "schema_version": SCHEMA_VERSION,
            "samples": self.samples,
            "candidates": rows,
            "quantizers": [asdict(quantizer) for quantizer in self.quantizers.values()],
            "excluded": [asdict(entry) for entry in self.excluded],
        }
        return document, arrays

    @classmethod
    def from_parts(cls, document: Mapping[str, Any], arrays: Mapping[str, Any]) -> CandidateSet:
        """The set that `to_parts` took apart; raises `ValueError`, `KeyError` or `TypeError` for anything else."""
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {document['schema_version']}, this program reads {SCHEMA_VERSION}")
        found = [_candidate(row, arrays, index) for index, row in enumerate(document["candidates"])]
        quantizers = [
            ActivationQuantizer(row["tensor"], row["scale"], row["zero_point"], _numerics(row["numerics"]))
            for row in document["quantizers"]
        ]
        return cls(
            candidates={(candidate.layer, candidate.precision.name): candidate for candidate in found},
            quantizers={(entry.tensor, entry.numerics): entry for entry in quantizers},
            excluded=tuple(Unquantized(**row) for row in document["excluded"]),
            samples=document["samples"],
        )

    def save(self, folder: Path, suffix: str = "") -> list[str]:
        """Write `candidates<suffix>.json` and `.npz` into the folder, which is made if missing; returns their names."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = _names(suffix)
        document, arrays = self.to_parts()
        np.savez(folder / names[1], **arrays)  # type: ignore[arg-type]
        (folder / names[0]).write_text(json.dumps(document, indent=1))
        return names

    @classmethod
    def load(cls, folder: Path, suffix: str = "") -> CandidateSet:
        """The set a folder holds; raises `BadSubmission` (`bad_candidates`) for another schema or a damaged one."""
        names = _names(suffix)
        try:
            document = json.loads((Path(folder) / names[0]).read_text())
            with (Path(folder) / names[1]).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls.from_parts(document, arrays)
        except (OSError, KeyError, TypeError, ValueError, BadZipFile) as error:
            raise BadSubmission(
                f"{folder} holds no candidates that can be read: {error}",
                hint="finish the candidates again",
                code="bad_candidates",
            ) from error


def _names(suffix: str) -> list[str]:
    return [f"candidates{suffix}.json", f"candidates{suffix}.npz"]


def _numerics(row: dict[str, Any]) -> Numerics:
    return Numerics(**{**row, "granularity": Granularity(row["granularity"])})


def _candidate(row: dict[str, Any], arrays: Mapping[str, Any], index: int) -> Candidate:
    def array(part: str) -> Any:
        return arrays[f"{index}.{part}"] if f"{index}.{part}" in arrays else None

    return Candidate(
        layer=row["layer"],
        precision=Precision(row["precision"]),
        recipe=Recipe.from_json(row["recipe"]),
        weight=QuantizedWeight(
            codes=array("codes"),
            scale=array("scale"),
            zero_point=array("zero_point"),
            channel_axis=row["channel_axis"],
            bits=row["bits"],
            group_size=row["group_size"],
        ),
        bias=array("bias"),
        clipping=row["clipping"],
        residual=row["residual"],
        size_bytes=row["size_bytes"],
    )
