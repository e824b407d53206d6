"""Recipes to scan: what a profile runs, per layer and precision, and the union of what several run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kernels.hardware_profile import HardwareProfile
from kernels.precision import Precision
from kernels.recipe import Numerics, Recipe
from search.errors import BadSubmission
from search.graph import Graph

BYTE = 8
Recipes = Mapping[tuple[str, str], Recipe]
"""(layer, precision name) → recipe: the numerics of one runtime. Targets with equal ones share a scan whole."""


class Wanted(NamedTuple):
    """A candidate to finish. Runtimes that compute a layer's precision by one recipe want the same one."""

    layer: str
    precision: str
    recipe: Recipe


def wanted_of(recipes: Iterable[Recipes]) -> list[Wanted]:
    """The union of several runtimes' recipes, each candidate once."""
    return list(dict.fromkeys(Wanted(*key, recipe) for own in recipes for key, recipe in own.items()))


def recipes_for(
    graph: Graph, profile: HardwareProfile, precisions: Sequence[str] = ()
) -> dict[tuple[str, str], Recipe]:
    """(layer, precision name) → recipe for every pair the profile runs, in graph order.

    `precisions`, when given, are the only ones kept. Activations below 8 bits must be asked for by name and alone:
    layers that read one tensor share its quantizer, and nothing keeps an allocation from wanting it in two widths.
    Raises `BadSubmission`: `activation_bits_mixed`, `activation_numerics_conflict` when the profile itself reads one
    tensor in two formats, and `nothing_to_quantize` when no pair is left.
    """
    found: dict[tuple[str, str], Recipe] = {}
    for layer in graph.layers:
        if layer.unquantized_reason is not None:
            continue
        for precision in profile.precisions(layer.op_kind):
            if precision.name in precisions if precisions else precision.activation_bits >= BYTE:
                found[layer.name, precision.name] = profile.recipe(layer.op_kind, precision)
    if not found:
        raise BadSubmission(
            f"no layer of the model can be quantized on {profile.slug!r} in the precisions asked for",
            hint=_why_nothing(graph),
            code="nothing_to_quantize",
        )
    widths = {name: Precision(name).activation_bits for _, name in found if Precision(name).quantizes_activations}
    if len(set(widths.values())) > 1:
        raise BadSubmission(
            f"activations of several widths were asked for together: {', '.join(sorted(widths))}",
            hint="ask for one width of activations in a study, for example w8a8 and w4a8",
            code="activation_bits_mixed",
        )
    _check_formats(graph, profile, found)
    return found


def _why_nothing(graph: Graph) -> str:
    """The reasons of layers and ops that stay in float, the most frequent first."""
    reasons = Counter(
        reason
        for reason in [
            *(layer.unquantized_reason for layer in graph.layers),
            *(item.reason for item in graph.unquantized),
        ]
        if reason is not None
    )
    if not reasons:
        return "ask for precisions that the profile runs" if graph.layers else "the model has no layer with weights"
    return "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(4))


def static_formats(graph: Graph, layer: str, recipe: Recipe) -> dict[str, Numerics]:
    """The tensors that a layer's recipe quantizes statically: what it reads and, where the kernel writes it
    quantized, its `Layer.quantized_tensor`."""
    numerics, found = recipe.activation, graph.layer(layer)
    if numerics is None or numerics.dynamic:
        return {}
    return dict.fromkeys([found.input, *([found.quantized_tensor] if recipe.output_quantized else [])], numerics)


def _check_formats(graph: Graph, profile: HardwareProfile, recipes: Recipes) -> None:
    known: dict[str, Numerics] = {}
    for (name, precision), recipe in recipes.items():
        for tensor, numerics in static_formats(graph, name, recipe).items():
            if known.setdefault(tensor, numerics) != numerics:
                raise BadSubmission(
                    f"{profile.slug!r} wants {numerics} on tensor {tensor!r} for layer {name!r} at {precision}, and "
                    f"{known[tensor]} for another",
                    hint="a profile reads a tensor in one format; give its recipes the same activation numerics",
                    code="activation_numerics_conflict",
                )
