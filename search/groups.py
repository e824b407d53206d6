"""Layer groups: the units of allocation, layers that must share a precision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from search.graph import Graph, Layer


@dataclass(frozen=True)
class LayerGroup:
    """Layers that get one decision; named after the first. A layer that is tied to nothing is a group of one."""

    name: str
    layers: tuple[str, ...]


def group_layers(graph: Graph, extra_ties: Iterable[Iterable[str]] = ()) -> tuple[LayerGroup, ...]:
    """Quantizable layers of the graph grouped by shared weights (`Layer.tie`) and by the runtime's `extra_ties`.

    Groups come in the order of their first layer in the graph.
    """
    layers: list[Layer] = [layer for layer in graph.layers if layer.unquantized_reason is None]
    leader = {layer.name: layer.name for layer in layers}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    by_tie: dict[str, list[str]] = {}
    for layer in layers:
        if layer.tie is not None:
            by_tie.setdefault(layer.tie, []).append(layer.name)
    order = {layer.name: index for index, layer in enumerate(layers)}
    for tie in [*by_tie.values(), *(list(names) for names in extra_ties)]:
        roots = sorted({find(name) for name in tie if name in leader}, key=order.__getitem__)
        for other in roots[1:]:
            leader[other] = roots[0]
    members: dict[str, list[str]] = {}
    for layer in layers:
        members.setdefault(find(layer.name), []).append(layer.name)
    return tuple(LayerGroup(name, tuple(names)) for name, names in members.items())
