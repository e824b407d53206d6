"""Recipes to scan: the union of what the study's profiles run, per layer and precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kernels.hardware_profile import HardwareProfile
from kernels.precision import Precision
from kernels.recipe import Recipe
from search.errors import BadSubmission
from search.graph import Graph

BYTE = 8


def recipes_for(
    graph: Graph, profiles: Iterable[HardwareProfile], precisions: Sequence[str] = ()
) -> dict[tuple[str, str], Recipe]:
    """(layer, precision name) → recipe for every pair some profile runs, in graph order.

    `precisions`, when given, are the only ones kept. Activations below 8 bits must be asked for by name and alone:
    layers that read one tensor share its quantizer, and nothing keeps an allocation from wanting it in two widths.
    Raises `BadSubmission`: `recipe_conflict` when two profiles compute one precision with different numerics,
    `activation_bits_mixed`, and `nothing_to_quantize` when no pair is left.
    """
    found: dict[tuple[str, str], Recipe] = {}
    for profile in profiles:
        for layer in graph.layers:
            if layer.unquantized_reason is not None:
                continue
            for precision in profile.precisions(layer.op_kind):
                if precision.name not in precisions if precisions else precision.activation_bits < BYTE:
                    continue
                recipe = profile.recipe(layer.op_kind, precision)
                if found.setdefault((layer.name, precision.name), recipe) != recipe:
                    raise BadSubmission(
                        f"{profile.slug!r} runs {precision} {layer.op_kind} with other numerics than another target",
                        hint="submit one study per target; each is scanned with its own numerics",
                        code="recipe_conflict",
                    )
    if not found:
        raise BadSubmission(
            "no layer of the model can be quantized on the profiles asked for",
            hint="see the reasons beside each layer, and the precisions of each profile",
            code="nothing_to_quantize",
        )
    widths = {name: Precision(name).activation_bits for _, name in found if Precision(name).quantizes_activations}
    if len(set(widths.values())) > 1:
        raise BadSubmission(
            f"activations of several widths were asked for together: {', '.join(sorted(widths))}",
            hint="ask for one width of activations in a study, for example w8a8 and w4a8",
            code="activation_bits_mixed",
        )
    order = {layer.name: index for index, layer in enumerate(graph.layers)}
    return dict(sorted(found.items(), key=lambda item: order[item[0][0]]))
