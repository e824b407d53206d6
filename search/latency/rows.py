"""Rows a model needs: the (op shape, precision) pairs of its layers on one profile at one operating point."""

from __future__ import annotations

from collections.abc import Iterable

from kernels.hardware_profile import HardwareProfile
from kernels.latency_table import LatencyTable
from kernels.op_shape import OpShape
from kernels.precision import FP32, Precision
from search.graph import Graph, OperatingShapes

LayerRow = tuple[str, OpShape, Precision]
Pair = tuple[OpShape, Precision]


def required_rows(graph: Graph, shapes: OperatingShapes, profile: HardwareProfile) -> list[LayerRow]:
    """(layer, op shape, precision) for every layer that can be quantized: full precision and all the profile offers.

    Layers with an `unquantized_reason`, and kinds the profile has no kernel for, are left out: what they cost is the
    same in every assembly and ends in the fit's intercept. So are single pairs that the profile cannot run, such as
    a group size that does not divide the reduction.
    """
    needed: list[LayerRow] = []
    for layer in graph.layers:
        op = shapes.op_shapes.get(layer.name)
        if layer.unquantized_reason is not None or op is None:
            continue
        offered = [p for p in profile.precisions(op.kind) if profile.why_not(op, p) is None]
        if offered:
            needed += [(layer.name, op, precision) for precision in [FP32, *offered]]
    return needed


def distinct_pairs(rows: Iterable[LayerRow]) -> list[Pair]:
    """What has to be measured for these rows: each (op shape, precision) once, in order of first use."""
    return list(dict.fromkeys((op, precision) for _, op, precision in rows))


def missing_pairs(rows: Iterable[LayerRow], table: LatencyTable, threads: int) -> list[Pair]:
    """The distinct pairs that the table does not hold yet at this thread count."""
    return [(op, precision) for op, precision in distinct_pairs(rows) if not table.has(op, precision, threads)]


def layer_latencies_us(rows: Iterable[LayerRow], table: LatencyTable, threads: int) -> dict[tuple[str, str], float]:
    """Median of every (layer, precision name) in microseconds; raises `NotMeasured` for the first missing row."""
    return {(layer, precision.name): table.lookup(op, precision, threads).median_us for layer, op, precision in rows}
