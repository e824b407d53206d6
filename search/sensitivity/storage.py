"""Sensitivities on disk: one JSON for the increases of every metric, one npz for their interactions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from search.errors import SearchError
from search.sensitivity.estimate import Interactions, LossIncrease, Sensitivity

SCHEMA_VERSION = 1


def save_sensitivities(folder: Path, sensitivities: Mapping[str, Sensitivity], suffix: str = "") -> list[str]:
    """Write every metric's sensitivity into the folder as `sensitivity<suffix>.json` and `interactions<suffix>.npz`."""
    names = _names(suffix)
    matrices = {
        metric: found.interactions.matrix for metric, found in sensitivities.items() if found.interactions is not None
    }
    document = {
        "schema_version": SCHEMA_VERSION,
        "metrics": {metric: _to_json(found) for metric, found in sensitivities.items()},
    }
    np.savez(folder / names[1], **matrices)  # type: ignore[arg-type]
    (folder / names[0]).write_text(json.dumps(document, indent=1))
    return names


def load_sensitivities(folder: Path, suffix: str = "") -> dict[str, Sensitivity]:
    """Every metric's sensitivity, in the order they were saved; raises `SearchError` for another schema."""
    names = _names(suffix)
    document = json.loads((folder / names[0]).read_text())
    if document["schema_version"] != SCHEMA_VERSION:
        raise SearchError(
            f"sensitivities have schema version {document['schema_version']}, this program reads {SCHEMA_VERSION}",
            hint="scan again with this version",
            code="bad_sensitivity",
        )
    with np.load(folder / names[1], allow_pickle=False) as matrices:
        return {metric: _from_json(metric, data, matrices) for metric, data in document["metrics"].items()}


def _names(suffix: str) -> list[str]:
    return [f"sensitivity{suffix}.json", f"interactions{suffix}.npz"]


def _to_json(found: Sensitivity) -> dict[str, Any]:
    return {
        "unit": found.unit,
        "notes": list(found.notes),
        "increases": [
            {"group": group, "precision": precision, **asdict(increase)}
            for (group, precision), increase in found.increases.items()
        ],
        "interactions": None
        if found.interactions is None
        else {"keys": [list(key) for key in found.interactions.keys], "shrink": found.interactions.shrink},
    }


def _from_json(metric: str, data: Mapping[str, Any], matrices: Mapping[str, Any]) -> Sensitivity:
    pairs = data["interactions"]
    return Sensitivity(
        metric=metric,
        unit=data["unit"],
        increases={
            (row["group"], row["precision"]): LossIncrease(row["value"], row["standard_error"], row["samples"])
            for row in data["increases"]
        },
        interactions=None
        if pairs is None
        else Interactions(tuple((g, p) for g, p in pairs["keys"]), matrices[metric], pairs["shrink"]),
        notes=tuple(data["notes"]),
    )
