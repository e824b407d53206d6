"""Results of a study as its page needs them: headline figures, and columns lean enough for a thousand layers.

A report repeats every layer's name in every allocation. Here a precision is one character, an allocation one string
with a character per layer, and a number has the digits that can be seen.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from service.blobs import Blobs
from service.store.models import ArtifactRow
from service.studies.figures import Document, Figure, figures_of, full_precision_of, target_of

CODES = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
KEPT_RESULTS = 16
DIGITS = 4
US_PER_MS = 1000.0


@dataclass(frozen=True)
class Results:
    """One target's results: figures for the page's head and the columns its script draws, as gzipped JSON."""

    figures: tuple[Figure, ...]
    unit: str
    columns_gz: bytes
    etag: str


def read_results(blobs: Blobs, row: ArtifactRow, position: int) -> Results:
    """The results in a stored `report.json`. A report holds all targets of its study or one; `position` finds it."""
    return _results(_Stored(blobs, row.sha256), position)


@dataclass(frozen=True)
class _Stored:
    """Bytes in a store, equal when their hash is: they never change, so what was made of them can be kept."""

    blobs: Blobs = field(compare=False)
    sha256: str


@lru_cache(maxsize=KEPT_RESULTS)
def _results(stored: _Stored, position: int) -> Results:
    with stored.blobs.open(stored.sha256) as file:
        report = json.load(file)
    target = target_of(report, position)
    unit = str((report.get("loss") or {}).get("unit") or "loss")
    columns = json.dumps(columns_of(report, target, unit), separators=(",", ":"), ensure_ascii=False)
    return Results(figures_of(target), unit, gzip.compress(columns.encode(), 6, mtime=0), stored.sha256)


def columns_of(report: Document, target: Document, unit: str) -> dict[str, Any]:
    """What the page's script draws. `layers` is columns; `front[i].codes` and `assemblies[i].codes` are allocations."""
    layers = target["layers"]
    names = [layer["name"] for layer in layers]
    palette = _palette(target)
    code = {precision: CODES[index] for index, precision in enumerate(palette)}
    first_of_group = _first_of_group(layers)
    return {
        "unit": unit,
        "hardware": target["hardware"],
        "palette": palette,
        "verdict": target["verdict"],
        "budgets": target["budgets"],
        "fit": target.get("latency_fit") or {},
        "notes": report.get("notes", []),
        "front_resource": target["front_resource"],
        "assemblies": [_assembly(one, names, code) for one in target["assemblies"]],
        "front": [
            {
                "cost": _short(point["cost"]),
                "loss": _short(point["loss"]),
                "codes": _codes(point["precisions"], names, code),
            }
            for point in target["front"]
        ],
        "layers": {
            "name": names,
            "kind": [layer["kind"] for layer in layers],
            "weights": [layer["weights"] for layer in layers],
            "codes": "".join(code[layer["precision"]] for layer in layers),
            "reason": [layer["reason"] for layer in layers],
            "group": [first_of_group[position] for position in range(len(layers))],
            "choices": [_choices(layer, code) for layer in layers],
        },
        "fixed": _fixed_costs(target, first_of_group),
        "precisions": [[one["precision"], one["op"], one["sentence"]] for one in target.get("precisions", [])],
        "unquantized": target.get("unquantized", []),
    }


def _palette(target: Document) -> list[str]:
    """Every precision the target speaks of, each at the place of its code. The most a profile runs is about ten."""
    seen: dict[str, None] = {}
    for layer in target["layers"]:
        seen.setdefault(layer["precision"])
        for choice in layer["choices"]:
            seen.setdefault(choice["precision"])
    for one in (*target["front"], *target["assemblies"]):
        for precision in one["precisions"].values():
            seen.setdefault(precision)
    return list(seen)[: len(CODES)]


def _first_of_group(layers: Sequence[Document]) -> list[int]:
    """Per layer the position of the first layer of its group, whose choices carry the costs of all of them."""
    first: dict[Any, int] = {}
    return [
        first.setdefault(layer["group"], position) if layer["group"] is not None else position
        for position, layer in enumerate(layers)
    ]


def _choices(layer: Document, code: Mapping[str, str]) -> list[list[Any]]:
    """`[code, loss, latency in ms, bytes]` per precision."""
    return [
        [
            code[choice["precision"]],
            _short(choice["loss"]),
            _short(_latency_ms(choice["costs"])),
            _short(choice["costs"].get("size_bytes")),
        ]
        for choice in layer["choices"]
    ]


def _latency_ms(costs: Document) -> float | None:
    found = costs.get("latency_us")
    return None if found is None else found / US_PER_MS


def _fixed_costs(target: Document, first_of_group: Sequence[int]) -> dict[str, float]:
    """Bytes that no choice changes: full precision's total less what its choices count."""
    full = full_precision_of(target)
    total = (full or {}).get("predicted", {}).get("size_bytes")
    if total is None:
        return {}
    for position, layer in enumerate(target["layers"]):
        if first_of_group[position] == position:
            total -= next(
                (one["costs"].get("size_bytes", 0.0) for one in layer["choices"] if one["precision"] == "fp32"), 0.0
            )
    return {"size_bytes": total}


def _assembly(one: Document, names: Sequence[str], code: Mapping[str, str]) -> dict[str, Any]:
    kept = ("name", "also", "source", "measured", "size_bytes", "gap", "discarded", "select", "report")
    return {
        **{name: one.get(name) for name in kept},
        "meets_budgets": one.get("meets_budgets", True),
        "predicted": {name: _short(value) for name, value in one["predicted"].items()},
        "codes": _codes(one["precisions"], names, code),
    }


def _codes(precisions: Mapping[str, str], names: Sequence[str], code: Mapping[str, str]) -> str:
    full = code.get("fp32", CODES[0])
    return "".join(code.get(precisions.get(name, "fp32"), full) for name in names)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
