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

    by_tie: dict[tuple[str, str | None], list[str]] = {}
    shared = _stored_once(layers)
    for layer in layers:
        if layer.tie is not None:
            by_tie.setdefault((layer.tie, None if layer.tie in shared else layer.op_kind), []).append(layer.name)
    order = {layer.name: index for index, layer in enumerate(layers)}
    for tie in [*by_tie.values(), *(list(names) for names in extra_ties)]:
        roots = sorted({find(name) for name in tie if name in leader}, key=order.__getitem__)
        for other in roots[1:]:
            leader[other] = roots[0]
    members: dict[str, list[str]] = {}
    for layer in layers:
        members.setdefault(find(layer.name), []).append(layer.name)
    return tuple(LayerGroup(name, tuple(names)) for name, names in members.items())


def _stored_once(layers: Iterable[Layer]) -> set[str]:
    """Ties of which layers of two kinds read one stored constant.

    Embeddings and matrix products have no quantized precision in common. Where the exporter stored a copy for each
    (a head tied to an embedding, transposed), they need none and are decided apart.
    """
    kinds: dict[tuple[str, str], set[str]] = {}
    for layer in layers:
        if layer.tie is not None:
            kinds.setdefault((layer.tie, layer.weight), set()).add(layer.op_kind)
    return {tie for (tie, _), found in kinds.items() if len(found) > 1}
