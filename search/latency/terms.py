"""Latency terms: what an assembly's time is a sum of, before any coefficient is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kernels.errors import NotMeasured
from kernels.hardware_profile import HardwareProfile
from kernels.latency_table import LatencyTable
from kernels.precision import FP32, Precision
from search.domain import FLOAT_DOMAIN, INT8_DOMAIN
from search.graph import Graph, OperatingShapes
from search.latency.boundary import (
    Edge,
    crossing_elements,
    find_edges,
    leaves_codes,
    reads_codes,
    unfused_elements,
)
from search.latency.rows import LayerRow, layer_latencies_us

LayerPrecision = tuple[str, str]
KernelShape = tuple[str, str]
OWN_SCALE_SHARE = 0.05
"""A kernel class that can never hold this share of full precision's table time gets no scale of its own: a few runs
could not tell it from noise. It takes full precision's."""


@dataclass(frozen=True)
class LatencyTerms:
    """Table rows and edges of one model on one profile at one operating point.

    `row_us` holds the table's median of every (layer, precision name) on offer, full precision included.
    `kernel_class` says which scale a pair shares: its precision, or the 8-bit one when its kernel is the 8-bit
    kernel. `op` is the signature of each layer's op shape. `reading` and `leaving` are the pairs that read, and leave,
    quantized activations.
    """

    row_us: Mapping[LayerPrecision, float]
    kernel_class: Mapping[LayerPrecision, str]
    op: Mapping[str, str]
    reading: frozenset[LayerPrecision]
    leaving: frozenset[LayerPrecision]
    edges: tuple[Edge, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer with rows, in graph order."""
        return tuple(dict.fromkeys(layer for layer, _ in self.row_us))

    def offered(self, layer: str) -> tuple[str, ...]:
        """Precision names that have a row for the layer."""
        return tuple(precision for name, precision in self.row_us if name == layer)

    @property
    def kernel_shapes(self) -> tuple[KernelShape, ...]:
        """Every (kernel class, op shape) that occurs, in graph order."""
        return tuple(dict.fromkeys(self.kernel_shape(*pair) for pair in self.row_us))

    def kernel_shape(self, layer: str, precision: str) -> KernelShape:
        """What a layer's row is scaled with at a precision; raises `NotMeasured` where there is no row."""
        if (layer, precision) not in self.row_us:
            raise NotMeasured(
                f"no latency of layer {layer!r} in {precision}", hint=f"there are {', '.join(self.offered(layer))}"
            )
        return self.kernel_class[layer, precision], self.op[layer]

    def domain(self, layer: str, precision: str) -> str:
        """What boundaries ask of a pair: `int8` for one that reads codes, else its kernel class or `float`."""
        if (layer, precision) in self.reading:
            return INT8_DOMAIN
        kernel_class, _ = self.kernel_shape(layer, precision)
        return FLOAT_DOMAIN if kernel_class == FP32.name else kernel_class

    @property
    def switched_domains(self) -> tuple[str, ...]:
        """Every domain but `float` that occurs, in graph order."""
        return tuple(dict.fromkeys(found for pair in self.row_us if (found := self.domain(*pair)) != FLOAT_DOMAIN))

    def switches(self, precisions: Mapping[str, str]) -> dict[str, int]:
        """How often, in graph order, a layer of each domain follows one of another domain (or the model's begin)."""
        found: dict[str, int] = {}
        before = FLOAT_DOMAIN
        for layer in self.layers:
            here = self.domain(layer, precisions.get(layer, FP32.name))
            if here not in (before, FLOAT_DOMAIN):
                found[here] = found.get(here, 0) + 1
            before = here
        return found

    def row_sums_us(self, precisions: Mapping[str, str]) -> dict[KernelShape, float]:
        """Table time per (kernel class, op shape) under `precisions`; layers left out are in full precision."""
        sums: dict[KernelShape, float] = {}
        for layer in self.layers:
            precision = precisions.get(layer, FP32.name)
            key = self.kernel_shape(layer, precision)
            sums[key] = sums.get(key, 0.0) + self.row_us[layer, precision]
        return sums

    def class_shares(self, precisions: Mapping[str, str]) -> dict[str, float]:
        """Part of the table time by kernel class."""
        sums = self.row_sums_us(precisions)
        total = sum(sums.values())
        shares: dict[str, float] = {}
        for (name, _), table_us in sums.items():
            shares[name] = shares.get(name, 0.0) + table_us / total
        return shares

    def converted_elements(self, precisions: Mapping[str, str]) -> float:
        """Activation elements that cross between float and int8 under `precisions`."""
        return crossing_elements(
            self.edges,
            reading=self._readers(precisions),
            leaving={layer for layer, precision in precisions.items() if (layer, precision) in self.leaving},
        )

    def unfused_elements(self, precisions: Mapping[str, str]) -> float:
        """Activation elements behind elementwise ops of which just one end computes in int8 under `precisions`."""
        return unfused_elements(self.edges, self._readers(precisions))

    @property
    def elements_of_a_sourced_edge(self) -> float:
        """The mean over edges with a source, 1 without any: the unit of `unfused_elements`."""
        sizes = [edge.elements for edge in self.edges if edge.source is not None]
        return sum(sizes) / len(sizes) if sizes else 1.0

    def _readers(self, precisions: Mapping[str, str]) -> set[str]:
        return {layer for layer, precision in precisions.items() if (layer, precision) in self.reading}

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": [
                {
                    "layer": layer,
                    "precision": precision,
                    "median_us": median_us,
                    "kernel_class": self.kernel_class[layer, precision],
                    "op": self.op[layer],
                    "reads_codes": (layer, precision) in self.reading,
                    "leaves_codes": (layer, precision) in self.leaving,
                }
                for (layer, precision), median_us in self.row_us.items()
            ],
            "edges": [vars(edge) for edge in self.edges],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyTerms:
        rows = {(row["layer"], row["precision"]): row for row in data["rows"]}
        return cls(
            row_us={pair: row["median_us"] for pair, row in rows.items()},
            kernel_class={pair: row["kernel_class"] for pair, row in rows.items()},
            op={row["layer"]: row["op"] for row in data["rows"]},
            reading=frozenset(pair for pair, row in rows.items() if row["reads_codes"]),
            leaving=frozenset(pair for pair, row in rows.items() if row["leaves_codes"]),
            edges=tuple(Edge(**edge) for edge in data["edges"]),
        )


def latency_terms(
    graph: Graph,
    shapes: OperatingShapes,
    profile: HardwareProfile,
    rows: Iterable[LayerRow],
    table: LatencyTable,
    threads: int,
) -> LatencyTerms:
    """The terms of a model from a table that holds all its `rows` (see `required_rows`); raises `NotMeasured`."""
    rows = list(rows)
    kinds = {layer: op.kind for layer, op, _ in rows}
    row_us = layer_latencies_us(rows, table, threads)
    recipes = {
        (layer, precision.name): None if precision == FP32 else profile.recipe(kinds[layer], precision)
        for layer, _, precision in rows
    }
    return LatencyTerms(
        row_us=row_us,
        kernel_class=_without_minor_classes(
            {(layer, precision.name): kernel_class(profile, kinds[layer], precision) for layer, _, precision in rows},
            row_us,
        ),
        op={layer: op.signature for layer, op, _ in rows},
        reading=frozenset(pair for pair, recipe in recipes.items() if reads_codes(recipe)),
        leaving=frozenset(pair for pair, recipe in recipes.items() if leaves_codes(recipe)),
        edges=find_edges(graph, shapes, profile),
    )


def kernel_class(profile: HardwareProfile, op_kind: str, precision: Precision) -> str:
    """The precision whose kernel really runs: `w4a8` run by the 8-bit kernel is of class `w8a8`."""
    support = profile.support.get((op_kind, precision.name))
    if support is not None and support.via == "via_int8" and precision.weight_bits < 8:
        return f"w8a{precision.activation_bits}{'-dynamic' * precision.is_dynamic}"
    return precision.name


def _without_minor_classes(
    classes: Mapping[LayerPrecision, str], row_us: Mapping[LayerPrecision, float]
) -> dict[LayerPrecision, str]:
    """The classes, those of too little time replaced by full precision's; the time is in full precision's rows."""
    float_us = {layer: us for (layer, precision), us in row_us.items() if precision == FP32.name}
    layers: dict[str, set[str]] = {}
    for (layer, _), name in classes.items():
        layers.setdefault(name, set()).add(layer)
    least = OWN_SCALE_SHARE * sum(float_us.values())
    minor = {name for name, users in layers.items() if sum(float_us[layer] for layer in users) < least}
    return {pair: FP32.name if name in minor else name for pair, name in classes.items()}
