"""Numerics of one target in words: by which recipe its runtime computes each precision."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.recipe import Granularity, Numerics, Recipe
from search.candidates.candidate_set import CandidateSet
from search.graph import Graph

_SCALES = {
    Granularity.TENSOR: "one scale per tensor",
    Granularity.CHANNEL: "a scale per channel",
    Granularity.ROW: "a scale per row",
}


@dataclass(frozen=True)
class PrecisionRow:
    """One (op kind, precision) that some layer has a candidate for; `sentence` says what the recipe does."""

    op: str
    precision: str
    recipe: str
    sentence: str


def precision_rows(graph: Graph, candidates: CandidateSet) -> list[PrecisionRow]:
    """What the target's candidates are computed by, each (op kind, precision) once, in graph order."""
    kinds = {layer.name: layer.op_kind for layer in graph.layers}
    found = {(kinds[layer], precision): recipe for (layer, precision), recipe in candidates.recipes.items()}
    return [PrecisionRow(kind, precision, recipe.name, words(recipe)) for (kind, precision), recipe in found.items()]


def words(recipe: Recipe) -> str:
    """`weights 8 bit, symmetric, a scale per channel; activations 8 bit, asymmetric, one scale per tensor; …`"""
    parts = [f"weights {_format(recipe.weight)}"]
    if recipe.activation is not None:
        parts.append(f"activations {_format(recipe.activation)}")
    elif recipe.internal_activation is not None:
        parts.append(f"activations in float, inside the kernel {_format(recipe.internal_activation)}")
    else:
        parts.append("activations in float")
    if recipe.output_quantized:
        parts.append("the output is quantized too")
    return "; ".join(parts)


def _format(numerics: Numerics) -> str:
    scales = _SCALES.get(numerics.granularity, f"a scale per {numerics.group_size} weights")
    if numerics.granularity is Granularity.ROW and numerics.group_size is not None:
        scales += f" and {numerics.group_size} inputs"
    return (
        f"{numerics.bits} bit{' less one' * numerics.reduced_range}, "
        f"{'symmetric' if numerics.symmetric else 'asymmetric'}, {scales}{', found at run time' * numerics.dynamic}"
    )
