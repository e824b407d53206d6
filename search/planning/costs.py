"""Target costs: bytes, microseconds, products and memory of every (layer, precision) on one target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kernels.hardware_profile import HardwareProfile
from kernels.precision import FP32
from search.artifact.byte_count import ByteCounter
from search.assembly import Candidate
from search.candidates.candidate_set import CandidateSet
from search.graph import Graph, OperatingShapes
from search.groups import LayerGroup
from search.latency.costs import LatencyCosts, latency_costs
from search.latency.fit import LatencyFit
from search.onnx_import import operating_shapes
from search.planning.memory import MemoryStep, memory_steps
from search.study import Target

LayerPrecision = tuple[str, str]


@dataclass(frozen=True)
class TargetCosts:
    """What every (layer, precision) costs on one target, full precision included.

    `sizes` in bytes on disk; `fixed_size_bytes` is the rest of the file. `latency` is None where none is known: then
    only the other budgets can be kept.
    """

    graph: Graph
    shapes: OperatingShapes
    profile: HardwareProfile
    groups: tuple[LayerGroup, ...]
    sizes: Mapping[LayerPrecision, int]
    fixed_size_bytes: int
    latency: LatencyCosts | None
    memory: Sequence[MemoryStep] = ()

    def offered(self, group: LayerGroup) -> list[str]:
        """Precisions that every layer of the group has a candidate and, where latency is known, a price for."""
        names = [name for layer, name in self.sizes if layer == group.layers[0]]
        return [
            name
            for name in names
            if all((layer, name) in self.sizes for layer in group.layers)
            and (self.latency is None or (group.name, name) in self.latency.choices)
        ]


def target_costs(
    graph: Graph,
    candidates: CandidateSet,
    groups: tuple[LayerGroup, ...],
    profile: HardwareProfile,
    target: Target,
    fit: LatencyFit | None,
) -> TargetCosts:
    """The costs of one target; peak memory is counted only when a budget bounds it."""
    counter = ByteCounter(graph)
    decided = [graph.layer(name) for group in groups for name in group.layers]
    sizes = {(layer.name, FP32.name): counter.layer(layer, None) for layer in decided}
    offers: dict[str, dict[str, Candidate]] = {}
    for (name, precision), candidate in candidates.candidates.items():
        if (name, FP32.name) in sizes:
            offers.setdefault(precision, {})[name] = candidate
    for precision, finished in offers.items():
        sizes.update({(name, precision): size for name, size in counter.finished(finished).items()})
    undecided = [layer for layer in graph.layers if (layer.name, FP32.name) not in sizes]
    floats = sum(counter.layer(layer, None) for layer in undecided if layer.unquantized_reason is None)
    shapes = operating_shapes(graph, target.point)
    wants_memory = any(budget.resource == "peak_memory_bytes" for budget in target.budgets)
    return TargetCosts(
        graph=graph,
        shapes=shapes,
        profile=profile,
        groups=groups,
        sizes=sizes,
        fixed_size_bytes=counter.fixed + floats,
        latency=None if fit is None else latency_costs(fit, groups),
        memory=memory_steps(graph, shapes) if wants_memory else (),
    )
